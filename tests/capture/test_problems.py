from __future__ import annotations

import os
import sys
import time

import numpy as np
import pytest

from cloudai.capture.code import capture
from cloudai.errors import CaptureError
from tests.capture.captured_cells import Notebook, problem


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
        (["def f():\n    import no_such_package_x\n"], ["no module ‘no_such_package_x’", "line 2"]),
        (["def f():\n    from . import sibling\n"], ["relative import", "line 2"]),
        (["def f():\n    get_ipython().system('ls')\n"], ["‘get_ipython’", "magics", "line 2"]),
        (["__file__ = 'x'\ndef f(): return __file__"], ["‘__file__’", "path"]),
        (["class C:\n    lr = 1\n", "C.lr = 2\ndef f(): return C"], ["‘C.lr’ was set after", "into the definition"]),
        (["class C:\n    def m(self): pass\n", "def g(self): pass\nC.m = g\ndef f(): return C"], ["‘C.m’ was set after"]),
        (["class C:\n    def m(self): pass\n", "C.m = lambda self: 1\ndef f(): return C"], ["‘C.m’ was set after"]),
        (["class C:\n    pass\n", "def g(self): pass\nC.extra = g\ndef f(): return C"], ["‘C.extra’ was set after"]),
        (["def f(): f.calls += 1\nf.calls = 0"], ["‘f.calls’ was set after"]),
        (["import functools\n@functools.singledispatch\ndef f(x): pass\n@f.register\ndef _(x: int): pass"], ["‘f.register’"]),
        (["RATE = 0.1\ndef f(x, *, y=RATE): return y\nRATE = 0.5"], ["‘RATE’ has another value", "the cell that defines ‘f’"]),
        (
            ["import functools\ndef g(): pass\nh = functools.lru_cache(g)\ndef f(): h()"],
            ["‘h’", "wrapped by a call", "decorator"],
        ),
        (["import torch\ndef g(): pass\nh = torch.no_grad()(g)\ndef f(): h()"], ["‘h’", "made by an installed package"]),
        (["from itertools import count\nnext_id = count().__next__\ndef f(): next_id()"], ["‘next_id’", "it is an object"]),
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


@pytest.mark.parametrize(
    "cell",
    [
        "class C:\n    table = {}\n    def m(self): self.table[1] = 2\nC().m()\ndef f(): return C",
        "class C:\n    table = {}\n    table['a'] = 1\ndef f(): return C",
        "class B:\n    def __init_subclass__(cls): cls.extra = cls.m\nclass C(B):\n    def m(self): pass\ndef f(): return C",
        "def f():\n    global made\n    made = 1\n    return made",
        "def g():\n    global made\n    made = 1\ndef f():\n    g()\n    return made",
        "RATE = 0.1\ndef f(x=RATE): return x\nRATE = 0.1",
    ],
)
def test_code_that_looks_wrong_but_is_not_passes(cell):
    assert capture([Notebook(cell)["f"]]).files


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
