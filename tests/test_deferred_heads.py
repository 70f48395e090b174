"""Output layers of many classes: files and processes, parametrisations, forwards of their own, adapters."""

from __future__ import annotations

import copy
import io
import pickle
from abc import ABCMeta

import pytest
import torch
from models import VOCABULARY, WIDTH, LanguageModel, assert_same_step, is_made, token_ids, trained
from torch import multiprocessing, nn
from torch.nn import functional as F
from torch.nn.utils import fusion

from xent.errors import ArgumentError
from xent.torch.deferred import DeferredLinear, DeferredLogits, defer_logits, restore_logits

IDS, LABELS = token_ids(51), token_ids(51, seed=2)
LABELS[::4] = -100


def loss(model: nn.Module) -> torch.Tensor:
    return F.cross_entropy(model(IDS), LABELS)


def with_head(head: nn.Module) -> LanguageModel:
    model = LanguageModel()
    model.head = head
    return model


# --------------------------------------------------------------------------------------------------- kinds of layers


class Plain(nn.Linear):
    """A subclass and nothing more."""


class Slotted(nn.Linear):
    """With an attribute in a slot, another signature, and a state of its own when it is pickled."""

    __slots__ = ("name",)

    def __init__(self, name: str, *, classes: int = VOCABULARY) -> None:
        super().__init__(WIDTH, classes, bias=False)
        self.name = name

    def __getstate__(self):
        return {**vars(self), "name": self.name}

    def __setstate__(self, state):
        super().__setstate__({key: value for key, value in state.items() if key != "name"})
        self.name = state["name"]


class Rebuilt(nn.Linear):
    """Pickled as a call of its class, whatever that is by then."""

    def __reduce__(self):
        return type(self), (self.in_features, self.out_features), self.__dict__


class Abstract(nn.Linear, metaclass=ABCMeta):
    """With a metaclass."""


class Scaled(nn.Linear):
    """A forward of its own, around that of `torch.nn.Linear`."""

    def forward(self, input, scale=0.5):
        return super().forward(input.tanh()) * scale


class ScaledTwice(Scaled):
    """Two of them."""

    def forward(self, input):
        return super().forward(input, scale=2.0).tanh() * 3.0


