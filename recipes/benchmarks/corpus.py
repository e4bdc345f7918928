"""Real text of varied length that is on every machine with these packages: their docstrings; the class is the package."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("numpy", "ray", "torch", "transformers")
_SHORTEST = 40  # characters


def docstrings(each: int, most_files: int = 250) -> tuple[list[str], list[str]]:
    """Return texts and their packages, as many of each, in an order that depends on the texts alone.

    They come from the first files of each package, in order of their names' digests.
    """
    found = [(text, package) for package in PACKAGES for text in itertools.islice(_of(package, most_files), each)]
    found.sort(key=lambda pair: _digest(pair[0]))
    return [text for text, _ in found], [package for _, package in found]


def _of(package: str, most_files: int) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    root = Path(str(spec.origin)).parent
    files = sorted(root.rglob("*.py"), key=lambda path: _digest(str(path.relative_to(root))))[:most_files]
    seen = set()
    for file in files:
        for text in _docstrings_of(file):
            if len(text) >= _SHORTEST and text not in seen:
                seen.add(text)
                yield text


def _docstrings_of(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
