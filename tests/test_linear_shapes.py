"""The shapes of torch's linear loss: K-dimensional weights, inputs without a batch axis, and what is held for them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import KEYWORDS
from torch import Tensor

import xent.errors
from xent.torch import linear_cross_entropy

ROWS, FEATURES, CLASSES = 5, 3, 4
KINDS = ["labels", "probabilities"]
REDUCTIONS = [{"reduction": "none"}, {"reduction": "sum"}, {"reduction": "mean"}, {"denominator": 7.0}]
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)


def tensors(sizes, rows=ROWS, dtype=torch.float64) -> list[Tensor]:
    """Input (N, features), weight (C, *sizes, features) and bias (C, *sizes)."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((rows, FEATURES), (CLASSES, *sizes, FEATURES), (CLASSES, *sizes))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def target_of(kind: str, sizes, rows=ROWS, ignored: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    if kind == "probabilities":
        numbers = torch.randn(rows, CLASSES, *sizes, dtype=torch.float64, generator=generator)
        return torch.softmax(numbers, 1).requires_grad_()
    labels = torch.randint(0, CLASSES, (rows, *sizes), generator=generator)
    if ignored is not None:
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = ignored
    return labels


def with_all_logits(
    x, w, y, *, linear_bias=None, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0,
    z_loss=0.0, softcap=None, logit_scale=1.0, denominator=None,
) -> Tensor:  # fmt: skip
    """The definition by torch's operations, which hold (N, C, *sizes)."""
    bias = None if linear_bias is None else linear_bias.flatten()
    z = logit_scale * F.linear(x, w.flatten(0, -2), bias).reshape(len(x), *w.shape[:-1])
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    losses = F.cross_entropy(z, y, weight, None, ignore_index, None, "none", label_smoothing)
    counts = torch.ones_like(losses)
    if not y.is_floating_point():
        is_valid = y != ignore_index
        counts = is_valid.double() if weight is None else weight[y * is_valid] * is_valid
        losses = losses + z_loss * torch.logsumexp(z, 1) ** 2 * is_valid
    else:
        losses = losses + z_loss * torch.logsumexp(z, 1) ** 2
    if reduction == "none":
        return losses
    return losses.sum() / (1.0 if reduction == "sum" else counts.sum() if denominator is None else denominator)


