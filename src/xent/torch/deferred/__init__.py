"""Models whose output layer defers its logits, so that the loss never needs them."""

from xent.torch.deferred.layers import DeferredLinear, defer_logits, restore_logits
from xent.torch.deferred.tensor import DeferredLogits

__all__ = ["DeferredLinear", "DeferredLogits", "defer_logits", "restore_logits"]
