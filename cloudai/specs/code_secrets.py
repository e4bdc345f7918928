"""Secrets that stand in code which is about to be copied into a store."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from cloudai.errors import CaptureError
from cloudai.specs.confidential import environment_secrets, why_secret

__all__ = ["refuse_secrets_in_code"]

_FIX = "read it inside the function, from os.environ or a file; what is captured lies in the store as source"


def refuse_secrets_in_code(files: Mapping[str, bytes], main: str = "") -> None:
    """Refuse source files with texts in them that look like secrets.

    Looked at are texts that are given to a name: by an assignment, as a default, as an argument or under a key of a dict.
    Elsewhere only the form counts, and the values of the environment.

    Parameters
    ----------
    files : mapping of str to bytes
        The source by path.
    main : str
        The path of the file that holds what was captured; its name means nothing to the user.

    Raises
    ------
    CaptureError
        With the name that it goes by, and where it stands, never with the value.
    """
    known = environment_secrets()
    for path, content in files.items():
        for name, node in _texts(_parsed(content)):
            reason = why_secret(name, node.value, known)
            if reason:
                place = "in the captured code" if path == main else f"in {path}, line {node.lineno}"
                raise CaptureError(f"{f'‘{name}’' if name else 'a text'} {place} looks like a secret: {reason}", fix=_FIX)


def _parsed(content: bytes) -> ast.AST:
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError):  # its own problem, for when it is imported
        return ast.Constant(content.decode(errors="replace"), lineno=1)


def _texts(tree: ast.AST) -> Iterator[tuple[str, ast.Constant]]:
    """Yield each text with the name that it is given to; an empty name where there is none."""
    named: set[int] = set()
    for node in ast.walk(tree):
        for name, value in _bindings(node):
            for text in _texts_in(value):
                named.add(id(text))
                yield name, text
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in named:
            yield "", node


def _texts_in(value: ast.AST) -> Iterator[ast.Constant]:
    """Yield a text, or those of a list or a tuple: they go by the list's name."""
    if isinstance(value, ast.Constant):
        yield value
    elif isinstance(value, ast.List | ast.Tuple | ast.Set):
        for item in value.elts:
            yield from _texts_in(item)


def _bindings(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Assign):
        yield from ((_name(target), node.value) for target in node.targets)
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        yield _name(node.target), node.value
    elif isinstance(node, ast.keyword) and node.arg:
        yield node.arg, node.value
    elif isinstance(node, ast.Dict):
        yield from ((_name(key), value) for key, value in zip(node.keys, node.values, strict=True) if key is not None)
    elif isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        yield from ((arg.arg, value) for arg, value in zip(positional[::-1], node.defaults[::-1], strict=False))
        yield from ((arg.arg, value) for arg, value in zip(node.kwonlyargs, node.kw_defaults, strict=True) if value)


def _name(target: ast.AST) -> str:
    if isinstance(target, ast.Constant):
        return str(target.value)
    if isinstance(target, ast.Subscript):
        return _name(target.slice)
    return getattr(target, "id", getattr(target, "attr", ""))
