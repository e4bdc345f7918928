"""The source of a function or class, also of one that was typed into a notebook cell.

``inspect.getsource`` cannot find a class of ``__main__`` in a notebook before Python 3.13. Here its methods say which cell
it is from; one without methods is looked for in all cells, and the latest that fits is taken.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from cloudai.capture.imports import is_installed_file, whereabouts
from cloudai.capture.names import Definable

__all__ = ["Definition", "Found", "changes_since", "find", "is_named_tuple", "place_of", "stale_defaults"]

_MISSING = object()
_PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes, tuple, list, dict, set)
_DEEPEST = 50  # decorators on one function


@dataclass(frozen=True)
class Definition:
    """A ``def`` or ``class`` statement.

    Attributes
    ----------
    node : ast.FunctionDef, ast.AsyncFunctionDef or ast.ClassDef
        Its syntax tree; line 1 is its own first line.
    text : str
        Its source from the first decorator on, without the indentation of the place where it stood.
    file : str
        Where it is from, as ``co_filename`` has it.
    line : int
        Its first line there.
    lazy_annotations : bool
        Whether it was compiled under ``from __future__ import annotations``.
    """

    node: Definable = field(compare=False)
    text: str
    file: str
    line: int
    lazy_annotations: bool

    def undecorated(self) -> Definition:
        """Return the definition without its decorators."""
        skipped = self.node.lineno - 1
        return _parsed("\n".join(self.text.split("\n")[skipped:]), self.file, self.line + skipped, lazy=self.lazy_annotations)

    def indented(self) -> str:
        """Return the source indented by one level; lines inside of its strings stay as they are."""
        inside = _inside_strings(self.node)
        lines = enumerate(self.text.split("\n"), 1)
        return "\n".join(f"    {line}" if line and i not in inside else line for i, line in lines)

    def renamed(self, name: str) -> str:
        """Return the source with another name in its ``def``."""
        return re.sub(rf"^((?:async\s+)?def\s+){self.node.name}\b", rf"\g<1>{name}", self.text, count=1, flags=re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """A function or class whose source is known.

    Attributes
    ----------
    definition : Definition
        Its source; with the decorators that made it what it is, without those that made something else of it.
    free : Mapping[str, object]
        The variables that it took from the functions around it; itself among them, if it names itself.
    namespace : dict, optional
        The globals of the cell, script or module where it was defined; a class without methods does not know them.
    """

    definition: Definition
    free: Mapping[str, Any]
    namespace: dict[str, Any] | None


def find(value: Any) -> Found | None:
    """Find the source of a function or class of the user's; None if there is none."""
    if isinstance(value, type):
        return None if is_named_tuple(value) else _find_class(value)
    inner = _beneath_decorators(value)
    function = inner if inner is not None else value
    if not isinstance(function, FunctionType) or is_installed_file(function.__code__.co_filename):
        return None
    definition = _definition_of_function(function)
    if definition is None:
        return None
    public = function.__globals__.get(definition.node.name) is function
    if inner is None and not public and not hasattr(function, "__wrapped__"):
        definition = definition.undecorated()
    return Found(definition, _closure(function), function.__globals__)


def is_named_tuple(value: Any) -> bool:
    """Whether a class was made by a call of `collections.namedtuple`, and so has no source."""
    named = isinstance(value, type) and value.__bases__ == (tuple,) and hasattr(value, "_field_defaults")
    return named and "__annotations__" not in vars(value)


def _find_class(cls: type) -> Found | None:
    definition = _definition_of_class(cls)
    if definition is None:
        return None
    methods = _methods(cls)
    free = {name: held for method in methods for name, held in _closure(method).items() if name != "__class__"}
    return Found(definition, free, methods[0].__globals__ if methods else None)


def _beneath_decorators(value: Any) -> FunctionType | None:
    """Return the function whose ``def``, with its decorators, made `value`; None if it was made in another way."""
    inner, depth = value, 0
    while hasattr(inner, "__wrapped__") and depth < _DEEPEST:
        inner, depth = inner.__wrapped__, depth + 1
    if not depth or not isinstance(inner, FunctionType) or is_installed_file(inner.__code__.co_filename):
        return None
    definition = _definition_of_function(inner)
    plain = definition is None or len(definition.node.decorator_list) < depth
    return None if plain or inner.__globals__.get(inner.__name__) is inner else inner


def _definition_of_function(function: FunctionType) -> Definition | None:
    """Return the definition of a function; None if its source is not available."""
    code = function.__code__
    for node, _ in _definables(code.co_filename):
        if node.name == code.co_name and _first_line(node) == code.co_firstlineno and not isinstance(node, ast.ClassDef):
            return _definition(node, code.co_filename, lazy=_is_lazy(code))
    return None


