"""The losses for torch: drop-ins for those of `torch.nn.functional` and the modules of `torch.nn`.

    functional.py, linear.py   the public calls: checks, and the choice of what computes
    binary*.py                 the same for binary targets: call, autograd `Function`, operators
    divergences.py             the divergences of student and teacher; divergence_*.py as below
    modules.py                 the modules
    autograd.py                one autograd `Function` for each loss and its statistics, over any backend
    operators.py               the same as operators, for compilers and tensor subclasses
    linear_positions.py        the loss of a linear layer in torch's K dimensions: one position after another
    linear_formula.py          the loss of a linear layer as a formula that torch sees through
    contrastive.py             the loss of pairs of embeddings; contrastive_operators.py
    rows.py                    tensors of any shape as rows
    deferred/, parallel/       models that never make their logits; classes sharded over processes

Shapes and arguments are those of torch; `xent.Objective` documents the options that torch does not have.
"""

from xent.errors import missing_package

try:
    from xent.backends.protocol import Statistics
    from xent.linear.sampling import GradientReport
    from xent.sparse import SparseTarget
    from xent.torch.binary import binary_cross_entropy_with_logits
    from xent.torch.contrastive import contrastive_loss
    from xent.torch.contrastive_modules import ContrastiveLoss
    from xent.torch.divergence_modules import (
        JSDivergenceLoss,
        KLDivergenceLoss,
        LinearJSDivergenceLoss,
        LinearKLDivergenceLoss,
    )
    from xent.torch.divergences import js_divergence, kl_divergence
    from xent.torch.functional import cross_entropy, statistics
    from xent.torch.linear import linear_cross_entropy, linear_statistics
    from xent.torch.linear_divergences import linear_js_divergence, linear_kl_divergence
    from xent.torch.modules import BCEWithLogitsLoss, CrossEntropyLoss, LinearCrossEntropyLoss
except ModuleNotFoundError as error:
    raise missing_package(error, "xent.torch", "torch") from None

__all__ = [
    "BCEWithLogitsLoss",
    "ContrastiveLoss",
    "CrossEntropyLoss",
    "GradientReport",
    "JSDivergenceLoss",
    "KLDivergenceLoss",
    "LinearCrossEntropyLoss",
    "LinearJSDivergenceLoss",
    "LinearKLDivergenceLoss",
    "SparseTarget",
    "Statistics",
    "binary_cross_entropy_with_logits",
    "contrastive_loss",
    "cross_entropy",
    "js_divergence",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_js_divergence",
    "linear_kl_divergence",
    "linear_statistics",
    "statistics",
]
