"""Deferred logits in torch's ways of executing a model: value and gradient are those of the ordinary model, everywhere.

Each mode computes with a model, a loss of its logits and a target. It is run with deferred logits and without, in
float64, and what it returns has to be the same to rounding.
"""

from __future__ import annotations

import copy

import pytest
import torch
from comparison import ULPS, eps
from torch import nn
from torch.autograd import forward_ad, functional, graph
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import xent.torch
from xent.torch.deferred import defer_logits

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit",
    "ignore:Anomaly Detection",
    "ignore:There is a performance drop",
    "ignore:.*should not be instantiated",  # Dynamo does it itself, and asks for .grad
    "ignore:The .grad attribute of a Tensor that is not a leaf",
)

ROWS, FEATURES, CLASSES = 6, 5, 7
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(ROWS, 4, dtype=torch.float64, generator=GENERATOR)
LABELS = torch.tensor([0, 6, -100, 2, 3, 1])
SOFT = torch.softmax(torch.randn(ROWS, CLASSES, dtype=torch.float64, generator=GENERATOR), -1)
WEIGHT = torch.linspace(0.2, 2.0, CLASSES, dtype=torch.float64)
SCALES = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def build(head: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, FEATURES), nn.Tanh(), head(FEATURES, CLASSES)).double()


# -------------------------------------------------------------------------------------------------------------- losses