class Corrected(nn.Linear):
    """Writes to what it gets from `torch.nn.Linear`."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.correction = nn.Parameter(torch.ones(sizes[1]))

    def forward(self, input):
        logits = super().forward(input)
        logits += self.correction
        return logits


class Mixin:
    """A class that stands before `torch.nn.Linear` and is no module."""

    def forward(self, input):
        return super().forward(2.0 * input)


class Mixed(Mixin, nn.Linear):
    """A forward that is inherited, but not from `torch.nn.Linear`."""


class Borrowed(Mixed):
    """The forward of `torch.nn.Linear` by its name."""

    forward = nn.Linear.forward


HEADS = {
    "Linear": lambda: nn.Linear(WIDTH, VOCABULARY),
    "subclass": lambda: Plain(WIDTH, VOCABULARY),
    "slots": lambda: Slotted("head"),
    "reduce": lambda: Rebuilt(WIDTH, VOCABULARY),
    "metaclass": lambda: Abstract(WIDTH, VOCABULARY),
    "own forward": lambda: Scaled(WIDTH, VOCABULARY, bias=False),
    "own forwards": lambda: ScaledTwice(WIDTH, VOCABULARY, bias=False),
    "written to": lambda: Corrected(WIDTH, VOCABULARY),
    "mixin": lambda: Mixed(WIDTH, VOCABULARY),
    "borrowed forward": lambda: Borrowed(WIDTH, VOCABULARY),
}
MAKES_LOGITS = {"written to"}


@pytest.fixture(params=HEADS)
def head(request):
    """The name of a kind of head, and one."""
    torch.manual_seed(1)
    return request.param, HEADS[request.param]()


def test_a_step_is_the_same_whatever_the_class_of_the_head(head):
    name, layer = head
    model, own = with_head(layer).double(), type(layer)
    wanted = trained(model, loss)
    defer_logits(model, "head")
    assert isinstance(layer, own)
    assert isinstance(layer, DeferredLinear)
    found = trained(model, loss)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-15)
    assert found.keys() == wanted.keys()
    logits = model(IDS)
    assert type(logits) is (torch.Tensor if name in MAKES_LOGITS else DeferredLogits)
    assert type(restore_logits(model).head) is own
    torch.testing.assert_close(logits + 0, model(IDS), rtol=0, atol=0)


def test_copies_and_files_of_any_head_defer_as_well(head):
    _, layer = head
    model, own = with_head(layer), type(layer)
    state, wanted = {key: value.clone() for key, value in model.state_dict().items()}, loss(model)
    defer_logits(model, "head", workspace="3MB")
    assert model.state_dict().keys() == state.keys()
    for twin in (copied(model), *read_again(model)):
        assert isinstance(twin.head, own)
        assert isinstance(twin.head, DeferredLinear)
        assert twin.head.logits_workspace == "3MB"
        assert twin.head.weight.data_ptr() != model.head.weight.data_ptr()
        torch.testing.assert_close(loss(twin), wanted)
        assert getattr(twin.head, "name", "head") == "head"
        assert type(restore_logits(twin).head) is own
        assert twin.load_state_dict(state) == ([], [])
        torch.testing.assert_close(loss(twin), wanted, rtol=0, atol=0)
    assert isinstance(model.head, DeferredLinear), "a copy that was restored restored the original"


def copied(model):
    return copy.deepcopy(model)


def read_again(model):
    """The model out of files of all kinds."""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(model, protocol=protocol))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)


def test_a_class_is_made_once():
    """So that models do not fill the memory with classes, and a compiler's guards know them again."""
    first, second = (defer_logits(with_head(Plain(WIDTH, VOCABULARY)), "head") for _ in range(2))
    assert type(first.head) is type(second.head) is type(pickle.loads(pickle.dumps(first)).head)
    assert type(first.head) is not type(defer_logits(with_head(Mixed(WIDTH, VOCABULARY)), "head").head)


def send_back(queue, model, stored):
    """In another process: what the models that arrived there compute."""
    for other in (model, pickle.loads(stored)):
        value = loss(other)
        value.backward()
        gradient = other.head.weight.grad.clone()
        was = type(other(IDS)).__name__
        queue.put((value.item(), gradient.norm().item(), was, type(restore_logits(other).head).__name__))


def test_models_reach_new_processes():
    """By `torch.multiprocessing`, and as a file that a process reads which never deferred anything."""
    model = with_head(Plain(WIDTH, VOCABULARY)).double()
    wanted = trained(model, loss)
    defer_logits(model, "head")
    model.zero_grad(set_to_none=True)
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=send_back, args=(queue, model, pickle.dumps(model)))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    for _ in range(2):
        value, norm, logits, restored = queue.get()
        assert value == pytest.approx(wanted["loss"].item(), rel=1e-14)
        assert norm == pytest.approx(wanted["head.weight"].norm().item(), rel=1e-13)
        assert (logits, restored) == ("DeferredLogits", "Plain")


def test_pickles_of_cloudpickle_defer_and_can_be_restored():
    """It writes classes without an importable name by value."""
    cloudpickle = pytest.importorskip("cloudpickle")
    model = defer_logits(with_head(Plain(WIDTH, VOCABULARY)), "head")
    twin = cloudpickle.loads(cloudpickle.dumps(model))
    assert not is_made(twin(IDS))
    torch.testing.assert_close(loss(twin), loss(model), rtol=0, atol=0)
    assert type(restore_logits(twin).head) is Plain


def test_a_lazy_layer_defers_from_its_first_forward_on():
    model = defer_logits(with_head(nn.LazyLinear(VOCABULARY)), "head")
    assert type(restore_logits(copy.deepcopy(model)).head) is nn.LazyLinear
    first = model(IDS)
    assert not is_made(first)
    assert type(model.head) is DeferredLinear
    torch.testing.assert_close(first + 0, restore_logits(model)(IDS), rtol=0, atol=0)
    assert type(model.head) is nn.Linear


