"""Deferred logits: what stays deferred, what makes them, and that nobody can tell the difference but by memory."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import (
    VOCABULARY,
    WIDTH,
    LanguageModel,
    assert_close,
    assert_same_step,
    exact,
    is_made,
    token_ids,
    trained,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import xent.torch
from xent.backends.cpu.tensors import TensorLinearBackend
from xent.errors import ArgumentError, LabelError, ObjectiveError, ShapeError
from xent.torch.deferred import DeferredLinear, DeferredLogits, defer_logits, restore_logits
from xent.torch.deferred import rules as deferred_operations
from xent.torch.deferred.formula import Formula, Product

IDS = token_ids(3, 17)
LABELS = torch.where(token_ids(3, 17, seed=5) % 4 == 0, -100, token_ids(3, 17, seed=2))
MASK = LABELS != -100


@pytest.fixture
def pair() -> tuple[LanguageModel, LanguageModel]:
    """The same model, with deferred logits and without."""
    return defer_logits(LanguageModel(), "head"), LanguageModel()


def both(pair, ids=IDS):
    deferred, plain = (model(ids) for model in pair)
    assert not is_made(deferred)
    return deferred, plain


# ---------------------------------------------------------------------------------------------- what they look like

STAYS = {
    "float": lambda x: x.float(),
    "bfloat16": lambda x: x.bfloat16(),
    "half": lambda x: x.half(),
    "to float64": lambda x: x.to(torch.float64),
    "to device": lambda x: x.to("cpu"),
    "to device and dtype": lambda x: x.to("cpu", torch.bfloat16),
    "to by keywords": lambda x: x.to(copy=True, dtype=torch.float32, device=torch.device("cpu")),
    "to another tensor": lambda x: x.to(torch.zeros(1, dtype=torch.bfloat16)),
    "view": lambda x: x.view(-1, VOCABULARY),
    "reshape": lambda x: x.reshape(17, 3, VOCABULARY),
    "flatten": lambda x: x.flatten(0, 1),
    "unflatten": lambda x: x.flatten(0, 1).unflatten(0, (3, 17)),
    "contiguous": lambda x: x[:, :-1].contiguous(),
    "clone": lambda x: x.clone(),
    "detach": lambda x: x.detach(),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(),
    "a shift": lambda x: x[..., :-1, :],
    "a row": lambda x: x[1, 2],
    "the last": lambda x: x[:, -1],
    "a new axis": lambda x: x[:, None, 2:9:3],
    "a mask": lambda x: x[MASK],
    "a list": lambda x: x[:, [0, 3, 3]],
    "an index": lambda x: x[torch.tensor([2, 0]), torch.tensor([5, 6])],
    "select": lambda x: x.select(1, 3),
    "narrow": lambda x: torch.narrow(x, 1, 2, 5),
    "index_select": lambda x: x.index_select(-2, torch.tensor([4, 4])),
    "split": lambda x: x.split(9, dim=1)[1],
    "chunk": lambda x: torch.chunk(x, 2)[0],
    "unbind": lambda x: x.unbind(1)[3],
    "iteration": lambda x: next(iter(x)),
    "a scale": lambda x: 0.5 * x * 3 / 7,
    "a softcap": lambda x: torch.tanh(x / 30.0) * 30.0,
    "a sum": lambda x: x + x / 2,
    "everything": lambda x: (x.float() / 3)[:, 1:].tanh().mul(3.0).reshape(-1, VOCABULARY).contiguous(),
}


@pytest.mark.parametrize("operation", STAYS.values(), ids=STAYS)
def test_operations_on_rows_stay_deferred_and_have_the_numbers_of_the_logits(pair, operation):
    deferred, plain = (operation(logits) for logits in both(pair))
    assert not is_made(deferred)
    assert (deferred.shape, deferred.dtype, deferred.device) == (plain.shape, plain.dtype, plain.device)
    assert deferred.stride() == plain.stride()
    assert deferred.requires_grad == plain.requires_grad
    assert not is_made(deferred), "a question about the shape made the logits"
    made = deferred.materialize()
    assert type(made) is torch.Tensor
    assert torch.equal(made, plain)
    assert made.stride() == plain.stride()
    assert deferred.materialize() is made


MAKES = {
    "argmax": lambda x: x.argmax(-1),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: F.log_softmax(x.float(), dim=-1),
    "gather": lambda x: x.gather(-1, IDS.unsqueeze(-1)),
    "transpose": lambda x: x.transpose(1, 2),
    "some classes": lambda x: x[..., :10],
    "one class": lambda x: x[..., 3],
    "a class by mask": lambda x: x[x > 1],
    "view over classes": lambda x: x.view(3, 17, 10, -1),
    "view as bits": lambda x: x.view(torch.int32),
    "sum": lambda x: x[:, 1:].float().sum(),
    "max": lambda x: torch.max(x, dim=-1).values,
    "topk": lambda x: x.topk(5).indices,
    "cat": lambda x: torch.cat([x, x[:1]]),
    "add": lambda x: x + 1,
    "bias": lambda x: x + torch.arange(float(VOCABULARY)),
    "temperature": lambda x: x / torch.tensor(0.7),
    "minus": lambda x: x * -1.0,
    "divided": lambda x: 1.0 / x,
    "tanh twice": lambda x: x.tanh().tanh(),
    "equal": lambda x: x == x.clone(),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy().copy()),
    "list": lambda x: torch.tensor(x[0, 0].tolist()),
    "item": lambda x: torch.tensor(x[0, 0, 0].item()),
    "print": lambda x: torch.tensor(len(repr(x))),
    "out": lambda x: torch.add(x, 1, out=torch.empty(0)) if not x.requires_grad else x.exp(),
    "where": lambda x: torch.where(IDS.unsqueeze(-1) > 500, x, 0.0),
    "int": lambda x: x.to(torch.int32),
    "deepcopy": lambda x: copy.deepcopy(x.detach()),
    "pickle": lambda x: pickle.loads(pickle.dumps(x.detach())),
}


@pytest.mark.parametrize("operation", MAKES.values(), ids=MAKES)
def test_everything_else_makes_the_logits_and_goes_on_as_an_ordinary_tensor(pair, operation):
    with torch.no_grad():
        without_gradient = both(pair)
    for deferred, plain in (both(pair), without_gradient):
        found, wanted = operation(deferred), operation(plain)
        assert type(found) is torch.Tensor
        assert torch.equal(found, wanted)
        assert found.requires_grad == wanted.requires_grad


def test_the_logits_are_made_once(pair, monkeypatch):
    made = []
    original = Product.make
    monkeypatch.setattr(Product, "make", lambda self, *rest: made.append(self) or original(self, *rest))
    logits, _ = both(pair)
    rows, wide = logits[:, 1:].reshape(-1, VOCABULARY), logits.double()
    for use in (logits.argmax, rows.softmax, wide.log_softmax, rows.max, logits.float().exp().sum):
        use(-1)
    assert len(made) == 1


def test_gradients_flow_back_through_logits_that_were_made(pair):
    grads = []
    for model in pair:
        logits = model(IDS)
        ((logits[:, 1:] / 3.0).double().softmax(-1).square().sum() + logits.logsumexp(-1).mean()).backward()
        grads.append([p.grad for p in model.parameters()])
    for found, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_logits_written_to_are_ordinary_and_copies_made_before_are_not_touched(pair):
    results = []
    for model in pair:
        logits = model(IDS).clone()
        view, float64, last = logits[:, :-1], logits.double() * 2.0, logits[:, -1]
        last.max()
        logits[..., :5] = -3.0
        last.mul_(2.0)
        late = logits.flatten(0, 1)
        results.append([view, float64, last, late, F.cross_entropy(late, IDS.flatten())])
    for found, wanted in zip(*results, strict=True):
        assert torch.equal(found + 0, wanted + 0)


# -------------------------------------------------------------------------------------------------------------- losses

weights = torch.linspace(0.1, 2.0, VOCABULARY)
soft = torch.softmax(torch.randn(17, VOCABULARY, generator=torch.Generator().manual_seed(3)), -1)
ours = xent.torch.cross_entropy
rows = LABELS.flatten()

LOSSES = {
    "mean": lambda x: F.cross_entropy(x, rows),
    "sum": lambda x: F.cross_entropy(x, rows, reduction="sum"),
    "none": lambda x: F.cross_entropy(x, rows, reduction="none") @ torch.linspace(-1, 2, 51, dtype=x.dtype),
    "ignore_index": lambda x: F.cross_entropy(x, IDS.flatten(), ignore_index=int(IDS[0, 0])),
    "label_smoothing": lambda x: F.cross_entropy(x, rows, label_smoothing=0.1),
    "weight": lambda x: F.cross_entropy(x, rows, weights.to(x.dtype)),
    "module": lambda x: nn.CrossEntropyLoss(weights.to(x.dtype), label_smoothing=0.2, reduction="sum")(x, rows),
    "probabilities": lambda x: F.cross_entropy(x[:17], soft.to(x.dtype)),
    "one row": lambda x: F.cross_entropy(x[0], IDS[0, 0]),
    "num_items": lambda x: F.cross_entropy(x.float(), rows, reduction="sum") / torch.tensor(41),
    "scaled": lambda x: F.cross_entropy(x / 1.7, rows),
    "softcap": lambda x: F.cross_entropy((x / 2.0).tanh() * 2.0, rows, label_smoothing=0.1),
    "sum of logits": lambda x: F.cross_entropy(x / 2 + x * 0.25, rows),
    "ours": lambda x: ours(x, rows, denominator=7.0),
    "ours with options": lambda x: ours(x * 0.5, rows, weights, label_smoothing=0.1, z_loss=1e-2, softcap=3.0),
    "ours, scaled and capped": lambda x: ours((x / 2).tanh() * 2.0, rows, logit_scale=1.5),
    "statistics": lambda x: sum(part.sum() for part in xent.torch.statistics(x, rows)[:3]),
}
BIT = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@pytest.mark.parametrize("dtype", BIT, ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_and_gradients_without_the_logits_are_those_of_the_logits(loss, dtype):
    bias = loss is not LOSSES["softcap"] and loss is not LOSSES["ours, scaled and capped"]
    model = LanguageModel(bias=bias, dtype=dtype)
    logits = []

    def step(model: LanguageModel) -> torch.Tensor:
        logits.append(model(IDS).flatten(0, 1))
        return loss(logits[-1])

    assert_same_step(model, step)
    assert not is_made(logits[1]), "the logits were made"
    assert type(loss(logits[0])) is type(loss(logits[1])) is torch.Tensor
    if loss not in [call for name, call in LOSSES.items() if name.startswith(("ours", "statistics"))]:
        assert loss(logits[0]).dtype == loss(logits[1]).dtype


def test_a_wrong_step_is_rejected_by_the_comparison():
    """Of the tolerances above: a forgotten softcap, scale or divisor, and a gradient that is 5% off, are too much."""
    right = LOSSES["softcap"]
    wrong = {
        "softcap": lambda x: F.cross_entropy(x, rows, label_smoothing=0.1),
        "smoothing": lambda x: F.cross_entropy((x / 2.0).tanh() * 2.0, rows),
        "divisor": lambda x: F.cross_entropy((x / 2.0).tanh() * 2.0, rows, label_smoothing=0.1, reduction="sum") / 51,
        "gradient": lambda x: right(x * 1.05 - (x * 0.05).detach()),
    }
    for dtype in (torch.float32, torch.bfloat16):
        model = LanguageModel(dtype=dtype)
        plain, wanted = (make(right, model) for make in (step_of, exact_step_of))
        for other in wrong.values():
            with pytest.raises(AssertionError, match="usual"):
                assert_close(step_of(other, model), plain, wanted, BIT[dtype])


def step_of(loss, model):
    return trained(model, lambda model: loss(model(IDS).flatten(0, 1)))


def exact_step_of(loss, model):
    return exact(model, lambda model: loss(model(IDS).flatten(0, 1)), model.head)


def test_gradients_pass_finite_differences():
    layer = defer_logits(nn.Sequential(nn.Linear(4, 6).double()), "0")[0]
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 5, -100, 2, 3])

    def loss(x, *_):
        return F.cross_entropy((layer(x) / 3.0), target, label_smoothing=0.1)

    assert torch.autograd.gradcheck(loss, (x, layer.weight, layer.bias))
    assert torch.autograd.gradgradcheck(loss, (x, layer.weight, layer.bias))


def test_a_conventional_layout_of_classes_uses_the_logits(pair):
    """`cross_entropy` takes classes on axis 1; with logits of three axes that is not the axis of the head."""
    found, wanted = (F.cross_entropy(logits.transpose(1, 2), LABELS) for logits in both(pair))
    assert torch.equal(found, wanted)
    with pytest.raises((RuntimeError, ValueError), match="target"):
        F.cross_entropy(both(pair)[0], LABELS)


def test_logits_consumed_twice_count_twice(pair):
    deferred, plain = pair

    def step(model):
        logits = model(IDS).flatten(0, 1)
        return F.cross_entropy(logits, rows) + F.cross_entropy(logits, IDS.flatten()) + logits.square().mean()

    wanted, usual = exact(plain, step, plain.head), trained(plain, step)
    assert_close(trained(deferred, step), usual, wanted, BIT[torch.float32])


# ------------------------------------------------------------------------------------------- in all kinds of programs


def hf_loss(logits):
    """The loss of Hugging Face models, in their words."""
    logits = logits.float()
    labels = F.pad(LABELS, (0, 1), value=-100)[..., 1:].contiguous()
    return F.cross_entropy(logits.view(-1, VOCABULARY), labels.view(-1), ignore_index=-100, reduction="mean")


class Squares(torch.autograd.Function):
    """An autograd function, which takes its arguments past `__torch_function__`."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return 2 * x * upstream


