"""The torch front: a drop-in for torch's own loss, under every transformation that torch has."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_REDUCTION, FEW_KEYWORDS, KEYWORDS
from torch import Tensor, nn

import xent
import xent.torch
from xent.backends.formula import FORMULA
from xent.objective import Objective

SHAPES = {"one row": (5,), "rows": (6, 5), "positions": (2, 5, 3), "images": (2, 5, 2, 2)}


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return () if len(shape) == 1 else shape[:1] + shape[2:]


def logits_of(shape, dtype=torch.float64, seed=0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, dtype=torch.float64, generator=generator)).to(dtype)


def target_of(shape, kind: str, seed=1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    axis = 0 if len(shape) == 1 else 1
    if kind == "probabilities":
        return torch.softmax(torch.randn(shape, dtype=torch.float64, generator=generator), axis)
    labels = torch.randint(0, shape[axis], rows_of(shape), generator=generator)
    if labels.numel() > 1:
        labels.view(-1)[1] = -100
    return labels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("options", FEW_KEYWORDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_first_and_second_order_are_those_of_the_loss(shape, kind, options, weighted):
    """gradcheck and gradgradcheck, also for class probabilities as the variable."""
    shape = SHAPES[shape]
    logits = logits_of(shape).requires_grad_()
    target = target_of(shape, kind)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.1, 1.5], dtype=torch.float64) if weighted else None
    for reduction in EVERY_REDUCTION:

        def loss(x, y, reduction=reduction):
            return xent.torch.cross_entropy(x, y, weight, reduction=reduction, **KEYWORDS[options])

        variables = (logits, target.clone().requires_grad_() if kind == "probabilities" else target)
        assert torch.autograd.gradcheck(loss, variables)
        assert torch.autograd.gradgradcheck(loss, variables)


@pytest.mark.parametrize("shape", [*SHAPES.values(), (0, 5), (5, 1), (4, 130), (0, 5, 3)])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", EVERY_REDUCTION)
def test_value_and_gradient_are_those_of_torch(shape, kind, smoothing, weighted, reduction):
    classes = shape[0 if len(shape) == 1 else 1]
    weight = torch.linspace(0.5, 2, classes, dtype=torch.float64) if weighted else None
    results = []
    for function in (F.cross_entropy, xent.torch.cross_entropy):
        x = logits_of(shape).requires_grad_()
        loss = function(x, target_of(shape, kind), weight=weight, label_smoothing=smoothing, reduction=reduction)
        upstream = torch.linspace(1, 2, max(loss.numel(), 1), dtype=torch.float64)[: loss.numel()].reshape(loss.shape)
        (gradient,) = torch.autograd.grad(loss, x, upstream)
        results.append((loss.detach(), gradient))
    for theirs, ours in zip(*results, strict=True):
        # Two float64 evaluations that round differently, of losses up to about 15: a few dozen epsilons.
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_16_bit_logits_give_a_float32_loss_and_a_gradient_of_their_dtype(dtype):
    x = logits_of((6, 200), dtype).requires_grad_()
    loss = xent.torch.cross_entropy(x, target_of((6, 200), "labels"))
    loss.backward()
    assert loss.dtype == torch.float32
    assert x.grad.dtype == dtype
    wide = x.detach().double().requires_grad_()
    F.cross_entropy(wide, target_of((6, 200), "labels")).backward()
    eps = torch.finfo(dtype).eps
    assert (x.grad.double() - wide.grad).abs().max() <= eps * wide.grad.abs().max()


def strided(x: Tensor) -> dict[str, Tensor]:
    """The same numbers in other memory."""
    rows, classes = x.shape
    apart = torch.zeros(rows, classes + 3, dtype=x.dtype)
    apart[:, :classes] = x
    every_second = torch.zeros(rows, 2 * classes, dtype=x.dtype)
    every_second[:, ::2] = x
    return {
        "rows apart": apart[:, :classes],
        "transposed": x.t().contiguous().t(),
        "every second": every_second[:, ::2],
        "repeated": x[:1].expand(rows, classes),
    }


@pytest.mark.parametrize("layout", ["rows apart", "transposed", "every second", "repeated"])
@pytest.mark.parametrize("classes", [5, 200])
def test_memory_layout_changes_nothing(layout, classes):
    x = logits_of((6, classes), torch.float32)
    y = target_of((6, classes), "labels")
    other = strided(x)[layout].requires_grad_()
    same = strided(x)[layout].contiguous().requires_grad_()
    grads = [torch.autograd.grad(xent.torch.cross_entropy(v, y, label_smoothing=0.1), v)[0] for v in (other, same)]
    # The compiler makes other loops for other strides, whose sums round differently.
    torch.testing.assert_close(*grads, rtol=0, atol=2 * torch.finfo(torch.float32).eps * grads[1].abs().max().item())


def test_upstream_gradients_may_be_expanded_or_strided():
    x = logits_of((6, 5)).requires_grad_()
    y = target_of((6, 5), "labels")
    losses = xent.torch.cross_entropy(x, y, reduction="none")
    (plain,) = torch.autograd.grad(losses, x, torch.full((6,), 3.0, dtype=torch.float64), retain_graph=True)
    (expanded,) = torch.autograd.grad(losses, x, torch.tensor(3.0, dtype=torch.float64).expand(6), retain_graph=True)
    (strided_up,) = torch.autograd.grad(losses, x, torch.full((12,), 3.0, dtype=torch.float64)[::2])
    assert torch.equal(plain, expanded)
    assert torch.equal(plain, strided_up)


def test_backward_twice_gives_the_same_bits_and_leaves_handed_out_gradients_alone():
    x = logits_of((64, 300), torch.float32).requires_grad_()
    loss = xent.torch.cross_entropy(x, target_of((64, 300), "labels"))
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    first.mul_(0)  # what a caller may do to a gradient that is his
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss, x, torch.tensor(2.0))
    assert torch.equal(second, kept)
    assert torch.equal(scaled, 2 * kept)


def test_logits_and_target_are_not_written_to():
    x, y = logits_of((6, 300), torch.bfloat16).requires_grad_(), target_of((6, 300), "labels")
    before = x.detach().clone(), y.clone()
    xent.torch.cross_entropy(x, y, softcap=5.0).backward()
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(y, before[1])


def test_frozen_logits_get_no_gradient_and_no_graph():
    x = logits_of((6, 5))
    assert not xent.torch.cross_entropy(x, target_of((6, 5), "labels")).requires_grad
    with torch.no_grad():
        assert not xent.torch.cross_entropy(x.requires_grad_(), target_of((6, 5), "labels")).requires_grad


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_compiled_without_a_graph_break(kind):
    def loss(x, y):
        return xent.torch.cross_entropy(2 * x, y, label_smoothing=0.1, z_loss=0.01)

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = logits_of((6, 5)).requires_grad_()
        value = function(x, target_of((6, 5), kind))
        value.backward()
        results.append((value.detach(), x.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-14, atol=1e-15)


def test_operators_pass_torchs_own_checks():
    x, y = logits_of((3, 5)).requires_grad_(), target_of((3, 5), "labels")
    options = Objective(label_smoothing=0.1, z_loss=0.1).to_text()
    arguments = (x, y, None, options)
    torch.library.opcheck(torch.ops.xent.cross_entropy_rows, arguments)
    torch.library.opcheck(torch.ops.xent.statistics_rows, (x, y, options))


def test_function_transforms():
    x, y = logits_of((6, 5)), target_of((6, 5), "labels")
    theirs, ours = (torch.func.grad(lambda v, f=f: f(v, y))(x) for f in (F.cross_entropy, xent.torch.cross_entropy))
    torch.testing.assert_close(ours, theirs)
    per_row = torch.func.vmap(torch.func.grad(lambda v, t: xent.torch.cross_entropy(v, t, reduction="sum")))(x, y)
    losses = torch.autograd.functional.jacobian(lambda v: xent.torch.cross_entropy(v, y, reduction="none"), x)
    torch.testing.assert_close(per_row, losses.sum(0))


def test_activation_checkpointing_and_autocast():
    torch.manual_seed(0)
    layer, x, y = nn.Linear(8, 5), torch.randn(6, 8), target_of((6, 5), "labels")
    plain = torch.autograd.grad(xent.torch.cross_entropy(layer(x), y), layer.weight)[0]
    checkpointed = torch.utils.checkpoint.checkpoint(
        lambda v: xent.torch.cross_entropy(layer(v), y), x, use_reentrant=False
    )
    assert torch.equal(torch.autograd.grad(checkpointed, layer.weight)[0], plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(x)
        loss = xent.torch.cross_entropy(logits, y)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    # Not even the rounding of the loss to 16 bits is left: only that of the logits.
    exact = F.cross_entropy(logits.detach().double(), y)
    assert abs(loss.item() - exact.item()) < 4 * torch.finfo(torch.float32).eps * exact.item()


def test_the_formula_is_the_contract_of_other_devices():
    """Meta tensors have a shape and no numbers: the formula runs on them, as on any device without a kernel."""
    x = torch.empty(3, 5, 2, device="meta", dtype=torch.bfloat16, requires_grad=True)
    y = torch.empty(3, 2, device="meta", dtype=torch.int64)
    loss = xent.torch.cross_entropy(x, y, label_smoothing=0.1, softcap=2.0)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.dtype == torch.float32
    assert (gradient.shape, gradient.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize(("kind", "options"), list(itertools.product(["labels", "probabilities"], KEYWORDS)))
def test_the_formula_agrees_with_the_kernels(kind, options):
    x, y = logits_of((6, 5)), target_of((6, 5), kind)
    x[2, 3] = -torch.inf
    if kind == "probabilities":
        y[2, 3] = 0.0
    objective = Objective(reduction="none", **KEYWORDS[options])
    ours = xent.torch.cross_entropy(x, y, reduction="none", **KEYWORDS[options])
    torch.testing.assert_close(FORMULA.forward(x, y, objective)[0], ours, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_statistics_are_those_of_the_definitions(softcap):
    x = logits_of((6, 9))
    x[1, 4] = -torch.inf
    y = target_of((6, 9), "labels")
    found = xent.torch.statistics(x, y, softcap=softcap, logit_scale=0.5)
    z = 0.5 * x if softcap is None else softcap * torch.tanh(0.5 * x / softcap).masked_fill(x == -torch.inf, -torch.inf)
    q = torch.softmax(z, 1)
    known = y >= 0
    rows = torch.arange(6)[known]
    torch.testing.assert_close(found.lse, torch.logsumexp(z, 1))
    torch.testing.assert_close(found.entropy, xent.information.entropy(q))
    torch.testing.assert_close(found.log_prob[known], q[rows, y[known]].log())
    assert torch.equal(found.argmax, x.argmax(1))
    assert torch.equal(found.rank[known], (x > x[torch.arange(6), y.clamp(min=0)].unsqueeze(1)).sum(1)[known])
    assert found.log_prob[~known].tolist() == [0.0]
    assert found.rank[~known].tolist() == [-1]


def test_statistics_are_differentiable_twice():
    x, y = logits_of((4, 6)).requires_grad_(), torch.tensor([0, 5, -100, 2])

    def real(x):
        return xent.torch.statistics(x, y, softcap=2.0)[:3]

    assert torch.autograd.gradcheck(real, x)
    assert torch.autograd.gradgradcheck(real, x)


def test_entropy_bonus_has_its_gradient():
    """TRL returned an entropy without its gradient, and NaN with masked classes."""
    x = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    xent.torch.statistics(x, torch.tensor([0])).entropy.sum().backward()
    q = torch.softmax(x.detach()[:, :2], 1).requires_grad_()
    expected = -q * (q.log() + xent.information.entropy(q).unsqueeze(1))
    torch.testing.assert_close(x.grad[:, :2], expected.detach())
    assert x.grad[0, 2] == 0


def test_training_on_digits_follows_torch_step_by_step():
    from sklearn.datasets import load_digits

    features, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(features / 16), torch.tensor(labels)
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()
    theirs = copy.deepcopy(ours)
    curves = []
    for model, criterion in ((ours, xent.torch.CrossEntropyLoss()), (theirs, nn.CrossEntropyLoss())):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        losses = []
        for step in range(100):
            batch = slice(step * 17 % 1700, step * 17 % 1700 + 64)
            optimizer.zero_grad()
            loss = criterion(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.5 < curves[0][0]
    # Rounding differs by some 1e-16 and a hundred steps of training amplify it.
    assert curves[0] == pytest.approx(curves[1], rel=1e-10)


def test_every_argument_reaches_a_subclass_that_takes_the_call_over():
    """As deferred logits do: what is given to the call arrives at `__torch_function__`, `check` with it."""
    taken = []

    class Taking(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            taken.append((func, args, kwargs))
            return func

    x, y, weight = logits_of((2, 3)).as_subclass(Taking), torch.tensor([0, 1]), torch.ones(3)
    options = {"z_loss": 0.5, "reduction": "sum"}
    assert xent.torch.cross_entropy(x, y, weight, check=True, **options) is xent.torch.cross_entropy
    assert xent.torch.statistics(x, y, check=True, softcap=2.0) is xent.torch.statistics
    bent = {"ignore_index": -100, "softcap": 2.0, "logit_scale": 1.0}
    given = [((x, y, weight), {"check": True, **options}), ((x, y), {"check": True, **bent})]
    for (_, args, kwargs), (wanted, keywords) in zip(taken, given, strict=True):
        assert all(argument is tensor for argument, tensor in zip(args, wanted, strict=True))
        assert keywords.items() <= kwargs.items()


def test_module_is_saved_moved_and_printed_like_torchs():
    loss = xent.torch.CrossEntropyLoss(torch.tensor([1.0, 2.0]), label_smoothing=0.1)
    assert list(loss.state_dict()) == ["weight"]
    assert loss.double().weight.dtype == torch.float64
    assert "label_smoothing=0.1" in repr(loss)
    with pytest.raises(xent.XentError, match="label_smothing"):
        xent.torch.CrossEntropyLoss(label_smothing=0.1)


BAD = {
    "not a tensor": (([[0.0, 1.0]], torch.tensor([0])), {}, "input.*list.*xent.numpy"),
    "integer logits": ((torch.ones(1, 2, dtype=torch.int64), torch.tensor([0])), {}, "input.*int64.*float"),
    "label too great": ((torch.ones(2, 2), torch.tensor([0, 2])), {}, "class index 2 at row 1 .*0, 2.*ignore_index=2"),
    "wrong shape": ((torch.ones(2, 3), torch.tensor([0])), {}, r"target.*\(1,\).*\(2, 3\)"),
    "float labels": ((torch.ones(2, 3), torch.ones(2)), {}, "class indices were expected.*integers"),
    "ignored class of probabilities": ((torch.ones(1, 2), torch.ones(1, 2)), {"ignore_index": 1}, "ignore_index=1"),
    "wrong weight": ((torch.ones(2, 3), torch.tensor([0, 1])), {"weight": torch.ones(2)}, r"weight.*\(2,\).*\(3,\)"),
    "unknown option": ((torch.ones(2, 3), torch.tensor([0, 1])), {"smoothing": 1}, "smoothing.*label_smoothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument_and_the_remedy(case):
    arguments, options, pattern = BAD[case]
    with pytest.raises(xent.XentError, match=pattern):
        xent.torch.cross_entropy(*arguments, **options)
