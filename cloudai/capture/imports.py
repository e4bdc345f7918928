"""What the worker can import: installed modules by name, local modules because their source travels along."""

from __future__ import annotations

import ast
import importlib.util
import site
import sys
import sysconfig
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Literal

__all__ = ["Address", "ImportedModule", "LocalModules", "address_of", "imports_in", "is_installed_file", "whereabouts"]

_SESSION_MODULES = frozenset({"__main__", "__mp_main__"})


def whereabouts(name: str) -> Literal["installed", "local", "compiled", "missing"]:
    """Say where a module lives, without importing it.

    Returns
    -------
    str
        ``"installed"``: in the standard library, in site-packages, or in cloudai itself. ``"local"``: a source file (or a
        folder) elsewhere. ``"compiled"``: elsewhere, without source. ``"missing"``: it cannot be imported by name.

    Examples
    --------
    >>> whereabouts("os.path"), whereabouts("no_such_module")
    ('installed', 'missing')
    """
    if name.partition(".")[0] in sys.stdlib_module_names | {__name__.partition(".")[0]}:
        return "installed"
    spec = _spec(name)
    if spec is None or name in _SESSION_MODULES:
        return "missing"
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
    if all(is_installed_file(place) for place in places):
        return "installed"
    return "local" if spec.origin is None or spec.origin.endswith(".py") or not spec.has_location else "compiled"


def _spec(name: str) -> ModuleSpec | None:
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if isinstance(loaded, ModuleSpec):
        return loaded
    parent, _, child = name.rpartition(".")
    try:
        if not parent:
            return importlib.util.find_spec(child)
        package = _spec(parent)
        return PathFinder.find_spec(name, list(package.submodule_search_locations or [])) if package else None
    except (ImportError, ValueError, AttributeError):  # what the finders raise for odd names and broken parents
        return None


def is_installed_file(file: str) -> bool:
    """Whether a file belongs to the standard library or to an installed package."""
    path = Path(file)
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or any(path.is_relative_to(root) for root in _roots())


@cache
def _roots() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    named = [paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple({Path(root) for root in [*named, *site.getsitepackages(), site.getusersitepackages()]})


@dataclass(frozen=True)
class Address:
    """Where the worker finds an object: ``module`` and the dotted name in it."""

    module: str
    qualname: str


def address_of(value: Any, hint: str = "") -> Address | None:
    """Find a name under which the worker can import `value`; None if there is none.

    Parameters
    ----------
    value : object
        Anything but a module.
    hint : str
        The name under which the user's code knows it.

    Examples
    --------
    >>> import collections
    >>> address_of(collections.OrderedDict)
    Address(module='collections', qualname='OrderedDict')
    >>> address_of(object()) is None
    True
    """
    own = _text(value, "__qualname__") or _text(value, "__name__")
    module = _text(value, "__module__")
    if isinstance(value, type | FunctionType) and whereabouts(module) == "missing":
        return None  # made in the notebook, under whatever other name a module may know it by now
    if module and own and "<" not in own and _importable(module) and _reach(module, own) is value:
        return Address(_public(module, own, value), own)
    for name in dict.fromkeys(part for part in (_text(value, "__name__"), hint) if part):
        found = [key for key, holder in list(sys.modules.items()) if _holds(holder, name, value) and _importable(key)]
        if found:
            return Address(min(found, key=_plainness), name)
    builtin = module == "builtins" and isinstance(value, type)  # such as the type of None, known by no name of its own
    return next((Address("types", name) for name, known in vars(types).items() if builtin and known is value), None)


def _public(module: str, qualname: str, value: Any) -> str:
    """Return the nearest package without a leading underscore that has the object too; else the module itself."""
    package = module
    while package:
        if not any(part.startswith("_") for part in package.split(".")) and _reach(package, qualname) is value:
            return package
        package = package.rpartition(".")[0]
    return module


def _importable(module: str) -> bool:
    return whereabouts(module) in ("installed", "local")


def _text(value: Any, attribute: str) -> str:
    try:
        text = getattr(value, attribute, None)
    except Exception:  # noqa: BLE001 - a proxy's own __getattr__ may raise anything
        return ""
    return text if isinstance(text, str) else ""


def _reach(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _holds(holder: Any, name: str, value: Any) -> bool:
    return isinstance(holder, ModuleType) and vars(holder).get(name) is value


def _plainness(module: str) -> tuple[bool, int, str]:
    """Order modules: public before private, near the root before deep."""
    return any(part.startswith("_") for part in module.split(".")), module.count("."), module


@dataclass(frozen=True)
class ImportedModule:
    """One module named by an import statement.

    Attributes
    ----------
    name : str
        Its absolute name.
    line : int
        Where the statement is.
    guarded : bool
        Whether the statement stands in a ``try``, so that the code can go on without the module.
    maybe : bool
        Whether it may as well be an attribute: ``x`` in ``from package import x``.
    """

    name: str
    line: int
    guarded: bool
    maybe: bool = False


def imports_in(tree: ast.AST, package: str = "", *, guarded: bool = False) -> Iterator[ImportedModule]:
    r"""Yield the modules that the import statements in `tree`, at any depth, name.

    Examples
    --------
    >>> [found.name for found in imports_in(ast.parse("import a.b\nfrom . import c"), package="p")]
    ['a.b', 'p', 'p.c']
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (ImportedModule(alias.name, node.lineno, guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield ImportedModule(base, node.lineno, guarded)
            names = (alias.name for alias in node.names if alias.name != "*")
            yield from (ImportedModule(f"{base}.{name}", node.lineno, guarded, maybe=True) for name in names)
        else:
            yield from imports_in(node, package, guarded=guarded or isinstance(node, ast.Try))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level or not package:
        return "." * node.level + (node.module or "")
    parents = package.split(".")
    kept = parents[: len(parents) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


@dataclass
class LocalModules:
    """The local modules that travel along, with all local modules that they import.

    Attributes
    ----------
    files : dict of str to bytes
        Path inside the bundle and content.
    compiled : dict of str to str
        Local modules without source that are needed, and who imports them.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    compiled: dict[str, str] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def add(self, name: str, importer: str) -> None:
        """Take the module `name`, its packages and its local imports; a module that is not local is left alone."""
        waiting = [(name, importer)]
        while waiting:
            name, importer = waiting.pop()
            if name in self._seen:
                continue
            self._seen.add(name)
            place = whereabouts(name)
            if place == "compiled":
                self.compiled[name] = importer
            elif place == "local":
                waiting += [(found, name) for found in self._take(name, importer)]

    def _take(self, name: str, importer: str) -> list[str]:
        """Copy one module and return what it needs besides."""
        parent = name.rpartition(".")[0]
        needed = [parent] if parent else []
        spec = _spec(name)
        if spec is None or not spec.has_location or not spec.origin:
            return needed  # a namespace package is a folder without a file
        try:
            content = Path(spec.origin).read_bytes()
        except OSError:  # it was deleted since, or lies in an archive
            self.compiled[name] = importer
            return needed
        is_package = spec.submodule_search_locations is not None
        self.files[name.replace(".", "/") + ("/__init__.py" if is_package else ".py")] = content
        return needed + _imported(content, name if is_package else parent)


def _imported(content: bytes, package: str) -> list[str]:
    try:
        return [found.name for found in imports_in(ast.parse(content), package)]
    except SyntaxError:  # a file for another Python, which nothing has imported so far
        return []