def value_and_gradients(function, arguments, upstream_seed=5, **options) -> list[Tensor]:
    loss = function(*arguments[:2], arguments[3], linear_bias=arguments[2], **options)
    generator = torch.Generator().manual_seed(upstream_seed)
    upstream = torch.rand(loss.shape, generator=generator, dtype=torch.float64) + 0.5
    variables = [tensor for tensor in arguments if tensor is not None and tensor.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, variables, upstream)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        # Sums over classes, features and rows in another order: a few dozen roundings of float64.
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sizes", [(1,), (3,), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", KEYWORDS)
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
def test_every_position_is_a_row_of_the_loss(sizes, kind, options, reduction, weight):
    given = {**KEYWORDS[options], **reduction, "weight": weight}
    ignored = given.get("ignore_index", -100)
    if kind == "probabilities":
        given.pop("ignore_index", None)
    arguments = [*tensors(sizes), target_of(kind, sizes, ignored=ignored)]
    ours = value_and_gradients(linear_cross_entropy, arguments, workspace="1MB", **given)
    assert_same(ours, value_and_gradients(with_all_logits, arguments, **given))


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch 2.13 has it")
@pytest.mark.parametrize("sizes", [(), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_results_are_those_of_torchs_linear_cross_entropy(sizes, kind, reduction, has_bias):
    x, w, b = tensors(sizes)
    arguments = [x, w, b if has_bias else None, target_of(kind, sizes, ignored=-100)]
    given = {"reduction": reduction, "ignore_index": None, "label_smoothing": 0.1, "weight": WEIGHT}
    both = [value_and_gradients(f, arguments, **given) for f in (linear_cross_entropy, F.linear_cross_entropy)]
    assert_same(*both)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_an_input_without_a_batch_axis(kind, reduction):
    x, w, b = tensors((), rows=1)
    y = target_of(kind, (), rows=1)
    arguments = [x.detach()[0].requires_grad_(), w, b, y.detach()[0].requires_grad_(y.requires_grad)]
    ours = value_and_gradients(linear_cross_entropy, arguments, reduction=reduction)

    def theirs(x, w, y, *, linear_bias, reduction):
        return F.cross_entropy(F.linear(x, w, linear_bias), y, reduction=reduction)

    assert ours[0].shape == ()
    assert_same(ours, value_and_gradients(theirs, arguments, reduction=reduction))


def test_positions_without_anything_to_count():
    """Some positions ignored: the others count alone. All of them: NaN, and gradients of 0, as in torch."""
    sizes = (2,)
    x, w, b = tensors(sizes)
    labels = target_of("labels", sizes)
    labels[:, 0] = -100
    arguments = [x, w, b, labels]
    assert_same(value_and_gradients(linear_cross_entropy, arguments), value_and_gradients(with_all_logits, arguments))
    arguments = [x, w, b, torch.full_like(labels, -100)]
    loss, *gradients = value_and_gradients(linear_cross_entropy, arguments)
    assert loss.isnan()
    assert not any(gradient.any() for gradient in gradients)
    assert linear_cross_entropy(x, w, arguments[3], denominator=3.0) == 0


@pytest.mark.parametrize(("rows", "sizes"), [(0, (2,)), (5, (0,)), (5, (2, 0))])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_no_rows_and_no_positions(rows, sizes, kind, dtype):
    x, w, b = tensors(sizes, rows, dtype)
    y = target_of(kind, sizes, rows).detach()
    expected = {"none": torch.empty(rows, *sizes), "sum": torch.tensor(0.0), "mean": torch.tensor(math.nan)}
    for reduction, wanted in expected.items():
        loss = linear_cross_entropy(x, w, y, linear_bias=b if rows == 0 else None, reduction=reduction)
        is_wide = dtype == torch.float64
        assert torch.equal(loss.isnan(), wanted.isnan())
        torch.testing.assert_close(loss, wanted.double() if is_wide else wanted, equal_nan=True)
        gradients = torch.autograd.grad(loss.sum(), (x, w))
        assert [gradient.shape for gradient in gradients] == [x.shape, w.shape]
        assert not any(gradient.any() for gradient in gradients)


def test_a_weight_with_other_strides_and_labels_of_fewer_bits():
    sizes = (2, 3)
    x, w, b = tensors(sizes)
    labels = target_of("labels", sizes, ignored=-100)
    turned = [w.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_(), b.detach().mT.mT.requires_grad_()]
    assert not turned[0].is_contiguous()
    ours = value_and_gradients(linear_cross_entropy, [x, *turned, labels.to(torch.int8)])
    assert_same(ours, value_and_gradients(with_all_logits, [x, w, b, labels]))


def test_only_the_gradients_that_are_asked_for():
    x, w, b = tensors((2,))
    linear_cross_entropy(x.detach(), w, target_of("labels", (2,)), linear_bias=b.detach()).backward()
    assert x.grad is None
    assert b.grad is None
    assert w.grad.abs().min() > 0


def test_no_logits_are_kept():
    """What autograd saves is the arguments and numbers per row and position: never (N, C, positions)."""
    rows, features, classes, positions = 40, 3, 50, 6
    x, w = torch.randn(rows, features), torch.randn(classes, positions, features)
    y, kept = torch.randint(0, classes, (rows, positions)), []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        linear_cross_entropy(x.requires_grad_(), w.requires_grad_(), y).backward()
    assert kept
    assert max(kept) <= max(w.numel(), rows * positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_of_results_and_errors_no_greater_than_with_all_logits(dtype):
    """At most 1.5 times the error of torch's computation in the same dtype."""
    generator = torch.Generator().manual_seed(6)
    shapes = ((96, 64), (300, 3, 64))
    exact = [torch.randn(shape, generator=generator).to(dtype).double().requires_grad_() for shape in shapes]
    labels = torch.randint(0, 300, (96, 3), generator=generator)
    narrow = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]

    def result(function, variables) -> list[Tensor]:
        loss = function(*variables)
        return [loss.detach(), *torch.autograd.grad(loss, variables)]

    def theirs(x: Tensor, w: Tensor) -> Tensor:
        logits = F.linear(x, w.flatten(0, 1)).reshape(96, 300, 3)
        return F.cross_entropy(logits.float() if dtype != torch.float64 else logits, labels)

    truth = result(lambda x, w: with_all_logits(x, w, labels), exact)
    found, bar = result(lambda x, w: linear_cross_entropy(x, w, labels), narrow), result(theirs, narrow)
    assert [tensor.dtype for tensor in found] == [torch.float32, dtype, dtype]
    for name, one, other, true in zip(["loss", "input", "weight"], found, bar, truth, strict=True):
        error, allowed = ((tensor.double() - true).norm() / true.norm() for tensor in (one, other))
        # One number may be lucky: the loss is held to 4 roundings of a float32 sum as well.
        floor = 4 * torch.finfo(torch.float32).eps if name == "loss" else 0.0
        assert error <= max(1.5 * allowed, floor), (name, error, allowed)


def test_first_and_second_derivatives():
    sizes = (2,)
    for kind in KINDS:
        y = target_of(kind, sizes, 2)

        def loss(*variables, y=y, kind=kind):
            x, w, b = variables[:3]
            return linear_cross_entropy(x, w, variables[3] if kind == "probabilities" else y, linear_bias=b)

        variables = [*tensors(sizes, 2), *([y] if kind == "probabilities" else [])]
        assert torch.autograd.gradcheck(loss, variables)
        assert torch.autograd.gradgradcheck(loss, variables)


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_under_transforms_and_compilers():
    from torch._dynamo.testing import AotEagerAndRecordGraphs

    torch._dynamo.reset()
    sizes = (2, 2)
    x, w, b = tensors(sizes)
    labels = target_of("labels", sizes, ignored=-100)

    def loss(x, w, b):
        return linear_cross_entropy(x, w, labels, linear_bias=b)

    wanted = value_and_gradients(with_all_logits, [x, w, b, labels], upstream_seed=0)[0]
    gradients = torch.autograd.grad(with_all_logits(x, w, labels, linear_bias=b), (x, w, b))
    free = [tensor.detach() for tensor in (x, w, b)]
    assert_same(list(torch.func.grad(loss, argnums=(0, 1, 2))(*free)), list(gradients))
    recorder = AotEagerAndRecordGraphs()
    compiled = torch.compile(loss, fullgraph=True, backend=recorder)(x, w, b)
    assert_same([compiled.detach(), *torch.autograd.grad(compiled, (x, w, b))], [wanted, *gradients])
    targets = [str(node.target) for node in recorder.fw_graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("xent.linear_cross_entropy" in target for target in targets) == 4, "an operator for each position"
    assert not any(name in target for target in targets for name in ("aten.mm", "aten.addmm")), "no logits"


def _bad(**changes):
    x, w, b = (tensor.detach() for tensor in tensors((2, 3)))
    target = torch.zeros(ROWS, 2, 3, dtype=torch.int64)
    return {"input": x, "linear_weight": w, "target": target, "linear_bias": b, **changes}


BAD = {
    "no batch axis": (_bad(input=torch.ones(FEATURES).double()), r"input=.*\(3,\).*\(4, 2, 3, 3\).*\(N, features\)"),
    "two batch axes": (_bad(input=torch.ones(5, 2, FEATURES).double()), r"input=.*\(5, 2, 3\).*flatten"),
    "no tensor": (_bad(input=[[1.0]]), "input=.*list"),
    "features": (_bad(input=torch.ones(5, 7).double()), r"linear_weight=.*\(4, 2, 3, 3\).*\(5, 7\)"),
    "bias": (_bad(linear_bias=torch.ones(4).double()), r"linear_bias=.*\(4,\).*\(4, 2, 3\)"),
    "labels of one position": (_bad(target=torch.zeros(ROWS).long()), r"target=.*\(5, 2, 3\).*\(5, 4, 2, 3\)"),
    "label too great": (_bad(target=torch.full((ROWS, 2, 3), 4)), r"target=.*index 4 at row \(0, 0, 0\).*\[0, 4\)"),
    "floating labels": (_bad(target=torch.zeros(ROWS, 2, 3)), "target=.*class indices were expected"),
    "dtypes": (_bad(linear_bias=torch.ones(4, 2, 3)), "linear_bias=.*float32.*float64"),
    "class weight": (_bad(weight=torch.ones(3)), r"weight=.*\(3,\).*\(4,\)"),
    "option": (_bad(softcap=-1.0), "softcap=.*-1.0"),
    "unknown option": (_bad(smoothing=0.1), "smoothing=.*label_smoothing"),
    "torch's options": (_bad(options={"batch_chunk_size": 4}), "options=.*batch_chunk_size.*workspace"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument_and_the_remedy(case):
    arguments, pattern = BAD[case]
    with pytest.raises(xent.XentError, match=r"linear_cross_entropy\(" + pattern):
        linear_cross_entropy(**arguments)


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="torch 2.13 has them")
def test_torchs_options_are_accepted_where_they_leave_the_chunks_to_us():
    from torch.nn import LinearCrossEntropyOptions

    x, w, _ = tensors(())
    y = target_of("labels", ())
    wanted = F.cross_entropy(F.linear(x, w), y)
    for options in (None, LinearCrossEntropyOptions(), LinearCrossEntropyOptions(allow_retain_graph=True)):
        assert_same([linear_cross_entropy(x, w, y, options=options).detach()], [wanted.detach()])
    for wrong in ({"batch_chunk_size": 2}, {"acc_policy": "compact"}, {"acc_dtype": torch.float32}):
        with pytest.raises(xent.errors.ObjectiveError, match=rf"options=.*{next(iter(wrong))}.*workspace"):
            linear_cross_entropy(x, w, y, options=LinearCrossEntropyOptions(**wrong))