def _definition_of_class(cls: type) -> Definition | None:
    """Return the definition of a class; None if its source is not available."""
    codes = [
        function.__code__ for _, function in _functions_in(cls) if function.__qualname__.startswith(f"{cls.__qualname__}.")
    ]
    for file, around in [(code.co_filename, code.co_firstlineno) for code in codes]:
        nodes = [node for node in _classes(file, cls.__qualname__) if _first_line(node) <= around <= (node.end_lineno or 0)]
        if nodes:
            return _definition(nodes[-1], file, lazy=any(_is_lazy(code) for code in codes))
    return _latest_that_fits(cls)


def _closure(function: FunctionType) -> dict[str, Any]:
    """Return the variables that a function took from the functions around it; an unset one is left out."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # the variable has not been set yet
            continue
    return found


def _functions_in(cls: type) -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions that a class's own body holds, unwrapped."""
    for name, value in vars(cls).items():
        inner = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        function = inspect.unwrap(inner) if callable(inner) else inner
        if isinstance(function, FunctionType):
            yield name, function


def _methods(cls: type) -> list[FunctionType]:
    """Return the functions that were written in the class itself; dataclasses and named tuples get others besides."""
    own = [function for _, function in _functions_in(cls) if function.__qualname__ == f"{cls.__qualname__}.{function.__name__}"]
    files = ((function, function.__code__.co_filename) for function in own)
    return [function for function, file in files if linecache.getlines(file) and not is_installed_file(file)]


def changes_since(value: Any, definition: Definition) -> list[str]:
    """Name the attributes of a class or function that were set after its definition ran."""
    if isinstance(value, type):
        return _changes_of_class(value, definition)
    if hasattr(value, "dispatch") and len(getattr(value, "registry", ())) > 1:
        return ["register"]  # functools.singledispatch keeps implementations that stand elsewhere
    made_by_decorator = bool(definition.node.decorator_list) or hasattr(value, "__wrapped__")
    return [] if made_by_decorator else sorted(getattr(value, "__dict__", {}))


def _changes_of_class(cls: type, definition: Definition) -> list[str]:
    node = definition.node
    assert isinstance(node, ast.ClassDef)
    methods = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
    changed = [name for name, value in _literals(node).items() if _differs(cls, name, value)]
    may_add = bool(node.decorator_list) or type(cls) is not type or _customises(cls)
    for name, function in _functions_in(cls):
        code, method = function.__code__, methods.get(name)
        plain = not method.decorator_list if method else not may_add and name not in _bound(node)
        inside = definition.line <= code.co_firstlineno < definition.line + definition.text.count("\n") + 1
        if plain and not (inside and code.co_filename == definition.file) and _is_users(function):
            changed.append(name)
    return sorted(changed)


def _customises(cls: type) -> bool:
    """Whether a base class may have added to the class when it was defined."""
    return any("__init_subclass__" in vars(base) for base in cls.__mro__[1:-1])


def stale_defaults(value: Any, definition: Definition) -> list[str]:
    """Name the globals that stand as defaults in a definition, and have another value now than when it ran."""
    function = inspect.unwrap(value)
    if not isinstance(function, FunctionType) or isinstance(definition.node, ast.ClassDef):
        return []
    node = definition.node.args
    given = [*zip(node.defaults[::-1], (function.__defaults__ or ())[::-1], strict=False)]
    named = function.__kwdefaults__ or {}
    given += [(default, named.get(arg.arg)) for arg, default in zip(node.kwonlyargs, node.kw_defaults, strict=True) if default]
    return sorted(part.id for part, then in given if isinstance(part, ast.Name) and _is_stale(function, part.id, then))


def _is_stale(function: FunctionType, name: str, then: Any) -> bool:
    now = function.__globals__.get(name, then)
    return now is not then and not (type(now) is type(then) and type(now) in _PLAIN_TYPES and now == then)