def under_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        return hf_loss(model(IDS))


def loss_outside_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(IDS)
    return hf_loss(logits)


def accumulated(model):
    """Two batches with one count of tokens, as in Liger-Kernel #802, TRL #5890 and transformers #35203."""
    count = (LABELS != -100).sum()
    parts = zip(IDS.split(2), LABELS.split(2), strict=True)
    return sum(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / count for x, y in parts)


PROGRAMS = {
    "Hugging Face's loss": lambda m: hf_loss(m(IDS)),
    "checkpointed": lambda m: checkpoint(lambda x: hf_loss(m(x)), IDS, use_reentrant=False),
    "checkpointed model": lambda m: hf_loss(checkpoint(m, IDS, use_reentrant=False)),
    "checkpointed head": lambda m: hf_loss(checkpoint(m.head, m.hidden(IDS), use_reentrant=False)),
    "checkpointed by reentrance": lambda m: hf_loss(checkpoint(m.head, m.hidden(IDS), use_reentrant=True)),
    "autograd function": lambda m: Squares.apply(m(IDS)),
    "autograd function of a copy": lambda m: Squares.apply((m(IDS) / 2.0)[:, 1:].double()),
    "gradient accumulation": accumulated,
}


@pytest.mark.parametrize("tied", [False, True], ids=["own weight", "tied"])
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_step_is_the_same_in_any_program(program, tied):
    assert_same_step(LanguageModel(tied=tied, bias=tied), program)


