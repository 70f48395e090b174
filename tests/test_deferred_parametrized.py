"""Parametrised output layers: read once in each forward, trained in their originals, and restored."""

from __future__ import annotations

import copy

import pytest
import torch
from models import is_made, trained
from test_deferred_heads import Plain, Scaled
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from xent.torch.deferred import DeferredLinear, defer_logits, restore_logits


class Doubled(nn.Module):
    """A parametrisation that counts how often it is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, weight):
        self.calls += 1
        return 2.0 * weight + weight.sin()


def custom(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())


def of_the_bias(layer):
    parametrize.register_parametrization(layer, "bias", Doubled())


def of_both(layer):
    custom(layer)
    of_the_bias(layer)


def orthogonal(layer):
    parametrizations.orthogonal(layer, use_trivialization=False)


PARAMETRISATIONS = {
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": orthogonal,
    "custom": custom,
    "of the bias": of_the_bias,
    "of both": of_both,
    "two": lambda layer: (custom(layer), parametrizations.spectral_norm(layer)),
}


def parametrised(parametrisation, first: str, layer: type[nn.Linear] = Plain, classes: int = 48):
    """A model with deferred logits, its parametrised head, and the same without deferred logits."""
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), layer(16, classes)).double()
    torch.manual_seed(4)
    deferred = copy.deepcopy(plain)
    for model in (plain, deferred):
        torch.manual_seed(4)
        if model is deferred and first == "deferred":
            defer_logits(model, "2")
        parametrisation(model[2])
        if model is deferred and first == "parametrised":
            defer_logits(model, "2")
    return deferred, plain


ORDERS = pytest.mark.parametrize("first", ["deferred", "parametrised"])
SAMPLES = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
CLASSES = torch.randint(48, (12,), generator=torch.Generator().manual_seed(6))


def sample_loss(model):
    return F.cross_entropy(model(SAMPLES), CLASSES)


@ORDERS
@pytest.mark.parametrize("layer", [nn.Linear, Plain, Scaled])
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS.values(), ids=PARAMETRISATIONS)
def test_gradients_reach_the_originals_of_a_parametrised_head(parametrisation, first, layer):
    deferred, plain = parametrised(parametrisation, first, layer)
    for _ in range(2):  # spectral_norm goes on with its iteration at each forward in training
        found, wanted = trained(deferred, sample_loss), trained(plain, sample_loss)
        assert found.keys() == wanted.keys()
        assert any("original" in key for key in found)
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-14)
    assert not is_made(deferred(SAMPLES))
    plain(SAMPLES)
    for (key, value), (_, other) in zip(plain.state_dict().items(), deferred.state_dict().items(), strict=True):
        assert torch.equal(value, other), f"{key}: the parametrisation was computed more than once"


def refused(layer, input):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(input)


USES = {
    "loss": sample_loss,
    "logits": lambda model: model(SAMPLES).softmax(-1).square().sum(),
    "both": lambda model: sum((lambda x: F.cross_entropy(x, CLASSES) + x.logsumexp(-1).sum())(model(SAMPLES))[None]),
    "no gradient": lambda model: torch.no_grad()(sample_loss)(model),
    "functional_call": lambda model: torch.func.functional_call(
        model, dict(model.named_parameters()), (SAMPLES,)
    ).sum(),
    "transformed": lambda model: torch.func.vmap(lambda x: model(x))(SAMPLES).sum(),
    "cached": lambda model: parametrize.cached()(sample_loss)(model),
    "a wrong input": lambda model: refused(model[2], SAMPLES[:, :3]),
}


@ORDERS
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_parametrisation_is_computed_once_per_forward(use, first):
    model, _ = parametrised(of_both, first)
    counters = [model[2].parametrizations[name][0] for name in ("weight", "bias")]
    for counter in counters:
        counter.calls = 0
    value = use(model)
    if isinstance(value, torch.Tensor) and value.requires_grad:
        value.backward()
    assert [counter.calls for counter in counters] == [1, 1]


@ORDERS
def test_restoring_a_parametrised_head_gives_its_class_back(first):
    deferred, plain = parametrised(custom, first)
    of_the_bias(deferred[2])
    of_the_bias(plain[2])
    twin = copy.deepcopy(deferred)
    assert type(restore_logits(deferred)[2].bias) is torch.Tensor
    assert not isinstance(deferred[2], DeferredLinear)
    assert type(deferred[2]).__mro__[1:] == type(plain[2]).__mro__[1:]
    assert type(deferred[2]).__name__ == type(plain[2]).__name__
    assert torch.equal(deferred(SAMPLES), plain(SAMPLES))
    assert not is_made(twin(SAMPLES)), "the copy lost its class with the original"
    for name in ("weight", "bias"):
        parametrize.remove_parametrizations(deferred[2], name)
    assert type(deferred[2]) is Plain
    assert torch.equal(deferred(SAMPLES), plain(SAMPLES))


@ORDERS
def test_a_head_that_is_no_longer_parametrised_defers_on(first):
    deferred, plain = parametrised(custom, first)
    parametrize.remove_parametrizations(deferred[2], "weight")
    assert isinstance(deferred[2], DeferredLinear)
    assert not is_made(deferred(SAMPLES))
    assert torch.equal(deferred(SAMPLES) + 0, plain(SAMPLES))
    assert type(restore_logits(deferred)[2]) is Plain


def weight_norm_by_hook(layer):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer)


HOOKED = {
    "weight_norm": weight_norm_by_hook,
    "spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}


@ORDERS
@pytest.mark.parametrize("change", HOOKED.values(), ids=HOOKED)
def test_weights_that_a_hook_sets_before_each_forward_get_their_gradients(change, first):
    deferred, plain = parametrised(change, first)
    found, wanted = trained(deferred, sample_loss), trained(plain, sample_loss)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-14)
    assert not is_made(deferred(SAMPLES))
