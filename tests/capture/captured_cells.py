"""Notebooks and scripts for the tests of capture: cells with their source kept, real IPython sessions, real scripts."""

from __future__ import annotations

import itertools
import linecache
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cloudai.capture.bundle import Bundle, loaded, resolve
from cloudai.capture.code import capture
from cloudai.errors import CaptureError

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


def python(code, *, folder, seed="0"):
    env = {**os.environ, "PYTHONHASHSEED": seed, "IPYTHONDIR": str(folder)}
    command = [sys.executable, str(code)] if isinstance(code, Path) else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
