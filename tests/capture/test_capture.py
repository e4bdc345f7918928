from __future__ import annotations

import importlib
import itertools
import json
import math
from pathlib import Path
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest

from cloudai.capture.bundle import loaded, resolve
from cloudai.capture.code import capture, locator
from tests.capture.captured_cells import Notebook, carried, python, source_of

SAME_RESULT = {
    "imports and aliases": """
        import math
        import xml
        import xml.etree.ElementTree
        import numpy as np
        from collections import OrderedDict as OD, deque
        from os import path

        def f():
            tree = xml.etree.ElementTree.fromstring("<a/>")
            return math.pi, np.linalg.norm([3, 4]), OD(a=1), deque([1]), path.join("a", "b"), tree.tag
    """,
    "functions that call each other": """
        def f(n=6):
            return even(n), odd(n)

        def even(n):
            return True if n == 0 else odd(n - 1)

        def odd(n):
            return False if n == 0 else even(n - 1)
    """,
    "names that only look global": """
        x = i = total = "outer"

        def f():
            inner = [x for x in range(3)] + [i * 2 for i in range(2)]
            total = sum(inner)
            return total, (lambda x: x + 1)(1), {i: x for i, x in enumerate("ab")}
    """,
    "a comprehension reads a global": """
        SIZES = [1, 2]
        SCALE = 3

        def f():
            return [size * SCALE for size in SIZES], sorted(SIZES, key=lambda size: -size * SCALE)
    """,
    "nested functions with nonlocal and global": """
        counter = 10

        def f():
            steps = 0

            def step():
                nonlocal steps
                global counter
                steps += 1
                counter += 1
                return steps, counter

            step()
            return step()
    """,
    "classes, bases, class bodies, super": """
        SIZE = 4
        NAMES = ("a", "b")

        class Base:
            width = SIZE
            table = {name: SIZE for name in NAMES}

            def area(self):
                return self.width ** 2

        class Child(Base):
            SIZE = SIZE

            class Inner:
                deep = 7

            def area(self):
                return super().area() + self.SIZE + self.Inner.deep

            @staticmethod
            def make():
                return Child()

            @property
            def half(self):
                return self.width / 2

        def f():
            return Child.make().area(), Child().half, Child.table
    """,
    "a base that names its child": """
        class Base:
            def child(self):
                return Child().name

        class Child(Base):
            name = "child"

        def f():
            return Base().child()
    """,
    "decorators with and without wraps": """
        import functools
        from functools import lru_cache

        def wrapped(times):
            def decorate(fn):
                @functools.wraps(fn)
                def inner(*args):
                    return [fn(*args)] * times
                return inner
            return decorate

        def bare(fn):
            def inner(*args):
                return ("bare", fn(*args))
            return inner

        @wrapped(2)
        def g(x):
            return x

        @bare
        def h(x):
            return x if x < 1 else h(x - 1)

        @lru_cache(maxsize=None)
        def fib(n):
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        quick = wrapped(3)(g)

        @wrapped(1)
        @bare
        def f():
            return g(1), h(2), fib(20), quick(0)
    """,
    "a decorator that registers": """
        REGISTRY = {}

        def register(fn):
            REGISTRY[fn.__name__] = fn
            return fn

        @register
        def g():
            return 3

        def f():
            return sorted(REGISTRY), REGISTRY["g"]()
    """,
    "a name rebound by hand": """
        def double(fn):
            def inner():
                return 2 * fn()
            return inner

        def g():
            return 1

        g = double(g)
        g = double(g)

        def f():
            return g()
    """,
    "defaults and evaluated annotations": """
        from typing import Callable, Literal, Optional

        LIMIT = 5

        class Config:
            depth: int = 2

        Pair = tuple[int, Config]
        Maybe = Optional[Config]
        Mode = Literal["a", "b"]
        Either = int | Config
        Maker = Callable[[int], Config]

        def f(n: Pair = LIMIT, *, config: Maybe = None, mode: Mode = "a", x: Either = 1, y: Maker = Config) -> dict[str, Pair]:
            local: Unknown = n
            return local, (config or Config()).depth, sorted(f.__annotations__)
    """,
    "closures": """
        def make(scale, names):
            offset = len(names)

            def helper(x):
                return x + offset

            def work(x=2):
                \"""Doc.

              odd indentation
            \"""
                return helper(x) * scale, names, work.__doc__
            return work

        f = make(3, ["a", "b"])
    """,
    "a closure that counts": """
        def make():
            count = 0

            def tick():
                nonlocal count
                count += 1
                return count

            return tick

        tick = make()

        def f():
            return tick(), tick()
    """,
    "a recursive closure and a local class": """
        def make(base):
            class Node:
                scale = 2

                def value(self):
                    return base * self.scale

            def fact(n):
                return 1 if n == 0 else n * fact(n - 1)

            def work():
                return fact(5), Node().value()

            return work

        f = make(7)
    """,
    "constants": """
        import enum
        import pathlib
        from collections import OrderedDict, defaultdict
        from dataclasses import dataclass, field
        from typing import NamedTuple

        class Color(enum.Enum):
            RED = "r"

        class Level(enum.IntEnum):
            LOW = 1

        @dataclass(frozen=True)
        class Config:
            rate: float = 0.1
            layers: tuple = ()

        class Point(NamedTuple):
            x: int
            y: int = 0

        PLAIN = [None, True, 2**80, -1.5, 1e-320, 3 + 4j, "é\\n", b"\\x00", ..., range(3), {"k": {1, 2}}]
        MORE = [frozenset({3}), set(), (), type(None)]
        MADE = [pathlib.Path("a/b"), Color.RED, Level.LOW, Config(0.5, (1,)), Point(1), OrderedDict(a=1)]
        COUNTS = defaultdict(list, b=[1])
        TABLE = {"fn": len, "mine": Config, Color.RED: Point}

        def f():
            return repr(PLAIN), repr(MORE), repr(MADE), COUNTS["c"], TABLE["mine"]().rate, TABLE[Color.RED](1, TABLE["fn"]("a"))
    """,
    "odd names": """
        class Cell:
            __secret = 3

            def read(self):
                return self.__secret, __name__ != "", __debug__

        def f(*, _print=print, **rest):
            try:
                import no_such_module_at_all
            except ImportError:
                missing = True
            with open("/dev/null") as sink:
                pass
            match [1, 2]:
                case [first, *others]:
                    pass
            if (found := first) and missing:
                del found
            return Cell().read(), first, others, [y for x in [[1]] for y in x]
    """,
    "a partial, a compiled pattern, a logger": """
        import functools
        import logging
        import re

        log = logging.getLogger("work")
        WORD = re.compile(r"\\w+", re.IGNORECASE)

        def add(a, b, c=0):
            return a + b + c

        plus = functools.partial(add, 1, c=5)

        def f():
            log.debug("x")
            return plus(2), WORD.findall("a b"), log.name
    """,
    "async, generators and star imports": """
        import asyncio
        from itertools import *

        async def one():
            return 1

        def numbers():
            yield from islice(count(), 3)

        def f():
            return asyncio.run(one()), list(numbers())
    """,
    "sentinels, named tuples, type variables, generics": """
        from collections import namedtuple
        from typing import Generic, TypeVar

        MISSING = object()
        T = TypeVar("T", bound=int)
        Row = namedtuple("Row", ["a", "b"], defaults=[2])
        ROWS = [Row(1)]

        class Box(Generic[T]):
            def get(self, default=MISSING):
                return default is MISSING

        class Wide(namedtuple("Wide", "x y")):
            def area(self):
                return self.x * self.y

        def f():
            return Box[int]().get(), ROWS == [Row(1, 2)], type(ROWS[0]) is Row, Wide(2, 3).area(), repr(ROWS), T.__bound__
    """,
    "metaclass and class keywords": """
        class Meta(type):
            def __new__(cls, name, bases, space, scale=1):
                made = super().__new__(cls, name, bases, space)
                made.scale = scale
                return made

        FACTOR = 6

        class Thing(metaclass=Meta, scale=FACTOR):
            pass

        def f():
            return Thing.scale
    """,
}