@pytest.mark.parametrize("program", [under_autocast, loss_outside_autocast])
def test_a_step_under_autocast_is_the_same_to_its_rounding(program):
    assert_same_step(LanguageModel(tied=True), program, unit=BIT[torch.bfloat16])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch asks for it itself
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_breaks_its_graph_and_keeps_the_loss_without_logits(backend, monkeypatch):
    calls = []
    original = deferred_operations.linear_cross_entropy
    monkeypatch.setattr(
        deferred_operations, "linear_cross_entropy", lambda *a, **k: calls.append(1) or original(*a, **k)
    )

    def step(model):
        torch._dynamo.reset()
        return torch.compile(lambda x: hf_loss(model(x)), backend=backend)(IDS)

    assert_same_step(LanguageModel(), step)
    assert len(calls) == 1


def test_an_exported_model_has_ordinary_logits(pair):
    found, wanted = (torch.export.export(model, (IDS,)).module()(IDS) for model in pair)
    assert torch.equal(found, wanted)


def test_transformed_models_have_ordinary_logits(pair):
    """`torch.func` sees through operations on real tensors only."""
    deferred, plain = pair
    x = plain.hidden(IDS).detach()
    found, wanted = (torch.func.vmap(model.head)(x) for model in pair)
    assert type(deferred.head(x)) is DeferredLogits
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_needs_neither_gradients_nor_logits(pair, mode):
    with mode():
        deferred, plain = both(pair)
        loss = hf_loss(deferred)
        assert not is_made(deferred)
        assert not loss.requires_grad
        torch.testing.assert_close(loss, hf_loss(plain), rtol=1e-6, atol=0)
    assert torch.equal(deferred.argmax(-1), plain.argmax(-1))


