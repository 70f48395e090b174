"""The modules are torch's: subclasses, whose attributes are the options and may be set at any time."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import xent.errors
from xent.torch import CrossEntropyLoss, LinearCrossEntropyLoss, cross_entropy, linear_cross_entropy

SOURCE = Path(xent.__file__).parent.parent
FEATURES, CLASSES = 3, 4
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
LABELS = torch.tensor([0, 3, -100, 1, 2])

HAS_LINEAR = hasattr(nn, "LinearCrossEntropyLoss")
needs_linear = pytest.mark.skipif(not HAS_LINEAR, reason="torch 2.13 has nn.LinearCrossEntropyLoss")

OURS = {"z_loss": 0.01, "softcap": 3.0, "logit_scale": 0.7, "denominator": 7.0}
OPTIONS = {"ignore_index": 1, "reduction": "sum", "label_smoothing": 0.1, **OURS}
WRONG = {
    "ignore_index": 1.5,
    "reduction": "average",
    "label_smoothing": 2.0,
    "z_loss": -1.0,
    "softcap": 0.0,
    "logit_scale": math.inf,
    "denominator": 0.0,
}


def logits(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(LABELS), CLASSES, dtype=torch.float64, generator=generator).requires_grad_()


def hidden(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(LABELS), FEATURES, dtype=torch.float64, generator=generator).requires_grad_()


def linear(**options) -> LinearCrossEntropyLoss:
    torch.manual_seed(0)
    return LinearCrossEntropyLoss(FEATURES, CLASSES, dtype=torch.float64, **options)


KINDS = {"logits": (CrossEntropyLoss, logits, cross_entropy), "linear": (linear, hidden, linear_cross_entropy)}


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    # Sums over classes and rows in another order: a few dozen roundings of float64.
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def of_function(module: nn.Module, x: Tensor, target: Tensor, **options) -> Tensor:
    """The loss by the function, with these options."""
    if isinstance(module, LinearCrossEntropyLoss):
        return linear_cross_entropy(x, module.linear.weight, target, linear_bias=module.linear.bias, **options)
    return cross_entropy(x, target, **options)


def test_they_are_torchs_modules():
    assert isinstance(CrossEntropyLoss(), nn.CrossEntropyLoss)
    assert isinstance(linear(), nn.Module)


@needs_linear
def test_the_linear_one_too():
    assert isinstance(linear(), nn.LinearCrossEntropyLoss)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "LinearCrossEntropyLoss"])
def test_signatures_begin_with_torchs(name):
    if not hasattr(nn, name):
        pytest.skip("torch 2.13 has it")
    ours, theirs = (inspect.signature(getattr(of, name)).parameters for of in (xent.torch, nn))
    for place, (parameter, wanted) in enumerate(theirs.items()):
        assert ours[parameter].default == wanted.default, parameter
        if wanted.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD:
            assert list(ours)[place] == parameter


# Attributes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_set_later_has_its_effect(kind, option):
    make, input, _ = KINDS[kind]
    x, late, early = input(), make(), make(**{option: OPTIONS[option]})
    assert getattr(early, option) == OPTIONS[option]
    default = late(x, LABELS.clamp(0))
    setattr(late, option, OPTIONS[option])
    wanted = of_function(late, x, LABELS.clamp(0), **{option: OPTIONS[option]})
    assert not torch.equal(wanted, default)
    assert torch.equal(late(x, LABELS.clamp(0)), wanted)
    assert torch.equal(early(x, LABELS.clamp(0)), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_set_later_have_their_effect(kind):
    make, input, _ = KINDS[kind]
    x, late = input(), make()
    assert late.weight is None
    late.weight = WEIGHT
    assert torch.equal(late(x, LABELS), of_function(late, x, LABELS, weight=WEIGHT))
    assert torch.equal(make(weight=WEIGHT)(x, LABELS), late(x, LABELS))
    late.weight = None
    assert torch.equal(late(x, LABELS), of_function(late, x, LABELS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", WRONG)
def test_a_wrong_option_is_named_when_it_is_passed_and_when_it_is_set(kind, option):
    make, input, function = KINDS[kind]
    with pytest.raises(xent.errors.ObjectiveError, match=rf"CrossEntropyLoss\({option}="):
        make(**{option: WRONG[option]})
    loss = make()
    setattr(loss, option, WRONG[option])
    assert repr(WRONG[option]) in repr(loss)
    with pytest.raises(xent.errors.ObjectiveError, match=rf"{function.__name__}\({option}="):
        loss(input(), LABELS)


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_exclude_each_other_and_options_that_there_are_not(kind):
    make, input, _ = KINDS[kind]
    loss = make(denominator=2.0)
    loss.reduction = "sum"
    with pytest.raises(xent.errors.ObjectiveError, match=r"denominator=.*'sum'"):
        loss(input(), LABELS)
    with pytest.raises(xent.errors.ObjectiveError, match=r"CrossEntropyLoss\(label_smothing=.*label_smoothing"):
        make(label_smothing=0.1)
    with pytest.raises(xent.errors.DTypeError, match=r"CrossEntropyLoss\(weight=.*list.*torch.tensor"):
        make(weight=[1.0, 2.0, 1.0, 1.0])


def test_labels_are_checked_where_that_is_asked_for():
    loss = CrossEntropyLoss(check=True)
    assert loss.check
    wrong = torch.tensor([0, 4, 0, 0, 0])
    with pytest.raises(xent.errors.LabelError, match="class index 4 at row 1"):
        loss(logits(), wrong)


def test_the_workspace_may_be_set_later():
    loss = linear(workspace="1MB")
    loss.workspace = 1
    with pytest.raises(xent.errors.ArgumentError, match=r"workspace=.*1 bytes"):
        loss(hidden(), LABELS)
    with pytest.raises(xent.errors.ArgumentError, match=r"LinearCrossEntropyLoss\(workspace="):
        linear(workspace="much")


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_modules_see_what_is_set(kind):
    make, input, _ = KINDS[kind]
    torch._dynamo.reset()
    loss, x, options = make(), input().detach(), {}
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for option, value in [("reduction", "sum"), ("label_smoothing", 0.1), ("softcap", 3.0), ("label_smoothing", 0.3)]:
        assert_same(compiled(x, LABELS), of_function(loss, x, LABELS, **options))
        options[option] = value
        setattr(loss, option, value)
    assert_same(compiled(x, LABELS), of_function(loss, x, LABELS, **options))


@pytest.mark.parametrize(
    "option",
    [
        "label_smoothing",
        "denominator",
        *(pytest.param(o, marks=pytest.mark.slow) for o in ("z_loss", "softcap", "logit_scale")),
    ],
)
def test_an_option_that_changes_does_not_break_the_graph(option):
    """A number that changes is a symbol to torch's compiler."""
    torch._dynamo.reset()
    x, w = hidden().detach(), torch.eye(CLASSES, FEATURES, dtype=torch.float64)

    def losses(x: Tensor, value: float) -> Tensor:
        options = {option: value}
        return cross_entropy(x, LABELS.clamp(0, 2), **options) + linear_cross_entropy(x, w, LABELS, **options)

    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    for value in (0.5, 0.25, 0.75):
        assert_same(compiled(x, value), losses(x, value))


