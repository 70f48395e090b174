"""Reports about training with other libraries' losses, and what was found here in use: the case of each, ours beside.

The thread or the letter of the finding is in the docstring. Cases about execution modes in general are those of
test_execution_modes.py; scaled losses have test_scaled_loss.py, array kinds test_array_kinds.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import ULPS, assert_within, eps
from torch import Tensor

import xent.torch
from xent.errors import ArgumentError, DTypeError, LabelError, ObjectiveError

EPS = eps(np.float64)
LABELS = torch.tensor([0, 3, 1, 6, 2])


def numbers(*shape: int, dtype=torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_same(found: Tensor, wanted: Tensor, size: float = 1.0) -> None:
    assert_within(found.detach().numpy(), wanted.detach().numpy(), ULPS * EPS * size * (1 + wanted.abs().max().item()))


# ------------------------------------------------------------------------------------------ losses that were negative


def confident(rows: int, classes: int, margin: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, y = numbers(rows, classes, dtype=torch.float32), torch.arange(rows) % classes
    x[torch.arange(rows), y] += margin
    return x.to(dtype), y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 10, 127, 1000, 5000])
@pytest.mark.parametrize("margin", [4.0, 8.0, 15.0, 25.0])
def test_confident_rows_have_losses_as_exact_as_their_dtype(dtype, classes, margin):
    """T2; LDAM-DRW #17, pytorch #2866: no loss is negative, and a small one is right relative to itself."""
    x, y = confident(64, classes, margin, dtype)
    losses = xent.torch.cross_entropy(x, y, reduction="none")
    wide = x.double()
    others = wide.scatter(1, y[:, None], -math.inf)
    exact = torch.log1p((others - wide.gather(1, y[:, None])).exp().sum(1))  # log(1 + sum of the others)
    assert (losses >= 0).all()
    # A float32 difference of two logits, and the sum of the others: relative to the loss, however small that is.
    bound = eps(np.float32) * (16 + math.sqrt(classes) + (wide.amax(1) - wide.amin(1)).numpy()) * exact.numpy()
    assert_within(losses.double().numpy(), exact.numpy(), bound + 2e-45)


@pytest.mark.parametrize("options", [{"label_smoothing": 1e-9}, {"z_loss": 1e-12}, {"logit_scale": 1.5}], ids=str)
@pytest.mark.parametrize("classes", [10, 1000])
def test_no_option_makes_a_confident_row_negative(options, classes):
    """T2: also with a target that is hardly smoothed, and in the linear loss."""
    x, y = confident(64, classes, 25.0, torch.float32)
    assert (xent.torch.cross_entropy(x, y, reduction="none", **options) >= 0).all()
    eye = torch.eye(classes)
    assert (xent.torch.linear_cross_entropy(x, eye, y, reduction="none", **options) >= 0).all()


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_a_focal_loss_on_top_trains_on_confident_rows(gamma):
    """T2: (1 - exp(-loss))**gamma * loss and its gradient are numbers."""
    x, y = confident(64, 10, 25.0, torch.float32)
    x.requires_grad_()
    losses = xent.torch.cross_entropy(x, y, reduction="none")
    ((1 - torch.exp(-losses)) ** gamma * losses).sum().backward()
    assert x.grad.isfinite().all()


def test_one_class_is_certain():
    """T2: loss and gradient are exactly 0."""
    x = numbers(7, 1, dtype=torch.float32).mul(20).requires_grad_()
    loss = xent.torch.cross_entropy(x, torch.zeros(7, dtype=torch.int64), reduction="sum")
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


# ------------------------------------------------------------------------------------------------------- integer labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_of_any_integer_dtype(dtype, weighted):
    """T4, R4; pytorch #178716, #101653, MAML-Pytorch #45, pytorch-lr-finder #19: no label wraps, none is a mask."""
    classes = 120 if dtype == torch.int8 else 200
    labels = torch.tensor([0, 1, classes - 44, 5, 1])  # uint8 156 has the bits of -100
    x, weight = numbers(5, classes), torch.linspace(0.5, 2, classes, dtype=torch.float64) if weighted else None
    wanted = F.cross_entropy(x, labels, weight)
    assert_same(xent.torch.cross_entropy(x, labels.to(dtype), weight), wanted)
    subclass = x.as_subclass(type("Sub", (Tensor,), {}))
    assert_same(xent.torch.cross_entropy(subclass, labels.to(dtype), weight).as_subclass(Tensor), wanted)
    per_row = torch.func.vmap(lambda row, label: xent.torch.cross_entropy(row, label))(x, labels.to(dtype))
    assert_same(per_row, F.cross_entropy(x, labels, reduction="none"))
    statistics = xent.torch.statistics(x, labels.to(dtype))
    assert_same(statistics.log_prob, x.log_softmax(1).gather(1, labels[:, None])[:, 0])