def place_of(file: str, line: int) -> str:
    """Say where a line is, in words: the number of the cell, or the name of the file."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    label = shell.compile.format_code_name(file) if shell is not None else None
    return f"{label[1] if label else Path(file).name} line {line}"


def _is_users(function: FunctionType) -> bool:
    """Whether a function has a source of its own, outside installed packages and outside other functions."""
    lasting = "<locals>" not in function.__qualname__ and bool(linecache.getlines(function.__code__.co_filename))
    return lasting and whereabouts(function.__module__ or "") != "installed"


def _is_lazy(code: CodeType) -> bool:
    return bool(code.co_flags & annotations.compiler_flag)


def _definables(file: str) -> Sequence[tuple[Definable, str]]:
    """Return all definitions in a file or cell with their qualified names."""
    return _definables_in("".join(linecache.getlines(file)))


@lru_cache(maxsize=256)
def _definables_in(text: str) -> Sequence[tuple[Definable, str]]:
    try:
        return tuple(_below(ast.parse(text), ""))
    except (SyntaxError, ValueError):  # not Python: a template, or a file that changed since
        return ()


def _below(node: ast.AST, prefix: str) -> Iterator[tuple[Definable, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definable):
            yield child, prefix + child.name
            inner = "." if isinstance(child, ast.ClassDef) else ".<locals>."
            yield from _below(child, prefix + child.name + inner)
        else:
            yield from _below(child, prefix)


def _classes(file: str, qualname: str) -> list[ast.ClassDef]:
    return [node for node, name in _definables(file) if name == qualname and isinstance(node, ast.ClassDef)]


def _latest_that_fits(cls: type) -> Definition | None:
    """Look for a class without methods in all cells, or in the script that runs."""
    files = [name for name, entry in list(linecache.cache.items()) if len(entry) > 1 and entry[1] is None]
    script = getattr(sys.modules.get(cls.__module__), "__file__", None)
    candidates = [(node, file) for file in [*files, *([script] if script else [])] for node in _classes(file, cls.__qualname__)]
    fitting = [(node, file) for node, file in candidates if _fits(cls, node)]
    if not candidates:
        return None
    node, file = (fitting or candidates)[-1]
    annotations = vars(cls).get("__annotations__", {})
    return _definition(node, file, lazy=bool(annotations) and all(isinstance(value, str) for value in annotations.values()))


def _fits(cls: type, node: ast.ClassDef) -> bool:
    line = vars(cls).get("__firstlineno__", _first_line(node))  # Python 3.13 keeps it
    same_doc = ast.get_docstring(node, clean=False) in (cls.__doc__, None)
    return line == _first_line(node) and same_doc and not any(_differs(cls, *item) for item in _literals(node).items())


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """Return the class variables that are written as plain values."""
    found = {}
    for part in node.body:
        targets = part.targets if isinstance(part, ast.Assign) else [part.target] if isinstance(part, ast.AnnAssign) else []
        if (
            len(targets) == 1
            and isinstance(targets[0], ast.Name)
            and isinstance(part, ast.Assign | ast.AnnAssign)
            and part.value
        ):
            try:
                found[targets[0].id] = ast.literal_eval(part.value)
            except ValueError:
                found.pop(targets[0].id, None)
    return {name: value for name, value in found.items() if not _is_used_in_body(node, name)}


def _is_used_in_body(node: ast.ClassDef, name: str) -> bool:
    """Whether a class itself goes on working with one of its variables: a table that its body fills, a cache."""
    at_once = [part for statement in node.body if not isinstance(statement, Definable) for part in ast.walk(statement)]
    if any(isinstance(part, ast.Name) and part.id == name and isinstance(part.ctx, ast.Load) for part in at_once):
        return True
    written = [part.value for part in ast.walk(node) if isinstance(part, ast.Subscript) and isinstance(part.ctx, ast.Store)]
    called = [part.func.value for part in ast.walk(node) if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute)]
    return any(isinstance(part, ast.Attribute) and part.attr == name for part in [*written, *called])


def _differs(cls: type, name: str, written: Any) -> bool:
    value = vars(cls).get(name, _MISSING)
    value = getattr(value, "_value_", value)  # a member of an enum
    return type(value) in _PLAIN_TYPES and (type(value) is not type(written) or value != written)


def _bound(node: ast.ClassDef) -> set[str]:
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    aliases = [alias for part in ast.walk(node) if isinstance(part, ast.Import | ast.ImportFrom) for alias in part.names]
    return names | {alias.asname or alias.name for alias in aliases}


def _first_line(node: Definable) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _definition(node: Definable, file: str, *, lazy: bool) -> Definition:
    first = _first_line(node)
    lines = "".join(linecache.getlines(file)).split("\n")[first - 1 : node.end_lineno]
    inside = {line - first + 1 for line in _inside_strings(node)}
    margin = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    text = "\n".join(line if i in inside else _dedented(line, margin) for i, line in enumerate(lines, 1))
    return _parsed(text, file, first, lazy=lazy)


def _parsed(text: str, file: str, line: int, *, lazy: bool) -> Definition:
    node = ast.parse(text).body[0]
    assert isinstance(node, Definable)
    return Definition(node, text, file, line, lazy)


def _dedented(line: str, margin: str) -> str:
    return line.removeprefix(margin) if line.startswith(margin) else line.lstrip()


def _inside_strings(node: ast.AST) -> set[int]:
    """Return the lines that begin inside a string, where white space is content."""
    strings = [part for part in ast.walk(node) if isinstance(part, ast.JoinedStr | ast.Constant)]
    return {line for part in strings for line in range(part.lineno + 1, (part.end_lineno or part.lineno) + 1)}
