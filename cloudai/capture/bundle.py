"""Code as a value: source files and the objects in them that were asked for, addressed by their content.

A bundle holds nothing but source text. It is never pickled, and reading one from a store checks it strictly.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import json
import os
import re
import stat
import sys
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType, ModuleType
from typing import Any

from cloudai.display import Card, Shown, Table
from cloudai.errors import IntegrityError
from cloudai.files import private_folder

__all__ = ["INNER_PREFIX", "MAIN_PREFIX", "Bundle", "carries", "code_folder", "loaded", "resolve"]

MAIN_PREFIX = "cloudai_work_"
"""How the module made of notebook code is called; 8 hexadecimal digits of its content follow."""

INNER_PREFIX = "_cloudai_"
"""How names in it begin that no user's code knows."""

_MANIFEST = "bundle.json"
_MOST_BYTES = 64 * 2**20
_MOST_FILES = 10_000
_LONGEST_PATH = 240
_EPOCH = (1980, 1, 1, 0, 0, 0)
_FIX = "capture the code again; do not edit bundles"


@dataclass(frozen=True, repr=False)
class Bundle(Shown):
    """Captured code.

    Attributes
    ----------
    files : Mapping[str, bytes]
        Source files by their path, such as ``"helpers/__init__.py"``.
    entries : Mapping[str, str]
        Where each object that was asked for is found, as ``"module:qualname"``, by its qualified name and in the order asked.

    Raises
    ------
    IntegrityError
        If a path could leave the folder it is unpacked into, or collides with another.

    Examples
    --------
    >>> bundle = Bundle({"work.py": b"def f(): return 1"}, {"f": "work:f"})
    >>> Bundle.from_zip(bundle.to_zip()) == bundle
    True
    """

    files: Mapping[str, bytes]
    entries: Mapping[str, str]

    def __post_init__(self) -> None:
        _check_paths(self.files)
        _check_sizes(len(content) for content in self.files.values())
        _check_entries(self.entries)
        object.__setattr__(self, "files", MappingProxyType(dict(sorted(self.files.items()))))
        object.__setattr__(self, "entries", MappingProxyType(dict(self.entries)))

    def __repr__(self) -> str:
        return f"Bundle({self.digest[:12]!r}, files={len(self.files)}, entries={list(self.entries)})"

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the content, in hexadecimal; the same on every machine."""
        parts = [self._manifest(), *(part for path, content in self.files.items() for part in (path.encode(), content))]
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()

    def to_zip(self) -> bytes:
        """Return a zip that depends on nothing but the content: sorted, stored, with one fixed time stamp."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for path, content in {_MANIFEST: self._manifest(), **self.files}.items():
                info = zipfile.ZipInfo(path, _EPOCH)
                info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                archive.writestr(info, content)
        return stream.getvalue()

    @classmethod
    def from_zip(cls, data: bytes) -> Bundle:
        """Read what `to_zip` wrote.

        Raises
        ------
        IntegrityError
            If it is no such zip: damaged, too large, compressed, or with paths, links or duplicates that `to_zip` never
            writes.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                infos = archive.infolist()
                _check_members(infos)
                contents = {info.filename: archive.read(info) for info in infos}
            manifest = json.loads(contents.pop(_MANIFEST))
            if manifest["format"] != 1:
                raise IntegrityError(f"the bundle has format {manifest['format']!r}", fix="update cloudai")
            return cls(contents, manifest["entries"])
        except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError) as error:
            raise IntegrityError(f"this is no code bundle: {error}", fix=_FIX) from error

    def _manifest(self) -> bytes:
        return json.dumps({"format": 1, "entries": dict(self.entries)}, ensure_ascii=True, separators=(",", ":")).encode()

    def report(self) -> Card:
        """Describe what was captured: names, where they are from, sizes, and what is imported."""
        rows = [row for path, content in self.files.items() for row in _rows(path, content)]
        size = sum(len(content) for content in self.files.values())
        return Card(
            title=f"code bundle {self.digest[:12]}",
            facts=[("entries", ", ".join(self.entries.values())), ("size", f"{size:,} bytes in {len(self.files)} files")],
            tables=[Table(("name", "kind", "from", "bytes"), rows)] if rows else [],
            notes=[f"imports: {', '.join(self._imports())}"],
        )

    def card(self) -> Card:
        """Return the `report`."""
        return self.report()

    def _imports(self) -> list[str]:
        """Return the modules outside the bundle that its files import."""
        nodes = [node for content in self.files.values() for node in ast.walk(ast.parse(content))]
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
        return sorted(name for name in names - {"__future__"} if name.partition(".")[0] not in _tops(self.files))


def _rows(path: str, content: bytes) -> Iterator[tuple[str, str, str, str]]:
    if not path.startswith(MAIN_PREFIX):
        yield path.removesuffix(".py").replace("/", "."), "module", "a local file", f"{len(content):,}"
        return
    for statement in ast.parse(content).body:
        size = f"{len(ast.get_source_segment(content.decode(), statement) or ''):,}"
        held = isinstance(statement, ast.FunctionDef) and statement.name.startswith(f"{INNER_PREFIX}make_")
        node = statement.body[0] if held and isinstance(statement, ast.FunctionDef) else statement
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield re.sub(rf"^{INNER_PREFIX}\d+_", "", node.name), kind, "the notebook", size
        elif isinstance(node, ast.Assign) and not ast.unparse(node.targets[0]).startswith(INNER_PREFIX):
            yield ast.unparse(node.targets[0]), "value", "the notebook", size


def _check_members(infos: Iterable[zipfile.ZipInfo]) -> None:
    infos = list(infos)
    _check_sizes(info.file_size for info in infos)
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise IntegrityError("the bundle holds a path twice", fix=_FIX)
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 0x1:
            raise IntegrityError(f"{info.filename!r} is compressed or encrypted, bundles are stored plainly", fix=_FIX)
        if info.filename.endswith("/") or not stat.S_ISREG(info.external_attr >> 16):
            raise IntegrityError(f"{info.filename!r} is not a plain file", fix=_FIX)
        if info.orig_filename != info.filename:
            raise IntegrityError(f"{info.orig_filename!r} is not a plain path", fix=_FIX)


def _check_sizes(sizes: Iterable[int]) -> None:
    sizes = list(sizes)
    if len(sizes) > _MOST_FILES or sum(sizes) > _MOST_BYTES:
        raise IntegrityError(
            f"the bundle has {len(sizes)} files of {sum(sizes):,} bytes; at most {_MOST_FILES} of {_MOST_BYTES:,} are code",
            fix="keep data out of the code: pass it as data=",
        )


def _check_paths(paths: Iterable[str]) -> None:
    """Refuse whatever could leave the folder, hide another file, or mean something else on another file system."""
    taken: set[str] = set()
    for path in paths:
        parts = path.split("/")
        plain = all(part.isprintable() and part == part.strip() and part.strip(".") for part in parts)
        if not plain or set(path) & set('\\:*?"<>|') or len(path) > _LONGEST_PATH or not path.endswith(".py"):
            raise IntegrityError(f"{path!r} is not a path of a source file", fix=_FIX)
        folded = unicodedata.normalize("NFKC", path).casefold()
        if folded in taken:
            raise IntegrityError(f"{path!r} collides with another path", fix=_FIX)
        taken.add(folded)
    for path in taken:
        if any(str(parent) in taken for parent in PurePosixPath(path).parents):
            raise IntegrityError(f"{path!r} lies inside another file", fix=_FIX)


def _check_entries(entries: Mapping[str, str]) -> None:
    if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
        raise IntegrityError("the entries of a bundle are names and locations", fix=_FIX)
    for location in entries.values():
        _split(location)


def _split(location: str) -> tuple[str, list[str]]:
    """Split ``module:qualname`` into the module and the attributes to follow."""
    module, colon, qualname = location.partition(":") if isinstance(location, str) else ("", "", "")
    parts = qualname.split(".")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), *parts]):
        raise IntegrityError(f"{location!r} is not a location", fix="write module:qualname")
    return module, parts


def _tops(files: Iterable[str]) -> set[str]:
    """Return the top-level modules that files make."""
    return {path.partition("/")[0].removesuffix(".py") for path in files}


@dataclass(frozen=True, eq=False)
class _Loaded:
    root: str
    tops: frozenset[str]
    aside: dict[str, ModuleType] = field(default_factory=dict)

    def enter(self) -> None:
        """Put the bundle's files before all others; modules of the same names that others loaded step aside."""
        self.aside.update(self._take())
        sys.path.insert(0, self.root)
        importlib.invalidate_caches()
        _active.append(self)

    def leave(self) -> None:
        _active.remove(self)
        sys.path.remove(self.root)
        mine = self._take()
        # A main module's name is its content: left in place, it does no harm and typing and inspect find it.
        sys.modules.update({name: module for name, module in mine.items() if name.startswith(MAIN_PREFIX)} | self.aside)

    def _take(self) -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in self.tops]
        return {name: sys.modules.pop(name) for name in names}