def test_logits_that_need_no_gradient_give_none():
    """A loss of detached logits, and of logits made under no_grad, does not reach the model."""
    model = defer_logits(LanguageModel(), "head")
    assert not F.cross_entropy(model(IDS).detach().flatten(0, 1), rows).requires_grad
    with torch.no_grad():
        logits = model(IDS)
    assert not F.cross_entropy(logits.flatten(0, 1), rows).requires_grad
    target = soft.clone().requires_grad_()
    F.cross_entropy(logits.flatten(0, 1)[:17], target).backward()
    assert target.grad is not None


def test_a_frozen_head_is_not_paid_for(monkeypatch):
    """Liger-Kernel #237 and #1441, TRL #7076: the gradient of a frozen head was computed and thrown away."""
    wanted = []
    original = TensorLinearBackend.forward_backward
    monkeypatch.setattr(TensorLinearBackend, "forward_backward", lambda *a: wanted.append(tuple(a[4])) or original(*a))
    model = LanguageModel()
    model.head.requires_grad_(False)
    assert_same_step(model, lambda model: hf_loss(model(IDS)))
    assert wanted == [(True, False, False)]
    assert model.head.weight.grad is None


def test_peak_memory_of_a_step_is_the_workspace_and_not_the_logits():
    """In a process of its own: 512 rows of 50257 classes are 103 MB of logits; their gradient is as much again."""
    script = """
import sys, torch
from torch import nn
from torch.nn import functional as F
from benchmarks.processes import peak_of
from xent.torch.deferred import defer_logits
model = nn.Sequential(nn.Linear(64, 50257, bias=False))
x, y = torch.randn(512, 64, requires_grad=True), torch.randint(50257, (512,))
if sys.argv[1] == "deferred":
    defer_logits(model, "0", workspace="8MB")
def step(rows):
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(x[:rows]).float(), y[:rows]).backward()
step(64)
print(peak_of(lambda: step(512)))
"""
    peaks = {}
    for way in ("plain", "deferred"):
        done = subprocess.run(
            [sys.executable, "-c", script, way],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[way] = int(done.stdout)
    logits, gradient = 512 * 50257 * 4, 50257 * 64 * 4
    assert peaks["plain"] > 2 * logits
    # The gradient of the weight, the workspace, and 8 MB for what Python and torch allocate on the way.
    assert peaks["deferred"] < gradient + 8e6 + 8e6


# ------------------------------------------------------------------------------------------------ models, and mistakes


def test_defer_and_restore_leave_the_model_as_it_was():
    model = LanguageModel()
    state, before = model.state_dict(), type(model.head)
    assert defer_logits(model, "head") is model
    assert type(model.head) is DeferredLinear
    assert isinstance(model.head, nn.Linear)
    assert defer_logits(model, model.head, workspace="1MB").head.logits_workspace == "1MB"
    assert model.state_dict().keys() == state.keys()
    assert restore_logits(model) is model
    assert type(model.head) is before
    assert "logits_workspace" not in vars(model.head)
    assert type(model(IDS)) is torch.Tensor
    assert restore_logits(model) is model


def test_copies_and_files_of_a_model_defer_as_well():
    model = defer_logits(LanguageModel(), "head")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert not is_made(twin(IDS))
        assert twin.head.weight is not model.head.weight
        twin.head.weight.data.zero_()
        assert F.cross_entropy(twin(IDS).flatten(0, 1), rows).item() == pytest.approx(torch.tensor(1000.0).log().item())


def test_a_subclass_of_linear_keeps_its_class_and_its_hooks():
    class Named(nn.Linear):
        pass

    model = nn.Sequential(Named(WIDTH, VOCABULARY))
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(type(output)))
    defer_logits(model, "0")
    assert isinstance(model[0], Named)
    assert type(model(torch.zeros(2, WIDTH))) is DeferredLogits
    assert seen == [DeferredLogits]
    assert type(restore_logits(model)[0]) is Named


