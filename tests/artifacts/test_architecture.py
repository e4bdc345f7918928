from __future__ import annotations

import copy
import functools
import json
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import torch as on_torch
from torch import nn
from torch.nn.utils import parametrizations

from cloudai.artifacts import torch_names
from cloudai.artifacts.architecture import build, describe, parts_of
from cloudai.capture.bundle import Bundle, loaded, resolve
from cloudai.errors import CaptureError, IntegrityError, SpecError


def locate(thing):
    return f"{thing.__module__}:{thing.__qualname__}"


def through_files(module, resolve=resolve):
    """Describe, go through JSON and safetensors, and build again."""
    description, tensors = describe(module, locate)
    stored, weights = json.dumps(description), on_torch.save(tensors_without_sharing(tensors))
    return build(json.loads(stored), on_torch.load(weights), resolve)


def tensors_without_sharing(tensors):
    return {key: tensor.contiguous().clone() for key, tensor in tensors.items()}


def outputs(module, example, seed=0):
    torch.manual_seed(seed)
    result = module(*example)
    return result[0] if isinstance(result, tuple) else result


def steps(module, example, count=3):
    """Train a few steps and return all of the state."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.01)
    for seed in range(count):
        optimiser.zero_grad()
        outputs(module, example, seed).float().square().mean().backward()
        optimiser.step()
    return module.state_dict()


def assert_same(one, other):
    assert list(one) == list(other)
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


def floats(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


class Everything(nn.Module):
    """Holds every kind of attribute that may be described."""

    def __init__(self, size, note=None):
        super().__init__()
        self.encoder = nn.Embedding(size, 4)
        self.head = nn.Linear(4, size, bias=False)
        self.head.weight = self.encoder.weight
        self.again = self.head
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_parameter("missing", None)
        self.register_buffer("kept", torch.arange(4.0))
        self.register_buffer("dropped", torch.ones(4), persistent=False)
        self.register_buffer("unset", None)
        self.loose = torch.tensor([1.5, 2.5])
        self.first = self.frozen
        self.blocks = [self.encoder, {"head": self.head}]
        self.activation = F.gelu
        self.squash = torch.tanh
        self.scaled = functools.partial(F.softmax, dim=-1)
        self.norm_class = nn.LayerNorm
        self.run = self._run
        self.numbers = (math.inf, -math.inf, 1e-300, -0.0, 2**70, True, None, 1 + 2j)
        self.sets = {"a": {3, 1}, (1, 2): frozenset({"x"}), None: [[], {}]}
        self.kinds = [torch.float16, torch.device("cpu"), torch.Size([2, 3]), b"\x00\xff", "é"]
        self.scale = __import__("numpy").sqrt(__import__("numpy").float32(2))
        self.reference = weakref.ref(self.frozen)
        self.note = note

    def _run(self, tokens):
        return self.squash(self.activation(self.encoder(tokens)) * self.frozen + self.kept + self.dropped)

    def forward(self, tokens):
        return self.scaled(self.head(self.run(tokens)) * float(self.scale) * self.loose.sum())


def lazy_norm():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.LayerNorm(4))


def transposed():
    module = nn.Linear(3, 5)
    module.weight = nn.Parameter(floats(3, 5).t())
    module.register_buffer("positions", torch.arange(5).expand(2, -1))
    return module


MODULES = {
    "mlp": (lazy_norm, (floats(6, 3),)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2)
        ).to(memory_format=torch.channels_last),
        (floats(2, 1, 4, 4),),
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Upsample(scale_factor=2.0)),
        (torch.arange(6)[None],),
    ),
    "transposed": (transposed, (floats(4, 3),)),
    "attention": (lambda: nn.MultiheadAttention(4, 2, dropout=0.1, add_bias_kv=True), (floats(5, 2, 4),) * 3),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2, enable_nested_tensor=False),
        (floats(2, 5, 4),),
    ),
    "lstm": (lambda: nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2, dropout=0.2), (floats(5, 2, 3),)),
    "gru": (lambda: nn.GRU(3, 4, batch_first=True), (floats(2, 5, 3),)),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh()), (floats(2, 3),)),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(3, 4)), (floats(2, 3),)),
    "everything": (lambda: Everything(7), (torch.arange(6)[None],)),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_built_again_answers_and_trains_like_the_original(name):
    make, example = MODULES[name]
    torch.manual_seed(0)
    module = make()
    again = through_files(module)

    assert_same(module.state_dict(), again.state_dict())
    for mode in (True, False):
        assert torch.equal(outputs(module.train(mode), example), outputs(again.train(mode), example))
    assert_same(steps(module.train(), example), steps(again.train(), example))
    assert str(module) == str(again)


def test_a_trained_module_in_mixed_modes_keeps_its_modes_and_statistics():
    module = lazy_norm()
    steps(module, (floats(6, 3),))
    module[1].eval()
    again = through_files(module)
    assert [part.training for part in module.modules()] == [part.training for part in again.modules()]
    assert_same(module.state_dict(), again.state_dict())


def test_everything_that_a_module_holds_comes_back():
    module = Everything(7, note="x")
    again = through_files(module)
    assert again.head is again.again
    assert again.head.weight is again.encoder.weight
    assert again.first is again.frozen
    assert again.reference() is again.frozen
    assert again.frozen.requires_grad is False
    assert again.blocks == [again.encoder, {"head": again.head}]
    assert again._parameters["missing"] is None
    assert again._buffers["unset"] is None
    assert [name for name, _ in again.named_buffers()] == [name for name, _ in module.named_buffers()]
    assert list(again.state_dict()) == list(module.state_dict())
    assert torch.equal(again.loose, module.loose)
    assert again.activation is F.gelu
    assert again.norm_class is nn.LayerNorm
    assert again.run.__self__ is again
    for name in ("numbers", "sets", "kinds", "scale", "note"):
        assert repr(getattr(again, name)) == repr(getattr(module, name))
        assert type(getattr(again, name)) is type(getattr(module, name))
    nan = through_files(_with(math.nan)).value
    assert math.isnan(nan)


def test_the_order_of_children_and_parameters_survives_a_store_that_sorts_keys():
    module = nn.Sequential()
    for name in ("z", "a", "m"):
        module.add_module(name, nn.Linear(2, 2))
    description, tensors = describe(module, locate)
    again = build(json.loads(json.dumps(description, sort_keys=True)), tensors, resolve)
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in module.named_parameters()]


def test_no_init_of_the_users_runs():
    again = through_files(Counting())
    assert Counting.made == 1
    assert isinstance(again, Counting)


class Counting(nn.Module):
    made = 0

    def __init__(self):
        super().__init__()
        type(self).made += 1


def _with(value):
    module = nn.Module()
    module.value = value
    return module


def _hooked():
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_forward_hook(lambda *_: None)
    return module


def _sharing_memory():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    two.weight = nn.Parameter(one.weight.data)
    return nn.Sequential(one, two)


def _nested_in_itself():
    loop = []
    loop.append(loop)
    return _with(loop)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: _with(lambda x: x), ["value", "function", "def"]),
        (lambda: nn.Sequential(_with([1, {"x": open(__file__)}])), ["0.value[1]['x']", "TextIOWrapper"]),  # noqa: SIM115, PTH123
        (lambda: _with(__import__("threading").Lock()), ["value", "lock"]),
        (lambda: _with(math.sqrt), ["value", "math.sqrt", "def"]),
        (lambda: _with(torch.load), ["value", "torch"]),
        (lambda: _with(__import__("numpy").zeros(3)), ["value", "ndarray", "buffer"]),
        (lambda: _with(floats(2).requires_grad_() * 2), ["value", "detach"]),
        (lambda: _with(torch.empty(2, device="meta")), ["value", "no values"]),
        (lambda: _with(torch.Generator()), ["value", "Generator"]),
        (lambda: _with(object.__new__), ["value"]),
        (lambda: nn.Sequential(nn.LazyLinear(3)), ["0.weight", "run one batch"]),
        (lambda: torch.compile(nn.Linear(2, 2)), ["torch.compile"]),
        (_hooked, ["0._forward_hooks", "hook", "forward"]),
        (_sharing_memory, ["0.weight", "1.weight", "same Parameter"]),
        (_nested_in_itself, ["value", "itself"]),
    ],
)
def test_what_cannot_be_described_is_named_with_its_fix(make, named):
    with pytest.raises(CaptureError) as caught:
        describe(make(), locate)
    for word in named:
        assert word in str(caught.value)


CODE = b"""
import enum
import dataclasses
from os import system
from torch import nn