_active: list[_Loaded] = []


@contextmanager
def loaded(bundle: Bundle | bytes, folder: str | Path) -> Iterator[Path]:
    """Make a bundle's code importable while the context is open.

    Keep it open as long as the code may still import its own local modules: for the life of a worker. Not safe while other
    threads import.

    Parameters
    ----------
    bundle : Bundle or bytes
        The bundle, or its zip.
    folder : str or Path
        Where to unpack; each bundle gets a folder of its own there.

    Yields
    ------
    Path
        The folder with the source files.

    Raises
    ------
    IntegrityError
        If the zip is not what `Bundle.to_zip` writes.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.from_zip(bundle)
    root = Path(folder).resolve() / bundle.digest[:16]
    for path, content in bundle.files.items():
        target = root / path
        private_folder(target.parent)
        target.write_bytes(content)
    private_folder(root)
    code = _Loaded(str(root), frozenset(_tops(bundle.files)))
    code.enter()
    try:
        yield root
    finally:
        code.leave()


@contextmanager
def code_folder() -> Iterator[Path]:
    """Yield the folder where code is unpacked: in the process's own folder where its driver gave it one."""
    own = os.environ.get("CLOUDAI_SCRATCH")
    if own is not None:
        yield Path(own) / "code"  # it goes when the process's folder goes, also after a kill
        return
    with tempfile.TemporaryDirectory(prefix="cloudai-code-") as folder:
        yield Path(folder)