def test_parametrized_heads_defer_and_get_their_gradients():
    model = LanguageModel()
    nn.utils.parametrizations.weight_norm(model.head)
    assert_same_step(model, lambda model: hf_loss(model(IDS)))


def test_changed_weights_are_an_error_and_not_other_logits(pair):
    model, _ = pair
    logits, kept = model(IDS), model(IDS)
    kept.materialize()
    loss = hf_loss(logits)
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    for use in (logits.argmax, logits.float().softmax):
        with pytest.raises(ArgumentError, match=r"changed in place.*materialize"):
            use(-1)
    with pytest.raises(ArgumentError, match="changed in place"):
        hf_loss(logits)
    assert kept.argmax(-1).shape == IDS.shape


def test_a_hidden_state_that_was_written_to_before_is_no_change():
    """As a recurrent layer's: filled in place, and not contiguous, so that taking rows copies it."""
    model = LanguageModel()

    def step(model):
        hidden = model.hidden(IDS).transpose(0, 1).contiguous().mul(1.0).add_(0.25).transpose(0, 1)
        assert hidden._version > 0
        assert not hidden.is_contiguous()
        return F.cross_entropy(model.head(hidden).reshape(-1, VOCABULARY), rows)

    assert_same_step(model, step)


def test_the_gradient_of_logits_that_were_never_made_is_an_error(pair):
    logits, _ = both(pair)
    loss = hf_loss(logits)
    for ask in (
        logits.retain_grad,
        lambda: logits.register_hook(print),
        lambda: torch.autograd.grad(loss, logits),
    ):
        with pytest.raises(ArgumentError, match=r"no gradient of it.*materialize"):
            ask()


