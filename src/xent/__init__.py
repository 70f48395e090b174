"""xent: cross-entropy. Compute it, train with it, score with it, and see why it works.

    xent.information   probabilities in: entropy, cross-entropy, KL divergence, softmax ...
    xent.likelihood    labels under predicted distributions
    xent.numpy         logits in: the losses and their gradients for NumPy arrays
    xent.torch         the same for tensors: drop-ins for F.cross_entropy and nn.CrossEntropyLoss
    xent.scoring       a table of predictions in: how good they are; `xent.score` and `xent.compare`
    xent.reference     the float64 definitions that everything else is tested against

Importing xent loads none of them, nor NumPy: each submodule is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xent import errors, information, likelihood, numpy, objective, reference, scoring, torch
    from xent.errors import XentError
    from xent.objective import Objective

    # Not from xent.scoring: type checkers would find the modules of the same names there.
    from xent.scoring.api import score
    from xent.scoring.compare import compare

__version__ = "0.2.0"

_SUBMODULES = ("errors", "information", "likelihood", "numpy", "objective", "reference", "scoring", "torch")
_NAMES = {"XentError": "errors", "Objective": "objective", "compare": "scoring", "score": "scoring"}

__all__ = ["Objective", "XentError", "__version__", "compare", "score", *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"xent.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"xent.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'xent' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
