"""Capture from real sessions: IPython, scripts that run as ``__main__``, local modules."""

from __future__ import annotations

import json
import py_compile
import textwrap

import pytest

from cloudai.capture.bundle import Bundle, loaded, resolve
from tests.capture.captured_cells import python

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
from cloudai.capture.code import capture
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
    "plain_local.py": "from pkg_local.deep import inner\nLR = 0.1\nhandle = open(__file__)\ndef top(x): return inner(x) + LR\n",
    "pkg_local/__init__.py": "from .first import FIRST\n",
    "pkg_local/first.py": "FIRST = 1\n",
    "pkg_local/deep/__init__.py": "from ..other import other\ndef inner(x):\n from . import lazy\n return other(x) + lazy.V",
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
from cloudai.capture.bundle import loaded, resolve, Bundle
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