def test_the_gradient_of_logits_that_were_made_is_there(pair):
    found = []
    for model in pair:
        logits = model(IDS)
        wide = logits.double()
        logits.retain_grad()
        F.cross_entropy(wide.flatten(0, 1), rows).backward()
        found.append(logits.grad)
    assert torch.equal(*found)


def test_mistakes_in_naming_the_head_say_what_could_be_meant():
    model = LanguageModel()
    with pytest.raises(ArgumentError, match=r"no module 'lm_head'.*'head'"):
        defer_logits(model, "lm_head")
    with pytest.raises(ArgumentError, match=r"does not say which.*'head'"):
        defer_logits(model)
    with pytest.raises(ArgumentError, match=r"found Embedding, expected a torch.nn.Linear.*'head'"):
        defer_logits(model, "words")
    with pytest.raises(ArgumentError, match="not part of the model"):
        defer_logits(model, nn.Linear(2, 3))
    with pytest.raises(ArgumentError, match="linear_cross_entropy"):
        defer_logits(nn.Sequential(nn.Tanh()), "0")
    with pytest.raises(ArgumentError, match="workspace"):
        defer_logits(model, "head", workspace="plenty")
    assert type(model.head) is nn.Linear


def test_a_head_whose_forward_is_another_is_refused():
    class Doubled(nn.Linear):
        def forward(self, input):
            return F.linear(input, 2 * self.weight)

    with pytest.raises(ArgumentError, match="with its own forward"):
        defer_logits(nn.Sequential(Doubled(3, 4)), "0")
    replaced = nn.Sequential(nn.Linear(3, 4))
    replaced[0].forward = lambda input: input
    with pytest.raises(ArgumentError, match="replaced the forward"):
        defer_logits(replaced, "0")