@pytest.mark.parametrize("name", SAME_RESULT)
def test_captured_code_does_what_the_cells_do(name, tmp_path):
    notebook = Notebook(SAME_RESULT[name])
    assert carried(tmp_path, notebook, "f")() == notebook["f"]()


STANDARD = {
    "argparse": lambda m: m.ArgumentParser().add_argument("-x", default=3).default,
    "ast": lambda m: m.literal_eval("[1, {2: 3}]"),
    "configparser": lambda m: m.ConfigParser({"a": "1"}).defaults()["a"],
    "contextlib": lambda m: m.nullcontext(5).__enter__(),
    "fractions": lambda m: str(m.Fraction("3/4") + 1),
    "heapq": lambda m: list(m.merge([1, 4], [2])),
    "statistics": lambda m: m.linear_regression([1, 2, 3], [2, 4, 6]).slope,
    "textwrap": lambda m: m.wrap("a b c", width=3),
    "urllib.parse": lambda m: m.urlparse("http://a/b?c").geturl(),
}


@pytest.mark.parametrize("name", STANDARD)
def test_a_module_of_the_standard_library_typed_into_a_cell_works_elsewhere(name, tmp_path):
    source = (
        Path(importlib.import_module(name).__file__)
        .read_text()
        .replace('"__main__"', '"never"')
        .replace("'__main__'", '"never"')
    )
    notebook = Notebook(source)
    objects = [
        thing
        for key, thing in notebook.items()
        if isinstance(thing, type | FunctionType) and (thing.__module__, thing.__name__) == ("__main__", key)
    ]
    bundle = capture(objects)
    with loaded(bundle, tmp_path):
        there = SimpleNamespace(**{key: resolve(location) for key, location in bundle.entries.items()})
        assert STANDARD[name](there) == STANDARD[name](SimpleNamespace(**notebook))


