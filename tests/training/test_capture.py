from __future__ import annotations

import itertools
import json
import linecache
import math
import os
import py_compile
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai.artifacts.bundle import Bundle, loaded, resolve
from cloudai.errors import CaptureError
from cloudai.training.capture import capture, locator

_numbers = itertools.count(1)


class Notebook(dict):
    """The names of a session; each cell's source is kept where a notebook keeps it."""

    def __init__(self, *cells, flags=0):
        super().__init__(__name__="__main__")
        for cell in cells:
            self.run(cell, flags)

    def run(self, cell, flags=0):
        source = textwrap.dedent(cell)
        file = f"<cell-{next(_numbers)}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec", flags=flags, dont_inherit=True), self)
        return self


def carried(folder, notebook, *names):
    """Capture, go through a zip, and return what the worker would find."""
    bundle = Bundle.from_zip(capture([notebook[name] for name in names]).to_zip())
    with loaded(bundle, folder):
        found = [resolve(location) for location in bundle.entries.values()]
        assert all(getattr(thing, "__module__", "").startswith("cloudai_work_") for thing in found)
        return found if len(found) > 1 else found[0]


def source_of(notebook, name):
    files = capture([notebook[name]]).files
    return next(content.decode() for path, content in files.items() if path.startswith("cloudai_work_"))


def problem(notebook, name="f"):
    with pytest.raises(CaptureError) as caught:
        capture([notebook[name]])
    return caught.value


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

        PLAIN = [None, True, 2**80, -1.5, 1e-320, 3 + 4j, "é\\n", b"\\x00", ..., range(3), {"k": {1, 2}}, frozenset({3}), set(), ()]
        MADE = [pathlib.Path("a/b"), Color.RED, Level.LOW, Config(0.5, (1,)), Point(1), OrderedDict(a=1), defaultdict(list, b=[1])]
        TABLE = {"fn": len, "mine": Config, Color.RED: Point}

        def f():
            return repr(PLAIN), repr(MADE), TABLE["fn"]("abc"), TABLE["mine"]().rate, TABLE[Color.RED](1, 2)
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


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
hashables = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
values = st.recursive(
    hashables,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashables, inner, max_size=4) | st.sets(hashables, max_size=4),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None)
@given(values)
def test_any_constant_comes_back_equal(tmp_path_factory, value):
    notebook = Notebook("def f(): return CONSTANT")
    notebook["CONSTANT"] = value
    assert like(carried(tmp_path_factory.mktemp("constant"), notebook, "f")()) == like(value)


def like(value):
    """Make values comparable by type and content, with nan and -0.0 as values."""
    if isinstance(value, list | tuple):
        return type(value).__name__, [like(item) for item in value]
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(map(repr, map(like, value)))
    if isinstance(value, dict):
        return [(like(key), like(item)) for key, item in value.items()]
    return type(value).__name__, repr(value)


@pytest.mark.parametrize("number", [np.float32(0.1), np.float64("nan"), np.int8(-3), np.bool_(True), np.complex64(1 + 2j)])
def test_numpy_scalars_keep_their_type(number, tmp_path):
    notebook = Notebook("def f(): return NUMBER")
    notebook["NUMBER"] = number
    back = carried(tmp_path, notebook, "f")()
    assert (type(back), repr(back)) == (type(number), repr(number))


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


def test_an_array_is_named_with_its_size_place_and_fix():
    notebook = Notebook("def f(ctx):\n    x = 1\n    return [table for _ in range(x)]\n")
    notebook["table"] = np.zeros(6_025_000)
    error = problem(notebook)
    assert "‘table’ (ndarray, 48.2 MB)" in error.what
    assert "‘f’" in error.what
    assert "line 3" in error.what
    assert "data=" in error.fix


def _frame():
    import pandas as pd

    return pd.DataFrame({"a": np.zeros(10**6), "b": np.zeros(10**6)})


def _module():
    import torch

    return torch.nn.Linear(1000, 1000)