def test_mistakes_in_the_call_of_the_loss_are_the_errors_of_the_loss(pair):
    logits = both(pair)[0].flatten(0, 1)
    with pytest.raises(LabelError, match=r"1000 at row 2 .*\[0, 1000\)"):
        F.cross_entropy(logits, torch.tensor([1, 2, 1000] + [0] * 48))
    with pytest.raises(ShapeError, match="target"):
        F.cross_entropy(logits, IDS)
    with pytest.raises(ObjectiveError, match="no option 'temperature'"):
        xent.torch.cross_entropy(logits, rows, temperature=2.0)
    with pytest.raises(ObjectiveError, match="reduction"):
        F.cross_entropy(logits, rows, reduction="average")
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        logits.view(7, -1, VOCABULARY)
    with pytest.raises(IndexError, match="out of bounds"):
        logits[99]


CHECKED = {
    "cross_entropy": xent.torch.cross_entropy,
    "statistics": xent.torch.statistics,
    "module": lambda x, y, *, check: xent.torch.CrossEntropyLoss(check=check)(x, y),
}


@pytest.mark.parametrize("call", CHECKED.values(), ids=CHECKED)
def test_labels_that_shall_be_checked_are_checked_before_anything_is_computed(pair, call, monkeypatch):
    """`check=True` is an option of the loss of these logits, and the error is that of real logits."""
    deferred, plain = (logits.flatten(0, 1) for logits in both(pair))
    wrong = rows.clone()
    wrong[7] = VOCABULARY
    monkeypatch.setattr(Formula, "call", lambda *_: pytest.fail("computed"))
    found = []
    for logits in (deferred, plain):
        with pytest.raises(LabelError, match=r"class index 1000 at row 7 is outside \[0, 1000\)") as error:
            call(logits, wrong, check=True)
        found.append(str(error.value))
    assert found[0] == found[1]
    assert not is_made(deferred)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("call", CHECKED.values(), ids=CHECKED)
def test_labels_that_are_right_pass_the_check(pair, call, check):
    deferred, plain = (logits.flatten(0, 1) for logits in both(pair))
    found, wanted = (call(logits, rows, check=check) for logits in (deferred, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not is_made(deferred)
    wrong = torch.full_like(rows, VOCABULARY)
    for logits in (deferred, plain):  # on the CPU labels are always looked at
        with pytest.raises(LabelError, match="row 0"):
            call(logits, wrong, check=check)


def test_probabilities_have_no_labels_to_check(pair):
    deferred, plain = (logits.flatten(0, 1)[:17] for logits in both(pair))
    found, wanted = (xent.torch.cross_entropy(logits, soft, check=True) for logits in (deferred, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_a_head_with_a_wrong_input_gives_torchs_own_error():
    model = defer_logits(LanguageModel(), "head")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.head(torch.zeros(2, WIDTH + 1))
    with pytest.raises(RuntimeError, match="dtype"):
        model.head(torch.zeros(2, WIDTH, dtype=torch.float64))
