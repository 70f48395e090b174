"""The linear cross-entropy without its logits: `cross_entropy(input @ weight.T + bias, target)` in a fixed workspace.

    plan.py     how the work is cut to fit the workspace
    driver.py   the order of the steps, for any device, and what happens to the logits of a chunk
    contrast.py two batches of embeddings, each the layer of the other: both directions of a contrastive loss
    backend.py  losses, gradients and statistics of a layer: the driver over the steps and the row kernels of a device

Nothing here validates shapes or labels, or reduces (checks.py and reduction.py do).
"""