# torch's arguments


@pytest.mark.parametrize("average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
def test_the_older_names_of_a_reduction(average, reduce):
    x, found = logits(), []
    for of in (nn.CrossEntropyLoss, CrossEntropyLoss):
        if average is None and reduce is None:
            loss = of(None, average, -100, reduce, "sum")
        else:
            with pytest.warns(UserWarning, match="please use reduction="):
                loss = of(None, average, -100, reduce, "sum")
        found.append((loss.reduction, loss(x, LABELS)))
    assert found[0][0] == found[1][0]
    assert_same(found[1][1], found[0][1])


@pytest.mark.parametrize(
    "arguments",
    [(), (WEIGHT,), (WEIGHT, None, 3), (None, None, -100, None, "none"), (WEIGHT, None, 1, None, "sum", 0.2)],
    ids=len,
)
def test_positions_mean_what_they_mean_in_torch(arguments):
    results = []
    for of in (nn.CrossEntropyLoss, CrossEntropyLoss):
        x, loss = logits(), of(*arguments)
        labels = LABELS.where(LABELS != -100, torch.tensor(loss.ignore_index))
        value = loss(x, labels)
        results.append((value, *torch.autograd.grad(value.sum(), x)))
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert_same(ours, theirs)


@needs_linear
@pytest.mark.parametrize("sizes", [(), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_the_linear_module_gives_what_torchs_gives(sizes, bias, reduction, kind):
    generator = torch.Generator().manual_seed(2)
    rows = len(LABELS)
    if kind == "labels":
        target = torch.randint(0, CLASSES, (rows, *sizes), generator=generator)
        target.flatten()[::3] = -100
    else:
        numbers = torch.randn(rows, CLASSES, *sizes, generator=generator, dtype=torch.float64)
        target = torch.softmax(numbers, 1)
    given = {"out_features": sizes, "bias": bias, "reduction": reduction, "weight": WEIGHT, "label_smoothing": 0.1}
    theirs = nn.LinearCrossEntropyLoss(FEATURES, CLASSES, dtype=torch.float64, **given)
    ours = linear(**given)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for loss in (ours, theirs):
        x = hidden()
        value = loss(x, target)
        results.append([value, *torch.autograd.grad(value.sum(), (x, *loss.parameters()))])
    assert [tensor.shape for tensor in results[0]] == [tensor.shape for tensor in results[1]]
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


@needs_linear
def test_torchs_chunks_are_refused_with_the_way_to_choose_ours():
    options = nn.LinearCrossEntropyOptions
    for accepted in (None, options(), options(allow_retain_graph=True)):
        assert linear(options=accepted).options is accepted
    with pytest.raises(xent.errors.ObjectiveError, match=r"LinearCrossEntropyLoss\(options=.*workspace"):
        linear(options=options(batch_chunk_size=2))
    loss = linear()
    loss.options = options(batch_chunk_size=2)
    with pytest.raises(xent.errors.ObjectiveError, match=r"linear_cross_entropy\(options=.*workspace"):
        loss(hidden(), LABELS)


def test_sizes_of_the_linear_module_are_checked():
    with pytest.raises(xent.errors.ShapeError, match=r"LinearCrossEntropyLoss\(weight=.*\(4,\)"):
        linear(weight=torch.ones(3))
    with pytest.raises(xent.errors.ArgumentError, match=r"LinearCrossEntropyLoss\(out_features=.*3"):
        linear(out_features=3)


# As modules


def copies(loss: nn.Module) -> list[nn.Module]:
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    return [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), torch.load(file, weights_only=False)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
def test_copies_are_the_same_loss(kind, weight):
    make, input, _ = KINDS[kind]
    loss, x = make(weight=weight, label_smoothing=0.1, softcap=3.0), input()
    for other in copies(loss):
        assert type(other) is type(loss)
        assert repr(other) == repr(loss)
        assert torch.equal(other(x, LABELS), loss(x, LABELS))
        other.softcap = None
        assert loss.softcap == 3.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
def test_state_is_weight_and_layer(kind, weight):
    make, input, _ = KINDS[kind]
    loss = make(weight=weight)
    state = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    layer = ["linear.weight"] if kind == "linear" else []
    assert sorted(state) == layer + (["weight"] if weight is not None else [])
    torch.manual_seed(9)
    other = make(weight=None if weight is None else torch.ones_like(weight))
    other.load_state_dict(state)
    x = input()
    assert torch.equal(other(x, LABELS), loss(x, LABELS))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_change_their_dtype_with_the_module(kind):
    make, input, _ = KINDS[kind]
    loss = make(weight=WEIGHT.clone()).to(torch.float32)
    assert loss.weight.dtype == torch.float32
    x = input().detach().float()
    options = {"linear_weight": loss.linear.weight} if kind == "linear" else {}
    function = KINDS[kind][2]
    assert torch.equal(loss(x, LABELS), function(x, target=LABELS, weight=WEIGHT.float(), **options))


def test_what_is_printed():
    assert repr(CrossEntropyLoss()) == repr(nn.CrossEntropyLoss())
    loss = CrossEntropyLoss(reduction="sum", z_loss=0.01, check=True)
    assert repr(loss) == "CrossEntropyLoss(z_loss=0.01, reduction='sum', check=True)"
    loss.reduction, loss.ignore_index = "mean", 0
    assert repr(loss) == "CrossEntropyLoss(ignore_index=0, z_loss=0.01, check=True)"
    text = repr(linear(out_features=(2, 3), ignore_index=-1, workspace="1MB"))
    assert "(in_features=3, num_classes=4, out_features=(2, 3), ignore_index=-1, workspace='1MB'" in text.replace(
        "\n  ", "", 1
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", KINDS)
def test_scripting_says_what_to_use(kind):
    loss = KINDS[kind][0]()
    for module in (loss, nn.Sequential(nn.Linear(3, 3), loss)):
        with pytest.raises(xent.XentError, match=r"CrossEntropyLoss: torch.jit.script.*torch.compile or torch.export"):
            torch.jit.script(module)


@pytest.mark.parametrize("kind", KINDS)
def test_the_remedy_works(kind):
    make, input, _ = KINDS[kind]
    loss, x = make(label_smoothing=0.1, weight=WEIGHT), input().detach()
    exported = torch.export.export(loss, (x, LABELS)).module()
    assert_same(exported(x, LABELS), loss(x, LABELS))


def test_a_torch_without_the_linear_loss():
    """The oldest torch that is supported has neither the module nor its options."""
    program = """
import torch
for name in ("LinearCrossEntropyLoss", "LinearCrossEntropyOptions"):
    if hasattr(torch.nn, name):
        delattr(torch.nn, name)
import xent.torch
loss = xent.torch.LinearCrossEntropyLoss(3, 4, out_features=(2,), bias=True, label_smoothing=0.1)
value = loss(torch.zeros(5, 3), torch.zeros(5, 2, dtype=torch.int64))
value.backward()
print(loss, value.shape, loss.linear.weight.grad.shape, type(loss).__bases__)
"""
    environment = {"PYTHONPATH": str(SOURCE), "PATH": "", "HOME": str(Path.home())}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "out_features=(2,), label_smoothing=0.1" in done.stdout
    assert "torch.Size([]) torch.Size([8, 3]) (<class 'torch.nn.modules.module.Module'>,)" in done.stdout