@pytest.mark.parametrize(
    ("value", "named", "fix"),
    [
        (_frame, "‘thing’ (DataFrame, 16 MB)", "data="),
        (lambda: __import__("torch").zeros(1000, 1000), "‘thing’ (Tensor, 4 MB)", "data="),
        (_module, "‘thing’ (Linear, 4.004 MB)", "inside the function"),
        (lambda: [0.5] * 10**6, "‘thing’ (list, ", "data="),
        (lambda: "x" * 70_000, "‘thing’ (str, 70.05 kB)", "data="),
        (lambda: {"a": [1, np.zeros(1000)]}, "‘thing['a'][1]’ (ndarray, 8 kB)", "data="),
        (lambda: open(os.devnull), "‘thing’ (TextIOWrapper)", "open it inside"),  # noqa: SIM115, PTH123
        (lambda: __import__("threading").Lock(), "‘thing’ (lock)", "inside the function"),
        (lambda: (x for x in "a"), "‘thing’ (generator)", "inside the function"),
        (lambda: lambda x: x, "‘thing’ (function)", "write a def"),
        (lambda: {"act": lambda x: x}, "‘thing['act']’ (function)", "write a def"),
        (lambda: np.random.default_rng(0), "‘thing’ (Generator)", "inside the function"),
        (lambda: type(sys)("made_up"), "‘thing’ (module)", "installed"),
        (lambda: _holds_itself(), "it contains itself", ""),
    ],
)
def test_what_cannot_be_carried_is_named(value, named, fix):
    notebook = Notebook("def f(): return thing")
    notebook["thing"] = value()
    error = problem(notebook)
    assert named in error.what
    assert fix in error.fix


def _holds_itself():
    holder = []
    holder.append(holder)
    return holder


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["def f(): return lost"], ["‘lost’ is not defined", "‘f’", "line 1"]),
        (["def f():\n    import no_such_package_x\n"], ["no module 'no_such_package_x'", "line 2"]),
        (["def f():\n    from . import sibling\n"], ["relative import", "line 2"]),
        (["def f():\n    get_ipython().system('ls')\n"], ["‘get_ipython’", "magics", "line 2"]),
        (["__file__ = 'x'\ndef f(): return __file__"], ["‘__file__’", "path"]),
        (["class C:\n    lr = 1\n", "C.lr = 2\ndef f(): return C"], ["‘C.lr’ was set after", "into the definition"]),
        (["class C:\n    def m(self): pass\n", "def g(self): pass\nC.m = g\ndef f(): return C"], ["‘C.m’ was set after"]),
        (["class C:\n    def m(self): pass\n", "C.m = lambda self: 1\ndef f(): return C"], ["‘C.m’ was set after"]),
        (["class C:\n    pass\n", "def g(self): pass\nC.extra = g\ndef f(): return C"], ["‘C.extra’ was set after"]),
        (
            ["class A:\n    def go(self): return missing\nclass B(A): pass\ndef f(): return B()"],
            ["‘missing’", "‘A’"],
        ),
        (
            ["def make():\n    def a(): return b()\n    def b(): return a()\n    return a\nf = make()"],
            ["‘a’ and ‘b’ need each other"],
        ),
    ],
)
def test_code_that_cannot_run_elsewhere_is_refused(cells, words):
    text = str(problem(Notebook(*cells)))
    for word in words:
        assert word in text


def test_all_problems_are_found_in_one_pass_in_the_order_of_the_source():
    lines = "".join(f"    lost_{name}\n" for name in "dcbagfe")
    text = str(problem(Notebook(f"def f():\n{lines}")))
    assert text.startswith("‘lost_d’")
    assert [text.index(f"‘lost_{name}’") for name in "dcbag"] == sorted(text.index(f"‘lost_{name}’") for name in "dcbag")
    assert "lost_e" not in text
    assert "… and 2 more" in text


def test_code_without_source_is_refused_with_the_reason():
    space = {"__name__": "__main__"}
    exec("def f(): pass\nclass NowhereElse: pass", space)  # as the plain Python prompt does before 3.13
    for name in ("f", "NowhereElse"):
        assert "source is not available" in str(problem(space, name))


def test_a_lambda_or_an_object_cannot_be_the_work():
    class Callable:
        def __call__(self):
            return 1

    for thing in (lambda: 1, Callable(), open):
        if thing is open:
            assert capture([thing]).entries["open"] in ("io:open", "_io:open")
        else:
            with pytest.raises(CaptureError, match="write a def"):
                capture([thing])


def test_a_closure_over_data_is_refused_where_it_is_used():
    notebook = Notebook("def make(table):\n    def work():\n        return table\n    return work\n")
    notebook["f"] = notebook["make"](np.zeros(10**6))
    text = str(problem(notebook))
    assert "‘table’ (ndarray, 8 MB)" in text
    assert "line 3" in text