class Mode(enum.Enum):
    FAST = 1

@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    mode: Mode = Mode.FAST

def double(x):
    return 2 * x

class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.twice = double
        self.linear = nn.Linear(config.width, 2)

    def forward(self, x):
        return self.twice(self.linear(x)) if self.config.mode is Mode.FAST else None
"""


def test_classes_functions_and_settings_of_the_users_travel_in_a_bundle(tmp_path):
    bundle = Bundle({"net_in_bundle.py": CODE}, {"Net": "net_in_bundle:Net"})
    with loaded(bundle, tmp_path / "one"):
        module = resolve("net_in_bundle:Net")(resolve("net_in_bundle:Config")(3))
        assert [part.__name__ for part in parts_of(module)] == ["Net", "Config", "Mode", "double"]
        description, tensors = describe(module, locate)
    with loaded(bundle, tmp_path / "two"):
        again = build(json.loads(json.dumps(description)), tensors, resolve)
        assert again.config == resolve("net_in_bundle:Config")(3)
        assert torch.equal(again(floats(2, 3)), module(floats(2, 3)))
        for odd in ("net_in_bundle:system", "net_in_bundle:nn.Linear", "net_in_bundle:enum.Enum"):
            with pytest.raises(IntegrityError):
                build(_naming("function", odd), {}, resolve)
    with pytest.raises(IntegrityError):
        build(_naming("function", "net_in_bundle:double"), {}, resolve)


def test_code_that_cannot_be_imported_is_not_taken_for_a_damaged_file(tmp_path):
    bundle = Bundle({"broken_in_bundle.py": b"import no_such_package"}, {})
    description, tensors = describe(nn.Module(), locate)
    description["modules"][0]["class"] = "broken_in_bundle:Net"
    with loaded(bundle, tmp_path), pytest.raises(SpecError, match="no_such_package"):
        build(description, tensors, resolve)


def _naming(kind, location):
    description, _ = describe(_with(None), locate)
    encoded = {"$": kind, "at": location, "name": "X", "fields": {}}
    description["modules"][0]["attributes"]["value"] = encoded
    return description


ATTACKS = ["os:system", "builtins:eval", "builtins:exec", "torch.hub:load", "torch:load", "subprocess:Popen", "shutil:rmtree"]
ATTACKS += [
    "torch.nn.functional:importlib.import_module",
    "torch.nn.functional:importlib",
    "torch.nn:Module.to",
    "pickle:loads",
]
ATTACKS += [
    "torch.nn.modules.linear:torch.load",
    "numpy:load",
    "pandas:read_pickle",
    "torch.utils.data:DataLoader",
    ":",
    "x",
    "",
]


@pytest.mark.parametrize("location", ATTACKS)
@pytest.mark.parametrize("kind", ["function", "class", "enum", "dataclass", "module class"])
def test_a_description_cannot_name_arbitrary_code(location, kind):
    description = _naming(kind, location)
    if kind == "module class":
        description["modules"][0] |= {"class": location, "attributes": {}}
    with pytest.raises(IntegrityError):
        build(description, {}, resolve)


def test_stdlib_code_is_not_even_looked_up():
    def spy(location):
        raise AssertionError(location)

    for location in ATTACKS[:7]:
        with pytest.raises(IntegrityError, match="may not name"):
            build(_naming("function", location), {}, spy)


def test_the_allow_list_names_functions_that_exist():
    wanted = [name for names in torch_names._ALLOWED.values() for name in names.split()]
    assert len(torch_names._functions()) == len(wanted) == len(set(torch_names._functions()))
    assert all(callable(function) for function in torch_names._functions().values())


@pytest.mark.parametrize(
    "damage",
    [
        lambda d, _: d.pop("modules"),
        lambda d, _: d.update(format=99),
        lambda d, _: d.update(modules=[]),
        lambda d, _: d["modules"][0].update(children=[["0", 0]]),
        lambda d, _: d["modules"][0].update(children=[["0", 7]]),
        lambda d, _: d["modules"][0].update(children=[["0", -1]]),
        lambda d, _: d["modules"][0].update(children=[["a.b", 1]]),
        lambda d, _: d["modules"][1].update(parameters=[["weight", "nothing"]]),
        lambda d, _: d["modules"][1].update(buffers=[["x"]]),
        lambda d, _: d["modules"][1].update(parametrized=["weight"]),
        lambda d, _: d["modules"][1]["attributes"].update(_forward_hooks=1),
        lambda d, _: d["modules"][1]["attributes"].update(x={"$": "pickle"}),
        lambda d, _: d["modules"][1]["attributes"].update(x={"$": "dtype", "name": "load"}),
        lambda d, _: d["modules"][1]["attributes"].update(x={"$": "method", "of": 0, "name": "__class__"}),
        lambda d, _: d["modules"][1]["attributes"].update(x={"$": "set", "items": [[]]}),
        lambda d, _: d["tensors"]["0.bias"].update(parameter=False),
        lambda d, _: d["tensors"]["0.bias"].update(shape=[3]),
        lambda d, _: d["tensors"]["0.bias"].update(dtype="float64"),
        lambda d, _: d["tensors"]["0.bias"].update(stride=[2**40]),
        lambda _, t: t.pop("0.bias"),
        lambda _, t: t.update(extra=torch.ones(1)),
        lambda _, t: t.update({"0.bias": [0.0, 0.0]}),
    ],
)
def test_a_damaged_description_is_an_integrity_error(damage):
    description, tensors = describe(nn.Sequential(nn.Linear(2, 2)), locate)
    damage(description, tensors)
    with pytest.raises(IntegrityError):
        build(description, tensors, resolve)


WHOLE, WEIGHTS = describe(nn.Sequential(nn.Linear(2, 2), _with({"a": (1, math.inf)})), locate)
JUNK = st.none() | st.integers(-3, 3) | st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.just({"$": "tuple"})


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_description_with_anything_replaced_is_built_or_refused(data):
    description = copy.deepcopy(WHOLE)
    node = description
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(JUNK)
    try:
        built = build(description, dict(WEIGHTS), resolve)
    except IntegrityError:
        return
    assert isinstance(built, nn.Module)