def test_only_what_is_referred_to_travels(tmp_path):
    notebook = Notebook("import math, json\nUSED, UNUSED = 1, [0] * 10**6\ndef g(): return USED\ndef h(): return UNUSED\n")
    source = source_of(notebook, "g")
    assert "USED = 1" in source
    for absent in ("UNUSED", "math", "json", "def h"):
        assert absent not in source


def test_source_stays_as_it_was_written():
    cell = 'def f(x):\n    # a remark\n    return {"a" :x}   # odd spacing\n'
    assert cell in source_of(Notebook(cell), "f")


def test_several_objects_share_one_module_and_what_they_refer_to(tmp_path):
    notebook = Notebook("STATE = []\ndef add(x): STATE.append(x)\ndef read(): return STATE\nclass Net: pass\n")
    add, read, net = carried(tmp_path, notebook, "add", "read", "Net")
    add(1)
    assert read() == [1]
    assert net.__qualname__ == "Net"
    assert notebook["STATE"] == []


def test_shared_functions_stay_shared(tmp_path):
    notebook = Notebook("def g(): pass\ndef make(h):\n    def inner(): return h\n    return inner\na, b = make(g), make(g)\n")
    notebook.run("def f(): return a() is b() is g")
    assert carried(tmp_path, notebook, "f")() is True


def test_code_of_two_namespaces_keeps_its_own_names(tmp_path):
    other = Notebook(
        "RATE = 2\nclass Empty: pass\ndef scaled(x): return x * RATE, rest(x)\ndef rest(x): return Empty.__name__, RATE"
    )
    mine = Notebook("RATE = 100\ndef f(): return scaled(3), RATE")
    mine["scaled"] = other["scaled"]  # as %run does
    assert carried(tmp_path, mine, "f")() == ((6, ("Empty", 2)), 100)


def test_a_class_that_was_defined_again_travels_beside_the_old_one(tmp_path):
    notebook = Notebook("class Net:\n    size = 1\n    def who(self): return Net.size, self.size\n")
    old = notebook["Net"]
    notebook.run("class Net:\n    size = 2\n    def who(self): return Net.size, self.size\n")
    bundle = capture([old, notebook["Net"]])
    assert list(bundle.entries) == ["Net", "Net#2"]
    with loaded(bundle, tmp_path):
        found = [resolve(location) for location in bundle.entries.values()]
        assert [cls.size for cls in found] == [1, 2]
        assert [f"{cls.__module__}:{cls.__qualname__}" for cls in found] == list(bundle.entries.values())


def test_a_nested_class_and_a_method_are_found_through_their_class(tmp_path):
    notebook = Notebook("class Outer:\n    class Inner:\n        def m(self): return 5\n")
    inner, method = notebook["Outer"].Inner, notebook["Outer"].Inner.m
    bundle = capture([inner, method])
    assert [location.partition(":")[2] for location in bundle.entries.values()] == ["Outer.Inner", "Outer.Inner.m"]
    with loaded(bundle, tmp_path):
        assert resolve(bundle.entries["Outer.Inner.m"])(None) == 5