def test_capture_takes_milliseconds():
    functions = "\n".join(f"def f{i}(x):\n    return f{i + 1}(x) + C{i}\nC{i} = {i}\n" for i in range(60))
    notebook = Notebook(functions + "def f60(x): return x\n")
    notebook["table"] = np.zeros(5_000_000)
    notebook["listed"] = [float(i) for i in range(10**6)]
    notebook.run("def bad(): return table, listed")
    capture([notebook["f0"]])
    start = time.perf_counter()
    capture([notebook["f0"]])
    with pytest.raises(CaptureError):
        capture([notebook["bad"]])
    assert time.perf_counter() - start < 0.5


def python(code, *, folder, seed="0"):
    env = {**os.environ, "PYTHONHASHSEED": seed, "IPYTHONDIR": str(folder)}
    command = [sys.executable, str(code)] if isinstance(code, Path) else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_capturing_loads_neither_torch_nor_numpy(tmp_path):
    code = (
        "import sys, cloudai.training.capture; print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    )
    assert python(code, folder=tmp_path).strip() == "[]"


IPYTHON = """
import json, pathlib, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in json.loads(pathlib.Path("cells.json").read_text()):
    result = shell.run_cell(cell, store_history=True, silent=False)
    result.raise_error()
"""

EPILOGUE = """
from pathlib import Path
from cloudai.training.capture import capture
from cloudai.errors import CaptureError
try:
    Path("bundle.zip").write_bytes(capture([f]).to_zip())
except CaptureError as error:
    Path("error.txt").write_text(str(error))
"""


def in_ipython(folder, *cells, seed="0"):
    """Run cells in a real IPython and return the bundle of ``f``, or the error."""
    for name in ("bundle.zip", "error.txt"):
        (folder / name).unlink(missing_ok=True)
    (folder / "cells.json").write_text(json.dumps([*map(textwrap.dedent, cells), EPILOGUE]))
    (folder / "session.py").write_text(IPYTHON)
    python(folder / "session.py", folder=folder, seed=seed)
    if (folder / "error.txt").exists():
        return (folder / "error.txt").read_text()
    return Bundle.from_zip((folder / "bundle.zip").read_bytes())


CELLS = [
    "import math\nfrom dataclasses import dataclass\nfrom enum import Enum\nimport torch.nn as nn",
    "class Config:\n    lr = 0.1",
    "class Config:\n    lr = 0.2",
    "class Config:\n    lr = 0.1",
    "@dataclass\nclass Options:\n    depth: int = 3\noptions = Options(4)",
    "class Mode(Enum):\n    FAST = 1\n    SLOW = 2",
    "class Net(nn.Module):\n    def forward(self, x):\n        return helper(x)",
    "def helper(x):\n    return x + math.floor(Config.lr)",
    "%matplotlib --list\n%time value = 5",
    "def f():\n    return Config.lr, options.depth, Mode.SLOW.name, Net()(1), value",
]


def test_a_real_notebook_session_is_captured(tmp_path):
    bundle = in_ipython(tmp_path, *CELLS)
    with loaded(bundle, tmp_path):
        assert resolve(bundle.entries["f"])() == (0.1, 4, "SLOW", 1, 5)
    turned = [CELLS[0], CELLS[3], CELLS[5], CELLS[7], *CELLS[4:5], CELLS[6], "unrelated = [1]", *CELLS[8:]]
    again = in_ipython(tmp_path, *turned, seed="7")
    assert again.to_zip() == bundle.to_zip()


def test_a_notebook_says_in_which_cell_a_problem_is(tmp_path):
    text = in_ipython(tmp_path, "import numpy as np\ntable = np.zeros(10**6)", "\n\ndef f():\n    return table.sum()\n    !ls")
    assert "‘table’ (ndarray, 8 MB) cannot be carried to the worker; ‘f’ uses it (In[2] line 2)" in text
    assert "‘get_ipython’" in text


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["%%time\ndef g(): return 1", "def f(): return g()"], ["‘g’", "%%time"]),
        (["def f(): display(1)"], ["‘display’ is not defined"]),
    ],
)
def test_what_exists_only_in_a_notebook_is_refused(tmp_path, cells, words):
    text = in_ipython(tmp_path, *cells)
    for word in words:
        assert word in text


