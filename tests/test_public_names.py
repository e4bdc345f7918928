"""The public face: what is exported is what is promised, in every way that somebody may look at it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import cloudai

SOURCE = ast.parse(Path(cloudai.__file__).read_text(encoding="utf-8"))


def test_what_is_promised_is_what_is_exported_and_sorted():
    assert cloudai.__all__ == sorted(set(cloudai.__all__))
    assert set(cloudai.__all__) == set(cloudai._WHERE)


def test_all_names_are_seen_by_completion():
    assert set(cloudai.__all__) <= set(dir(cloudai))


@pytest.mark.parametrize("name", cloudai.__all__)
def test_a_name_resolves_to_what_it_says_and_explains_itself(name):
    value = getattr(cloudai, name)
    where = cloudai._WHERE[name] or f"cloudai.{name}"
    module = value.__name__ if inspect.ismodule(value) else value.__module__
    assert module == where
    assert len(inspect.getdoc(value) or "") > 20


def test_another_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="'cloudai' has no attribute 'deplyo'"):
        _ = cloudai.deplyo


def _twins() -> dict[str, str]:
    """Return what type checkers see: name and module of each import under ``if TYPE_CHECKING``."""
    guard = next(node for node in SOURCE.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in guard.body if isinstance(node, ast.ImportFrom)]
    pairs = {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}
    return {name: "" if module == "cloudai" else module for name, module in pairs.items()}


def test_type_checkers_see_the_same_names_from_the_same_modules():
    assert _twins() == cloudai._WHERE