@pytest.mark.parametrize("labels", [LABELS.to(torch.complex64), LABELS > 2], ids=["complex", "bool"])
def test_labels_that_are_no_integers_are_refused(labels):
    """T4."""
    for call in (xent.torch.cross_entropy, xent.torch.statistics):
        with pytest.raises(DTypeError, match=r"target.*target\.long\(\)"):
            call(numbers(5, 7), labels)


# -------------------------------------------------------------------------------------------- options that are tensors


def test_class_weights_get_their_gradient():
    """T6; pytorch #19254: through the rows and through the denominator."""
    x, w = numbers(5, 7), numbers(7, seed=1).abs().requires_grad_()
    h, head = numbers(5, 3, seed=2), numbers(7, 3, seed=3)
    for reduction in ("mean", "sum"):
        for logits, call in (
            (x, lambda w, r: xent.torch.cross_entropy(x, LABELS, w, reduction=r)),
            (h @ head.T, lambda w, r: xent.torch.linear_cross_entropy(h, head, LABELS, weight=w, reduction=r)),
        ):
            rows = -logits.log_softmax(1).gather(1, LABELS[:, None])[:, 0] * w[LABELS]
            wanted = rows.sum() / (w[LABELS].sum() if reduction == "mean" else 1)
            found = call(w, reduction)
            assert_same(found, wanted)
            assert_same(*(torch.autograd.grad(value, w)[0] for value in (found, wanted)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_learned_temperature_gets_its_gradient(dtype):
    """T6; NeMo Automodel #3850, openai/CLIP #46: `logit_scale = parameter.exp()`, masked classes included."""
    x = numbers(5, 7).to(dtype)
    x[0, 6] = x[3, 1] = -math.inf
    wide, parameter = x.double(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    finite = wide.masked_fill(wide == -math.inf, -1e4)
    wanted = F.cross_entropy(finite * parameter.exp(), LABELS)
    (gradient,) = torch.autograd.grad(wanted, parameter)
    found = xent.torch.cross_entropy(
        x, LABELS, logit_scale=parameter.exp().to(dtype if dtype != torch.bfloat16 else None)
    )
    (ours,) = torch.autograd.grad(found, parameter)
    unit = 32 * eps(np.float64 if dtype == torch.float64 else np.float32)
    assert_within(found.detach().numpy(), wanted.detach().numpy(), unit * 4)
    assert_within(ours.numpy(), gradient.numpy(), unit * 8)


def test_an_option_that_gets_no_gradient_says_so():
    """T6: never None in silence."""
    for option in ("z_loss", "label_smoothing", "softcap"):
        value = torch.tensor(0.1, requires_grad=True)
        for call in (
            lambda **options: xent.torch.cross_entropy(numbers(5, 7), LABELS, **options),
            lambda **options: xent.torch.linear_cross_entropy(numbers(5, 3), numbers(7, 3), LABELS, **options),
        ):
            with pytest.raises(ObjectiveError, match=rf"{option}.*requires a gradient.*\.item\(\)"):
                call(**{option: value})
            assert call(**{option: value.detach()}) == call(**{option: value.item()})


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_a_denominator_that_is_a_tensor_stays_one():
    """transformers #34615, #38029: under a compiler without a break of the graph, with its gradient."""
    x, count = numbers(5, 7).requires_grad_(), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    loss = torch.compile(
        lambda x, n: xent.torch.cross_entropy(x, LABELS, denominator=n), fullgraph=True, backend="aot_eager"
    )
    wanted = F.cross_entropy(x, LABELS, reduction="sum") / count
    for found in (loss(x, count), xent.torch.cross_entropy(x, LABELS, denominator=count)):
        assert_same(found, wanted)
        pairs = (torch.autograd.grad(value, (x, count), retain_graph=True) for value in (found, wanted))
        for ours, theirs in zip(*pairs, strict=True):
            assert_same(ours, theirs)
    with pytest.raises(ObjectiveError, match="denominator"):
        xent.torch.cross_entropy(x, LABELS, denominator=torch.ones(2))


# -------------------------------------------------------------------------------------------------- modes of execution


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch's own, of what it loads for forward mode
def test_tangents_are_carried_along():
    """T7; pytorch #187284, #192629, functorch #434: forward mode, also of an input that requires a gradient."""
    h, head, x = numbers(5, 3), numbers(7, 3, seed=1), numbers(5, 7, seed=2)
    for variable, call, reference in (
        (x, lambda v: xent.torch.cross_entropy(v, LABELS), lambda v: F.cross_entropy(v, LABELS)),
        (h, lambda v: xent.torch.linear_cross_entropy(v, head, LABELS), lambda v: F.cross_entropy(v @ head.T, LABELS)),
    ):
        tangent = numbers(*variable.shape, seed=3)
        wanted = torch.func.jvp(reference, (variable,), (tangent,))[1]
        for primal in (variable, variable.clone().requires_grad_()):
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(primal, tangent)
                found = torch.autograd.forward_ad.unpack_dual(call(dual)).tangent
            assert_same(found, wanted)


def test_gradients_are_batched():
    """T8; pytorch #50584, #49562: `is_grads_batched`, and a Jacobian that is vectorised."""
    x, h, head = numbers(5, 7), numbers(5, 3, seed=1), numbers(7, 3, seed=2)
    for variable, call, reference in (
        (
            x,
            lambda v: xent.torch.cross_entropy(v, LABELS, reduction="none"),
            lambda v: F.cross_entropy(v, LABELS, reduction="none"),
        ),
        (
            h,
            lambda v: xent.torch.linear_cross_entropy(v, head, LABELS, reduction="none"),
            lambda v: F.cross_entropy(v @ head.T, LABELS, reduction="none"),
        ),
        (x, lambda v: xent.torch.cross_entropy(v, LABELS)[None], lambda v: F.cross_entropy(v, LABELS)[None]),
    ):
        wanted = torch.autograd.functional.jacobian(reference, variable)
        assert_same(torch.autograd.functional.jacobian(call, variable, vectorize=True), wanted)
        leaf = variable.clone().requires_grad_()
        losses = call(leaf)
        (rows,) = torch.autograd.grad(losses, leaf, torch.eye(len(losses), dtype=x.dtype), is_grads_batched=True)
        assert_same(rows, wanted)


def test_classes_that_all_weigh_nothing_have_no_gradient():
    """T9: value NaN and gradient 0, in eager code, compiled, under torch.func and of a subclass."""
    x, weight = numbers(5, 7), torch.zeros(7, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return xent.torch.cross_entropy(x, LABELS, weight, z_loss=0.1)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    subclass = x.clone().as_subclass(type("Sub", (Tensor,), {}))
    assert (torch.func.grad(loss)(x) == 0).all()
    for function, logits in ((loss, x.clone()), (compiled, x.clone()), (loss, subclass)):
        value = function(logits.requires_grad_())
        value.sum().backward()
        assert value.isnan()
        assert (logits.grad == 0).all()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_a_recorded_loss_is_refused():
    """T13; pytorch #21774: torch.jit.trace would keep the loss of one batch as a constant."""
    for call in (
        lambda x: xent.torch.cross_entropy(x, LABELS),
        lambda x: xent.torch.statistics(x, LABELS).lse,
        lambda x: xent.torch.linear_cross_entropy(x, numbers(9, 7), LABELS),
    ):
        with pytest.raises(DTypeError, match=r"jit\.trace.*constant.*torch\.export"):
            torch.jit.trace(call, (numbers(5, 7),))


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_a_compiled_loss_checks_its_labels_on_the_device():
    """T13: `check=True` does not break the graph."""
    for call in (
        lambda x, y: xent.torch.cross_entropy(x, y, check=True),
        lambda x, y: xent.torch.linear_cross_entropy(x, torch.ones(7, 7, dtype=x.dtype), y, check=True),
    ):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        assert compiled(numbers(5, 7), LABELS).isfinite()
        with pytest.raises(RuntimeError, match=r"a label is neither in \[0, 7\) nor -100"):
            compiled(numbers(5, 7), LABELS + 1)


def test_labels_are_checked_under_transforms():
    """The numbers are there, below the wrappers: no NaN in silence."""
    with pytest.raises(LabelError, match=r"class index 7 at row 3 is outside \[0, 7\)"):
        torch.func.grad(lambda x: xent.torch.cross_entropy(x, LABELS + 1))(numbers(5, 7))


def test_products_of_the_linear_loss_are_counted():
    """T13: FlopCounterMode sees three products, as of torch's own layer and loss."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(loss, is_frozen: bool) -> int:
        h, head = numbers(5, 3), numbers(7, 3)
        h.requires_grad_(not is_frozen)
        with FlopCounterMode(display=False) as counter:
            loss(h, head.requires_grad_()).backward()
        return counter.get_total_flops()

    for is_frozen in (False, True):
        theirs = flops(lambda h, w: F.cross_entropy(F.linear(h, w), LABELS), is_frozen)
        assert theirs == (2 if is_frozen else 3) * 2 * 5 * 3 * 7
        assert flops(lambda h, w: xent.torch.linear_cross_entropy(h, w, LABELS), is_frozen) == theirs


# ----------------------------------------------------------------------------------------------------- kinds of tensors


def test_a_sign_that_is_pending_is_applied():
    """T13; pytorch #56058, #61925: a negative-bit view, as the imaginary part of a conjugate is."""
    x, p = numbers(5, 7), numbers(5, 7, seed=1).softmax(1)
    assert_same(xent.torch.cross_entropy(torch.complex(x, -x).conj().imag, LABELS), F.cross_entropy(x, LABELS))
    assert_same(xent.torch.cross_entropy(x, torch.complex(p, -p).conj().imag), F.cross_entropy(x, p))
    head = numbers(9, 7, seed=2)
    wanted = F.cross_entropy(x @ head.T, LABELS)
    negative = [torch.complex(t, -t).conj().imag for t in (x, head)]
    assert_same(xent.torch.linear_cross_entropy(*negative, LABELS), wanted, size=9)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((numbers(5, 7).to(torch.float8_e4m3fn), LABELS), DTypeError, r"input.*float8.*input\.float\(\)"),
        ((numbers(5, 7), numbers(5, 7).to(torch.float8_e4m3fn)), DTypeError, r"target.*float8"),
        ((numbers(5, 7), LABELS, [1.0] * 7), DTypeError, "weight.*list"),
        ((numbers(5, 7), LABELS, torch.ones(7, device="meta")), ArgumentError, r"weight.*meta.*input\.device"),
        ((numbers(5, 7), LABELS, torch.ones(7, dtype=torch.int64)), DTypeError, "weight.*int64"),
        ((numbers(5, 7), numbers(5, 7).softmax(1).to_sparse()), DTypeError, r"target.*sparse.*to_dense"),
        ((numbers(5, 7).to_sparse(), LABELS), DTypeError, r"input.*sparse.*to_dense"),
    ],
    ids=["fp8 logits", "fp8 target", "list", "meta weight", "integer weight", "sparse target", "sparse logits"],
)
def test_tensors_of_other_kinds_are_refused_with_a_remedy(arguments, error, said):
    """T13."""
    with pytest.raises(error, match=said):
        xent.torch.cross_entropy(*arguments)


def test_statistics_of_a_default_subclass():
    """R9: torch's own `__torch_function__` cannot return a named tuple."""
    x = numbers(5, 7)
    found = xent.torch.statistics(x.as_subclass(type("Sub", (Tensor,), {})), LABELS)
    assert_same(found.log_prob.as_subclass(Tensor), x.log_softmax(1).gather(1, LABELS[:, None])[:, 0])
    assert found.rank.tolist() == xent.torch.statistics(x, LABELS).rank.tolist()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("classes", [3, 300])
def test_logits_near_the_end_of_float32(options, soft, classes):
    """R10: a loss is finite where float32 has a number for it, and a gradient is a number."""
    x = torch.zeros(4, classes)
    x[0, 0], x[1, 1], x[2, 2], x[3] = 3e38, -3e38, 1e38, -1e38
    x[0, 1] = -3e38
    target = torch.full((4, classes), 1e-3).scatter(1, torch.zeros(4, 1, dtype=torch.int64), 0.5)
    if not soft:
        target = torch.tensor([0, 0, 2, 1])
    x.requires_grad_()
    losses = xent.torch.cross_entropy(x, target, reduction="none", **options)
    wide = x.detach().double().requires_grad_()
    wanted = xent.torch.cross_entropy(wide, target if not soft else target.double(), reduction="none", **options)
    # float32 rounds 1e-3 and 0.1; inf is what float32 has for more than 3.4e38.
    exact = wanted.detach().to(torch.float32).double().numpy()
    bound = 64 * eps(np.float32) * (1 + np.where(np.isfinite(exact), np.abs(exact), 0))
    assert_within(losses.detach().double().numpy(), exact, bound)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert gradient.isfinite().all()
