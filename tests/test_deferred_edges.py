"""Deferred logits at the edges of the modes: labels, other heads, errors, and options that are tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from test_deferred_modes import (
    ALONE,
    LABELS,
    SCALES,
    SOFT,
    TRANSFORMS,
    WEIGHT,
    Squares,
    X,
    all_options,
    build,
    pytestmark,  # noqa: F401  the warnings of torch itself
    same,
    trained,
    weighted,
)
from torch import nn
from torch.autograd import forward_ad
from torch.func import grad
from torch.nn import functional as F

import xent.torch
from xent.errors import ArgumentError
from xent.torch.deferred import DeferredLogits, defer_logits, restore_logits


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("mode", ["backward", "func.grad", "per-sample gradients", "compiled step", "create_graph"])
def test_labels_of_all_integer_dtypes(mode, dtype):
    """-100 is 156 in uint8, and no class: there the third row counts."""
    run, y = {**ALONE, **TRANSFORMS}[mode], LABELS if dtype.is_signed else LABELS.clamp(min=0)
    found, wanted = run(defer_logits(build(), "2"), all_options, y.to(dtype)), run(build(), all_options, y)
    same(found, wanted)


class Halved(nn.Linear):
    """A forward of its own around that of `torch.nn.Linear`."""

    def forward(self, input, scale=0.5):
        return super().forward(input.sin()) * scale


HEADS = {
    "own forward": lambda: build(Halved),
    "weight_norm": lambda: parametrised(nn.utils.parametrizations.weight_norm),
    "spectral_norm": lambda: parametrised(nn.utils.parametrizations.spectral_norm),
}


def parametrised(parametrisation):
    model = build(Halved)
    torch.manual_seed(2)
    parametrisation(model[2])
    return model


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "mode",
    [
        "func.grad",
        "hessian",
        "create_graph",
        "compiled step",
        "compiled model",
        "exported",
        "backward hooks",
        "checkpointed loss",
    ],
)
def test_other_heads_in_these_modes(mode, head):
    run = {**ALONE, **TRANSFORMS}[mode]
    for call in (weighted, all_options):
        found, wanted = (run(model, call, LABELS) for model in (defer_logits(HEADS[head](), "2"), HEADS[head]()))
        same(found, wanted)


def test_a_head_with_a_forward_of_its_own_is_called_once_by_compiled_code():
    """The graph breaks inside of it."""
    torch._dynamo.reset()
    calls = []

    class Counted(nn.Linear):
        def forward(self, input):
            count()
            return super().forward(input) * 3.0

    @torch._dynamo.disable
    def count():
        calls.append(1)

    model = defer_logits(build(Counted), "2")
    logits = torch.compile(model, backend="eager")(X)
    assert type(logits) is DeferredLogits
    assert len(calls) == 1


def test_a_compiler_that_must_not_break_its_graph_says_where_it_would():
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="break_graph_at_deferred_logits"):
        torch.compile(defer_logits(build(), "2"), backend="eager", fullgraph=True)(X)


def test_a_script_of_a_model_needs_ordinary_logits():
    model = defer_logits(build(), "2")
    with pytest.raises(ArgumentError, match=r"torch\.jit\.script.*restore_logits\(copy\.deepcopy\(model\)\)"):
        torch.jit.script(model)
    assert type(model(X)) is DeferredLogits
    scripted = torch.jit.script(restore_logits(copy.deepcopy(model)))
    same([scripted(X)], [build()(X)])


def test_models_without_numbers_have_ordinary_logits():
    model = defer_logits(build(), "2").to("meta")
    logits = model(X.to("meta"))
    assert type(logits) is torch.Tensor
    F.cross_entropy(logits, LABELS.to("meta")).backward()
    assert model[2].weight.grad.is_meta
    with torch._subclasses.FakeTensorMode() as mode:
        fake = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 7))
        logits = defer_logits(fake, "1")(torch.randn(3, 4))
        value = F.cross_entropy(logits, torch.zeros(3, dtype=torch.int64))
        value.backward()
        assert type(logits) is type(value) is type(fake[1].weight.grad) is type(mode.from_tensor(X))
        assert logits.shape == (3, 7)


def test_a_gradient_that_would_pass_by_a_hook_is_an_error():
    """An autograd function takes the tensor itself; the hook is on the logits that were made."""
    for watch in (lambda x: x.retain_grad(), lambda x: x.register_hook(lambda upstream: 2 * upstream)):
        model = defer_logits(build(), "2")
        logits = model(X)
        copied = logits / 2.0
        watch(logits)
        for taken in (logits, copied):
            with pytest.raises(ArgumentError, match=r"autograd function.*hook.*logits\.materialize\(\)"):
                Squares.apply(taken).backward()
        Squares.apply(logits.materialize()).backward()
        assert model[2].weight.grad.norm() > 0


def test_writing_to_logits_inside_of_a_transform_is_an_error_as_in_torch():
    logits = defer_logits(build(), "2")(X)

    def written(scale):
        logits.mul_(2.0)
        return F.cross_entropy(logits, LABELS) * scale

    with pytest.raises(ArgumentError, match=r"torch\.func.*materialize"):
        grad(written)(SCALES[0])
    logits.materialize()
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        grad(written)(SCALES[0])


def test_weights_changed_between_making_the_logits_and_backward_are_an_error_as_in_torch():
    model = defer_logits(build(), "2")
    for value in (model(X).softmax(-1).square().sum(), Squares.apply(model(X))):
        with torch.no_grad():
            model[2].weight.mul_(2.0)
        with pytest.raises(ArgumentError, match="changed in place"):
            value.backward()


def test_class_probabilities_get_their_gradient_and_its_gradient():
    results = []
    for model in (defer_logits(build(), "2"), build()):
        target = SOFT.clone().requires_grad_()
        value = F.cross_entropy(model(X), target, label_smoothing=0.1)
        (slope,) = torch.autograd.grad(value, target, create_graph=True)
        results.append([slope, *trained(value + slope.square().sum(), model), target.grad])
    same(*results)


TENSOR_OPTIONS = {
    "logit_scale": (
        lambda logits, t: xent.torch.cross_entropy(logits, LABELS, logit_scale=t),
        lambda logits: torch.func.grad(lambda t: F.cross_entropy(logits * t, LABELS))(
            torch.ones((), dtype=torch.float64)
        ),
    ),
    "logit_scale of softcapped logits": (
        lambda logits, t: xent.torch.cross_entropy(logits.tanh() * 2.0, LABELS, logit_scale=t),
        lambda logits: torch.func.grad(lambda t: F.cross_entropy(logits.tanh() * 2 * t, LABELS))(
            torch.ones((), dtype=torch.float64)
        ),
    ),
    "denominator": (
        lambda logits, t: xent.torch.cross_entropy(logits, LABELS, denominator=t),
        lambda logits: -F.cross_entropy(logits, LABELS, reduction="sum"),
    ),
    "logit_scale of statistics": (
        lambda logits, t: xent.torch.statistics(logits, LABELS, logit_scale=t).log_prob.sum(),
        lambda logits: torch.func.grad(lambda t: -F.cross_entropy(logits * t, LABELS, reduction="sum"))(
            torch.ones((), dtype=torch.float64)
        ),
    ),
    "class weights": (lambda logits, t: F.cross_entropy(logits, LABELS, t * WEIGHT), lambda logits: 0.0),
    "probabilities": (
        lambda logits, t: F.cross_entropy(logits, t * SOFT),
        lambda logits: F.cross_entropy(logits, SOFT),
    ),
}
"""Losses of a factor, and their derivative by it at 1: multiplying all weights does not change a weighted mean."""


def tangent_of_option(call):
    with forward_ad.dual_level():
        one = torch.ones((), dtype=torch.float64)
        return forward_ad.unpack_dual(call(forward_ad.make_dual(one, one))).tangent


def gradient_of_option(call):
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    call(factor).backward()
    return factor.grad


@pytest.mark.parametrize("derivative_of", [tangent_of_option, gradient_of_option])
@pytest.mark.parametrize("option", TENSOR_OPTIONS)
def test_the_derivative_by_an_option_is_right(derivative_of, option):
    """Never None in silence. torch knows no derivative by class weights."""
    call, derivative = TENSOR_OPTIONS[option]
    model = build()
    model[2].register_parameter("bias", None)  # with one, a softcap needs the logits
    wanted = derivative(model(X).detach())
    defer_logits(model, "2")
    found = derivative_of(lambda factor: call(model(X), factor))
    assert found.item() == pytest.approx(float(wanted), rel=1e-13, abs=1e-15)
