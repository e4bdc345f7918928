"""Importing cloudai costs nothing: what is heavy is imported when it is first used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PRINT = "import sys; names = list(sys.modules); import json; print(json.dumps(names))"
HEAVY = ("pydantic", "numpy", "asyncio", "importlib.metadata", "IPython", "mlflow", "ray", "torch")


def modules_after(code: str) -> set[str]:
    """Return the modules of a fresh interpreter that has run `code`."""
    done = subprocess.run([sys.executable, "-c", f"{code}; {PRINT}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("code", ["import cloudai", "import cloudai; dir(cloudai); cloudai.errors; cloudai.settings.current()"])
def test_import_loads_nothing_heavy(code):
    assert not modules_after(code) & set(HEAVY)


def test_the_verbs_load_neither_torch_nor_a_peer():
    assert not modules_after("import cloudai; cloudai.train") & {"IPython", "mlflow", "ray", "torch"}


def test_the_check_can_fail():
    assert "asyncio" in modules_after("import asyncio")