def carries(location: str) -> bool:
    """Whether ``module:qualname`` lies in a bundle that is `loaded` now."""
    top = location.partition(":")[0].partition(".")[0]
    return any(top in code.tops for code in _active)


def resolve(location: str) -> Any:
    """Return the object at ``module:qualname``, in a loaded bundle or in an installed package.

    Raises
    ------
    IntegrityError
        If there is no such object, or it lies in the standard library: no entry of ours ever does.

    Examples
    --------
    >>> resolve("os:system")
    Traceback (most recent call last):
        ...
    cloudai.errors.IntegrityError: 'os:system' lies in the standard library, not in captured code
    Fix: capture the code again; do not edit bundles
    """
    module, parts = _split(location)
    if module.partition(".")[0] in sys.stdlib_module_names and not carries(location):
        raise IntegrityError(f"{location!r} lies in the standard library, not in captured code", fix=_FIX)
    try:
        found: Any = importlib.import_module(module)
        for part in parts:
            found = getattr(found, part)
            if isinstance(found, ModuleType):
                raise IntegrityError(f"{location!r} leads into another module", fix=_FIX)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name not in _with_parents(module):
            raise  # the module is there; what it imports is not
        raise IntegrityError(f"there is no {location!r}", fix="install the package it is in, or " + _FIX) from error
    return found


def _with_parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