class Multiplied(nn.Linear):
    def forward(self, input):
        return F.linear(input, 2 * self.weight)


class ByName(nn.Linear):
    def forward(self, input):
        return 2 * nn.Linear.forward(self, input)


class Below(Multiplied):
    def forward(self, input):
        return super().forward(input)


class Counted(nn.Linear):
    """Refuses subclasses that do not say what they are."""

    def __init_subclass__(cls, *, kind: str) -> None:
        super().__init_subclass__()


@pytest.mark.parametrize("kind", [Multiplied, ByName, Below])
def test_a_forward_that_multiplies_by_itself_is_refused(kind):
    """Its logits would not be deferred, and nobody would notice."""
    model = with_head(kind(WIDTH, VOCABULARY, bias=False))
    with pytest.raises(ArgumentError, match=rf"found {kind.__name__}.*calls super\(\).forward"):
        defer_logits(model, "head")
    assert type(model.head) is kind


def test_a_class_that_cannot_have_another_is_refused():
    with pytest.raises(ArgumentError, match=r"Counted .*kind"):
        defer_logits(with_head(Counted(WIDTH, VOCABULARY)), "head")


# ------------------------------------------------------------------------------------------------ adapters and fusion


class Adapter(nn.Module):
    """A low-rank adapter as libraries wrap it around a layer, with a product that starts at 0."""

    def __init__(self, base_layer: nn.Linear, rank: int = 3) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.down = nn.Linear(base_layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base_layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, input):
        return self.base_layer(input) + self.up(self.down(input)) * 4.0


class AdaptedLinear(nn.Linear):
    """A layer that is its own adapter."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.weight.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(3, sizes[0])), nn.Parameter(torch.randn(sizes[1], 3))

    def forward(self, input):
        return super().forward(input) + input @ self.down.T @ self.up.T


@pytest.mark.parametrize("kind", [Plain, Scaled, None])
def test_an_adapter_on_the_head_is_trained(kind):
    """unsloth #9331: the loss took the weight of the head alone, and the adapter never got a gradient."""
    model = with_head(AdaptedLinear(WIDTH, VOCABULARY) if kind is None else Adapter(kind(WIDTH, VOCABULARY))).double()
    if kind is not None:
        with torch.no_grad():
            model.head.up.weight += 0.01
    wanted = trained(model, loss)
    defer_logits(model, "head")
    found = trained(model, loss)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found.keys() - {"loss"} == wanted.keys() - {"loss"} == trainable
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-15)
    assert all(found[name].norm() > 0 for name in trainable if "head" in name)


def test_an_adapter_that_nobody_calls_one_is_named_by_its_layer():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.extra = nn.Linear(WIDTH, VOCABULARY), nn.Parameter(torch.zeros(VOCABULARY))

        def forward(self, input):
            return self.linear(input) + self.extra

    model = with_head(Wrapped())
    with pytest.raises(ArgumentError, match=r"found Wrapped.*'head\.linear'"):
        defer_logits(model, "head")
    assert_same_step(model, loss, "head.linear")


@pytest.mark.parametrize("kind", [nn.Linear, Plain])
def test_a_head_fused_with_a_normalisation_defers(kind):
    model = nn.Sequential(kind(16, 48), nn.BatchNorm1d(48)).double().eval()
    model[1].running_mean.add_(0.5)
    model[1].running_var.mul_(3.0)
    wanted = model(torch.ones(2, 16, dtype=torch.float64))
    fused = fusion.fuse_linear_bn_eval(defer_logits(model, "0")[0], model[1])
    logits = fused(torch.ones(2, 16, dtype=torch.float64))
    assert not is_made(logits)
    torch.testing.assert_close(logits + 0, wanted, rtol=1e-14, atol=1e-15)