def script(folder, text, name="script.py"):
    """Run a script as ``__main__`` and return its bundle of ``f``."""
    (folder / name).write_text(textwrap.dedent(text) + EPILOGUE)
    python(folder / name, folder=folder)
    if (folder / "error.txt").exists():
        return (folder / "error.txt").read_text()
    return Bundle.from_zip((folder / "bundle.zip").read_bytes())


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


LOCAL = {
    "plain_local.py": "from pkg_local.deep import inner\nimport json\nLR = 0.1\nhandle = open(__file__)\ndef top(x): return inner(x) + LR\n",
    "pkg_local/__init__.py": "from .first import FIRST\n",
    "pkg_local/first.py": "FIRST = 1\n",
    "pkg_local/deep/__init__.py": "from ..other import other\ndef inner(x):\n    from . import lazy\n    return other(x) + lazy.V\n",
    "pkg_local/deep/lazy.py": "V = 100\n",
    "pkg_local/other.py": "def other(x): return x * 2\n",
    "pkg_local/unused.py": "raise RuntimeError('never imported')\n",
    "space_local/leaf.py": "LEAF = 7\n",
    "unused_local.py": "",
}


def test_local_modules_of_a_script_travel_with_all_that_they_import(tmp_path):
    write(tmp_path, LOCAL)
    text = """
        import plain_local as pl
        import pkg_local.deep
        from plain_local import top, LR, handle
        from space_local.leaf import LEAF
        import numpy as np

        def f():
            import pkg_local.first as late
            assert handle is pl.handle
            return pl.top(1), top(2), LR, LEAF, pkg_local.deep.inner(0), late.FIRST, np.ones(1).sum()
    """
    bundle = script(tmp_path, text)
    local = {path for path in bundle.files if not path.startswith("cloudai_work_")}
    assert local == LOCAL.keys() - {"pkg_local/unused.py", "unused_local.py", "space_local/leaf.py"}
    far = tmp_path / "far"
    code = f"""
import sys
from pathlib import Path
from cloudai.artifacts.bundle import loaded, resolve, Bundle
bundle = Bundle.from_zip(Path({str(tmp_path / "bundle.zip")!r}).read_bytes())
with loaded(bundle, {str(far)!r}):
    print(resolve(bundle.entries["f"])())
"""
    far.mkdir()
    assert python(code, folder=far).strip() == "(102.1, 104.1, 0.1, 7, 100, 1, np.float64(1.0))"


def test_a_function_of_a_local_module_needs_no_generated_module(tmp_path):
    write(tmp_path, LOCAL)
    bundle = script(tmp_path, "from pkg_local.other import other as f\n")
    assert set(bundle.files) == {"pkg_local/__init__.py", "pkg_local/first.py", "pkg_local/other.py"}
    assert dict(bundle.entries) == {"other": "pkg_local.other:other"}


def test_a_closure_made_in_a_local_module_takes_its_globals_from_there(tmp_path):
    text = "import threading\nLOCK = threading.Lock()\nBASE = 10\ndef helper(x): return x + BASE\n"
    text += "def make(n):\n    def work(x):\n        with LOCK:\n            return helper(x) * n\n    return work\n"
    write(tmp_path, {"maker_local.py": text})
    bundle = script(tmp_path, "from maker_local import make\ng = make(3)\nBASE = 'mine'\ndef f(): return g(1), BASE\n")
    with loaded(bundle, tmp_path / "far"):
        assert resolve(bundle.entries["f"])() == (33, "mine")


def test_a_compiled_local_module_is_refused(tmp_path):
    write(tmp_path, {"compiled_local.py": "def g(): pass", "uses_compiled.py": "import compiled_local\ndef g(): pass"})
    py_compile.compile(tmp_path / "compiled_local.py", cfile=tmp_path / "compiled_local.pyc")
    (tmp_path / "compiled_local.py").unlink()
    for first in ("import uses_compiled as m", "import compiled_local as m"):
        text = script(tmp_path, f"{first}\ndef f(): return m.g()\n")
        assert "‘compiled_local’ has no source" in text


def test_a_script_runs_elsewhere_without_its_own_file(tmp_path):
    text = """
        from dataclasses import dataclass

        @dataclass
        class Options:
            rate: float = 0.5

        class Empty:
            pass

        def f(options=Options()):
            return options.rate, Empty.__name__

        if __name__ == "__main__":
            result = f()
    """
    bundle = script(tmp_path, text)
    (tmp_path / "script.py").unlink()
    with loaded(bundle, tmp_path):
        assert resolve(bundle.entries["f"])() == (0.5, "Empty")