class Squares(torch.autograd.Function):
    """An autograd function, which takes its arguments past `__torch_function__`; it can be differentiated twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return 2 * x * upstream


def weighted(x, y):
    return F.cross_entropy(x, y, WEIGHT, label_smoothing=0.1)


def of_rows(x, y):
    losses = xent.torch.cross_entropy(x, y, reduction="none")
    return (losses * torch.linspace(-1, 2, len(x), dtype=x.dtype)).sum()


def all_options(x, y):
    return xent.torch.cross_entropy(x, y, WEIGHT, z_loss=0.1, softcap=3.0, label_smoothing=0.1, denominator=4.0)


def statistics(x, y):
    return sum(part.sum() for part in xent.torch.statistics(x, y)[:3])


LOSSES = {
    "sum": (lambda x, y: F.cross_entropy(x[:, :] / 2.0, y, reduction="sum"), LABELS),
    "mean": (F.cross_entropy, LABELS),
    "weighted": (weighted, LABELS),
    "soft": (F.cross_entropy, SOFT),
    "ours, of rows": (of_rows, LABELS),
    "ours": (all_options, LABELS),
    "statistics": (statistics, LABELS),
    "made": (lambda x, _: x.clone().softmax(-1).square().sum(), LABELS),
    "function": (lambda x, _: Squares.apply(x / 2.0), LABELS),
}

# --------------------------------------------------------------------------------------------------------------- modes


def gradients(model):
    return [parameter.grad for parameter in model.parameters()]


def values(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def tangents(model):
    return {name: torch.sin(3 * value + 1) for name, value in values(model).items()}


def trained(value, model):
    value.backward()
    return [value, *gradients(model)]


def backward(model, loss, y):
    return trained(loss(model(X), y), model)


def twice_backward(model, loss, y):
    value = loss(model(X), y)
    value.backward(retain_graph=True)
    return trained(value, model)


def looked_at(model, loss, y):
    """An accuracy between two losses."""
    logits = model(X)
    first = loss(logits, y)
    assert logits.argmax(-1).shape == (ROWS,)
    return [first, *trained(first + loss(logits, y), model)]


def frozen(model, loss, y):
    model[2].requires_grad_(False)
    return [grad for grad in backward(model, loss, y) if grad is not None]


def of_other_parameters(model, loss, y):
    parameters = {name: (value / 2).requires_grad_() for name, value in values(model).items()}
    loss(functional_call(model, parameters, (X,)), y).backward()
    return [parameter.grad for parameter in parameters.values()]


def within(context):
    def mode(model, loss, y):
        with context():
            value = loss(model(X), y)
            return trained(value, model) if value.requires_grad else [value]

    return mode


def func_grad(model, loss, y):
    return list(grad(lambda p: loss(functional_call(model, p, (X,)), y))(values(model)).values())


def per_sample(model, loss, y):
    def of_one(p, x, label):
        return loss(functional_call(model, p, (x[None],)), label[None])

    return list(vmap(grad(of_one), (None, 0, 0))(values(model), X, y).values())


def func_jvp(model, loss, y):
    return list(jvp(lambda p: loss(functional_call(model, p, (X,)), y), (values(model),), (tangents(model),)))


def func_hessian(model, loss, y):
    def of_bias(bias):
        return loss(functional_call(model, {**values(model), "2.bias": bias}, (X,)), y)

    return [hessian(of_bias)(model[2].bias.detach())]


def ensemble(model, loss, y):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].weight.mul_(-0.5)
    parameters, _ = stack_module_state([model, other])
    return [vmap(lambda p: loss(functional_call(model, p, (X,)), y))(parameters)]


def captured(model, loss, y):
    """Logits that a transform does not make itself, and that are used after it as well."""
    logits = model(X)
    inside = grad(lambda scale: loss(logits * scale, y))(SCALES[0])
    many = vmap(lambda scale: loss(logits * scale, y))(SCALES)
    return [inside, many, *trained(loss(logits, y), model)]


def of_an_argument(model, loss, y):
    """Logits that go into a transform as its argument."""
    logits = model(X).detach()
    return [grad(lambda x: loss(x, y))(logits), *jvp(lambda x: loss(x, y), (logits,), (SOFT,))]


def forward_mode(model, loss, y):
    tangent = tangents(model)
    with forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(value, tangent[name]) for name, value in values(model).items()}
        return of_dual(loss(functional_call(model, dual, (X,)), y))


def forward_mode_of_input(model, loss, y):
    with forward_ad.dual_level():
        return of_dual(loss(model(forward_ad.make_dual(X, X.cos())), y))


def forward_mode_of_logits(model, loss, y):
    logits = model(X).detach()
    with forward_ad.dual_level():
        return of_dual(loss(forward_ad.make_dual(logits, SOFT), y))


def of_dual(value):
    primal, tangent = forward_ad.unpack_dual(value)
    assert tangent is not None
    return [primal, tangent]


def jacobian(**options):
    return lambda model, loss, y: [functional.jacobian(lambda x: loss(model(x), y), X, **options)]


def hessian_of_input(**options):
    return lambda model, loss, y: [functional.hessian(lambda x: loss(model(x), y), X, **options)]


def products(model, loss, y):
    def of_input(x):
        return loss(model(x), y)

    return [*functional.hvp(of_input, X, X.cos()), *functional.jvp(of_input, X, X.cos())]


def batched(model, loss, y):
    return list(torch.autograd.grad(loss(model(X), y), list(model.parameters()), SCALES, is_grads_batched=True))


def batched_checkpoint(model, loss, y):
    value = checkpoint(lambda x: loss(model(x), y), X, use_reentrant=False)
    return list(torch.autograd.grad(value, list(model.parameters()), SCALES, is_grads_batched=True))


def penalty(model, loss, y):
    x = X.clone().requires_grad_()
    value = loss(model(x), y)
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    return [slope, *trained(value + slope.square().sum(), model), x.grad]


def checkpointed(place, *, by_reentrance):
    def mode(model, loss, y):
        options = {"use_reentrant": by_reentrance}
        hidden = model[:2](X)
        if place == "head":
            value = loss(checkpoint(model[2], hidden, **options), y)
        elif place == "both":
            value = checkpoint(lambda x: loss(model[2](x), y), hidden, **options)
        else:
            logits = model[2](hidden)
            value = checkpoint(loss, logits, y, **options)
            logits.argmax(-1)  # an accuracy: what the checkpoint repeats finds the logits made
        return trained(value, model)

    return mode


def compiled(what, backend="aot_eager"):
    def mode(model, loss, y):
        torch._dynamo.reset()
        if what == "step":
            return trained(torch.compile(lambda x, y: loss(model(x), y), backend=backend)(X, y), model)
        if what == "model":
            return trained(loss(torch.compile(model, backend=backend)(X), y), model)
        return trained(torch.compile(loss, backend=backend)(model(X), y), model)

    return mode


def compiled_gradient(model, loss, y):
    torch._dynamo.reset()
    of_parameters = grad(lambda p: loss(functional_call(model, p, (X,)), y))
    return list(torch.compile(of_parameters, backend="aot_eager")(values(model)).values())


def exported(*, strict):
    return lambda model, loss, y: [loss(torch.export.export(model, (X,), strict=strict).module()(X / 2), y)]


def recorded(model, loss, y):
    return [loss(torch.jit.trace(model, (X,))(X / 2), y)]


def symbolic(model, loss, y):
    return trained(loss(torch.fx.symbolic_trace(model)(X), y), model)


def forward_hook(model, loss, y):
    model[2].register_forward_hook(lambda module, inputs, output: output * 0.5)
    return backward(model, loss, y)


def backward_hooks(model, loss, y):
    seen = []
    model[2].register_full_backward_pre_hook(lambda module, upstream: seen.append(upstream[0]) or (upstream[0] * 2,))
    model[2].register_full_backward_hook(lambda module, inputs, upstream: seen.extend((inputs[0], upstream[0])))
    return [*backward(model, loss, y), *seen]


def tensor_hook(model, loss, y):
    logits = model(X)
    logits.retain_grad()
    logits.register_hook(lambda upstream: upstream * 2)
    return [*trained(loss(logits, y), model), logits.grad]


ALONE = {
    "backward": backward,
    "twice backward": twice_backward,
    "looked at": looked_at,
    "frozen head": frozen,
    "other parameters": of_other_parameters,
    "no_grad": within(torch.no_grad),
    "inference_mode": within(torch.inference_mode),
    "dual level": within(forward_ad.dual_level),
    "save_on_cpu": within(graph.save_on_cpu),
    "saved tensors": within(lambda: graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor)),
    "detect_anomaly": within(torch.autograd.detect_anomaly),
    "jacobian": jacobian(),
    "jacobian, vectorized": jacobian(vectorize=True),
    "hessian": hessian_of_input(),
    "hessian, vectorized": hessian_of_input(vectorize=True),
    "hvp and jvp": products,
    "batched gradients": batched,
    "batched gradients of a checkpoint": batched_checkpoint,
    "create_graph": penalty,
    **{f"checkpointed {place}": checkpointed(place, by_reentrance=False) for place in ("head", "loss", "both")},
    **{
        f"checkpointed {place}, reentrant": checkpointed(place, by_reentrance=True)
        for place in ("head", "loss", "both")
    },
    **{f"compiled {what}": compiled(what) for what in ("step", "model", "loss")},
    "compiled step, eager": compiled("step", "eager"),
    "exported": exported(strict=False),
    "exported, strict": exported(strict=True),
    "jit.trace": recorded,
    "fx": symbolic,
    "forward hook": forward_hook,
    "backward hooks": backward_hooks,
    "tensor hook": tensor_hook,
}
TRANSFORMS = {
    "func.grad": func_grad,
    "per-sample gradients": per_sample,
    "func.jvp": func_jvp,
    "func.hessian": func_hessian,
    "ensemble": ensemble,
    "captured": captured,
    "of an argument": of_an_argument,
    "forward mode": forward_mode,
    "forward mode, input": forward_mode_of_input,
    "forward mode, logits": forward_mode_of_logits,
    "jacobian, forward mode": jacobian(vectorize=True, strategy="forward-mode"),
    "compiled func.grad": compiled_gradient,
}
"""No transform and no forward mode sees through an autograd function of this kind."""

CASES = [
    *((mode, loss) for mode in ALONE for loss in LOSSES if (mode, loss) != ("tensor hook", "function")),  # that: below
    *((mode, loss) for mode in TRANSFORMS for loss in LOSSES if loss != "function"),
]


def same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        bound = ULPS * eps("float64") * max(1.0, other.abs().nan_to_num().max().item())
        torch.testing.assert_close(one.detach() + 0, other.detach(), rtol=0, atol=bound, equal_nan=True)


@pytest.mark.parametrize(("mode", "loss"), CASES)
def test_value_and_gradient_are_those_of_the_ordinary_model(mode, loss):
    run, (call, y) = {**ALONE, **TRANSFORMS}[mode], LOSSES[loss]
    found, wanted = (run(model, call, y) for model in (defer_logits(build(), "2"), build()))
    same(found, wanted)
    assert all(value.isfinite().all() for value in found) or mode == "per-sample gradients"