def test_a_partial_can_be_asked_for(tmp_path):
    import functools

    notebook = Notebook("def f(x, rate): return x * rate")
    bundle = capture([functools.partial(notebook["f"], rate=3)])
    with loaded(bundle, tmp_path):
        assert resolve(bundle.entries["partial"])(2) == 6


def test_installed_objects_are_named_not_copied():
    bundle = capture([np.mean, json.JSONEncoder, math.sqrt])
    assert not bundle.files
    assert list(bundle.entries.values()) == ["numpy:mean", "json.encoder:JSONEncoder", "math:sqrt"]


def test_the_locator_knows_each_object_by_itself():
    notebook = Notebook("class Net: pass\n")
    objects = [notebook["Net"], json.JSONEncoder]
    bundle = capture(objects)
    assert [locator(objects, bundle)(thing) for thing in objects] == list(bundle.entries.values())


def test_lazy_annotations_need_not_be_carried(tmp_path):
    import __future__

    cells = ["class Known: pass\n", "def f(a: Known, b: Unknown = 1) -> table: return b\n"]
    notebook = Notebook(*cells, flags=__future__.annotations.compiler_flag)
    notebook["table"] = np.zeros(10**6)
    f = carried(tmp_path, notebook, "f")
    assert f(None) == 1
    assert f.__annotations__["b"] == "Unknown"
    assert "class Known" in source_of(notebook, "f")


def test_torch_objects_travel_as_source(tmp_path):
    import torch

    cell = """
        import torch
        from torch import nn
        import torch.nn.functional as F

        device = torch.device("cpu")
        DTYPES = [torch.float16, torch.Size([2])]

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = nn.Linear(2, 2, device=device, dtype=torch.float32)

            @torch.no_grad()
            def forward(self, x):
                return F.relu(self.lin(x))

        @torch.no_grad()
        def f():
            torch.manual_seed(0)
            return Net()(torch.ones(1, 2)).tolist(), str(DTYPES), str(device)
    """
    notebook = Notebook(cell)
    assert carried(tmp_path, notebook, "f")() == notebook["f"]()
    assert torch.is_grad_enabled()


def test_the_same_definitions_give_the_same_bytes_in_whatever_order():
    cells = ["import math\nfrom os import path", "RATE = {'b': 1, 'a': {3, 1, 2}}", "def g(): return RATE, math.pi, path"]
    cells += ["class Net:\n    def go(self): return g()", "def f(): return Net().go(), g()"]
    digests = set()
    for order in itertools.permutations(cells):
        notebook = Notebook(*order)
        notebook.run("unrelated = object()\ndef other(): return unrelated")
        digests.add(capture([notebook["f"]]).digest)
    assert len(digests) == 1
    changed = Notebook(*cells, "RATE = {'b': 2, 'a': {3, 1, 2}}")
    assert capture([changed["f"]]).digest not in digests


def test_capturing_loads_neither_torch_nor_numpy(tmp_path):
    code = "import sys, cloudai.capture.code; print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    assert python(code, folder=tmp_path).strip() == "[]"


def test_a_module_of_a_notebook_class_is_built_again_from_its_bundle(tmp_path):
    import torch

    from cloudai.artifacts.architecture import build, describe, parts_of

    notebook = Notebook("""
        import enum
        from dataclasses import dataclass
        from torch import nn

        class Mode(enum.Enum):
            WARM = 2

        @dataclass
        class Config:
            width: int = 3
            mode: Mode = Mode.WARM

        def squash(x):
            return x.tanh()

        class Block(nn.Module):
            def __init__(self, config, act):
                super().__init__()
                self.config, self.act = config, act
                self.linear = nn.Linear(config.width, config.width)

            def forward(self, x):
                return self.act(self.linear(x)) * self.config.mode.value

        def local():
            class Wrapped(nn.Sequential):
                pass
            return Wrapped(Block(Config(), squash), Block(Config(), nn.functional.relu))
    """)
    module, example = notebook["local"](), torch.ones(2, 3)
    parts = parts_of(module)
    bundle = capture(parts)
    description, tensors = describe(module, locator(parts, bundle))
    with loaded(bundle, tmp_path):
        again = build(json.loads(json.dumps(description)), tensors, resolve)
        assert torch.equal(again(example), module(example))
        # the worker has no notebook: there, each object's own names must lead to it
        description, tensors = describe(again, lambda thing: f"{thing.__module__}:{thing.__qualname__}")
        assert torch.equal(build(description, tensors, resolve)(example), module(example))
