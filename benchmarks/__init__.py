"""The developers' measurements of xent; not part of the package.

Commands

    run.py      measures, and writes the records in results/
    tables.py   makes the tables and plots of the documents from the records, or checks them

Measurements, each of which returns a record

    logits_loss.py     the losses of logits: `xent.bench` with memory (logits_memory.py) and bars (bars.py)
    linear_loss.py     the loss of a linear layer, with memory (linear_memory.py) and errors (linear_error.py)
    sharded_loss.py    the linear loss over several processes
    avx2.py            the same with code for processors without AVX-512
    gpu_losses.py      both losses on a GPU, beside gpu_peers.py, against gpu_bars.py
    accuracy.py        errors of losses and gradients; primitive_errors.py those of exp, log and tanh
    divergence_loss.py  the divergences beside torch's formula, and beside four products
    score_speed.py     `xent.score` beside a bare mean
    scaling.py         time against the number of elements
    modes.py           second derivatives, gradients per sample, a scaled loss
    thread_sharing.py  one thread, a pool, or torch's OpenMP threads
    first_call.py      compilation

Shared

    processes.py       measurements in a process of their own, and its memory
    internals.py       what the benchmarks use of xent beyond its public names
    two_versions.py    two versions of the package side by side
    record_tables.py   a Markdown table from a record; markdown.py its cells and the markers in a document
    plots.py           the plots
"""
