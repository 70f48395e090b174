"""The linear cross-entropy without its logits: `cross_entropy(input @ weight.T + bias, target)` in a fixed workspace.

    plan.py        how the work is cut to fit the workspace
    driver.py      the order of the steps, for any device
    host.py        the steps on the CPU: Numba kernels and matrix products, in one block of memory
    statistics.py  the steps on the CPU for log-probability, entropy and log-sum-exp, and their gradients
    products.py    which library multiplies matrices, measured once
    openblas.py    the one product that NumPy lacks: out += a @ b
    calls.py       arrays in, arrays out: what the fronts call

Nothing here validates shapes or labels, or reduces (targets.py and reduction.py do).
"""
