"""Data that lies in files: what a user writes, what is checked before a run begins, and how a worker reads it.

The notebook looks only at names, sizes and the beginning of a file; a worker reads it. What it may read is pinned: each file
with its size and its ETag or time of change, so that an attempt that comes back reads the same rows, or none.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import psutil

from cloudai.artifacts.filesystems import filesystem, is_local
from cloudai.artifacts.patience import persist
from cloudai.display import nearest
from cloudai.errors import DataError
from cloudai.specs.training import Source, SourceFile
from cloudai.training import readers

__all__ = ["Survey", "Table", "check_reach", "check_unchanged", "choose", "place", "read", "survey"]

_FORMATS = {".csv": "csv", ".tsv": "", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
_LISTS = ("list", "int list")
_MOST_FILES = 10_000
_COUNTED_FILES = 32
"""Of so many parquet files the footers are read, so that the number of rows is known beforehand."""
_LARGE = 0.25
"""The share of the machine's memory from which on files are streamed."""
_VERSIONS = (
    "ETag",
    "Content-MD5",
    "Last-Modified",
    "etag",
    "md5",
    "sha256",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)
_SIGNED = re.compile(r"signature|token|credential|secret|password|api_?key|^sig$|accesskeyid", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """Rows in files, or in a Hugging Face dataset, and which columns are what.

    Parameters
    ----------
    source : str, path, sequence of them, or dataset
        A csv, jsonl or parquet file (csv and jsonl also as ``.gz``), a folder of such files, or a pattern such as
        ``"s3://bucket/days/*.parquet"``; by path or any fsspec URL. Or a `datasets.Dataset`.
    target : str
        The column to be predicted. It may be left out for a function that needs none.
    features : sequence of str, optional
        The columns that become the inputs, in this order; by default all others.
    text : str
        The column of texts that becomes the inputs, for models that take texts.
    stream : bool, optional
        Whether the rows are read while they are trained on, so that they need not fit into memory. By default where the
        files are larger than a quarter of this machine's memory. For modules trained by the built-in loop.

    Examples
    --------
    >>> Table("train.csv", target="label").target
    'label'
    """

    source: Any
    target: str = ""
    features: Sequence[str] | None = None
    text: str = ""
    stream: bool | None = None

    @property
    def in_files(self) -> bool:
        """Whether the rows lie in files."""
        return isinstance(self.source, str | Path) or (
            isinstance(self.source, list | tuple) and all(isinstance(part, str | Path) for part in self.source)
        )

    def absolute(self) -> Table:
        """Return the same table of files with full paths, for a process that works in another folder."""
        given = [self.source] if isinstance(self.source, str | Path) else self.source
        return replace(self, source=tuple(map(_address, given)))


@dataclass(frozen=True)
class Survey:
    """What is known of a table before it is read.

    Attributes
    ----------
    source : Source
        What a worker reads.
    rows : int
        0 where that is not known.
    widths : Mapping[str, int]
        Of columns of lists, where that is known.
    """

    source: Source
    rows: int
    widths: Mapping[str, int]


def survey(table: Table, *, integers: bool) -> Survey:
    """Look at what can be seen without reading the files: their names, sizes, columns and first rows.

    Raises
    ------
    DataError
        If there is no such file or column, or a column holds no numbers.
    StoreError
        If the place cannot be reached, or does not let us in.
    """
    files, form = _files(table)
    found = persist(lambda: readers.contents(files[0].path, form, files[0].size), place(files[0].path), 10.0)
    names = choose(table, found.kinds, files[0].path)
    kinds = {name: "text" if name == table.text else found.kinds[name] for name in names}
    inputs = names[:-1] if table.target else names
    integers = integers and all(kinds[name] in ("int", "int list") for name in inputs)
    stream = _is_large(files) if table.stream is None else table.stream
    source = Source.of(
        format=form, files=files, target=table.target, inputs=inputs, kinds=kinds, integers=integers, stream=stream
    )
    if found.first is not None:
        _check_first(found.first, kinds, files[0].path)
    return Survey(source, _rows(files, found.rows) if form == "parquet" else 0, found.widths)


def choose(table: Table, kinds: Mapping[str, str], where: str) -> list[str]:
    """Return the columns that are taken, the target last.

    Raises
    ------
    DataError
        If one does not exist, is named twice, or does not hold what is needed.
    """
    inputs = [table.text] if table.text else list(table.features) if table.features is not None else []
    inputs = inputs or [name for name in kinds if name != table.target]
    names = [*inputs, table.target] if table.target else inputs
    for name in names:
        if name not in kinds:
            raise DataError(f"{where} has no column {name!r}", fix=nearest(name, list(kinds)))
        if names.count(name) > 1:
            raise DataError(f"the column {name!r} is named twice", fix="the target is no feature: name each column once")
        is_class = bool(table.text) and name == table.target and kinds[name] == "text"  # of texts, classes may be names
        if name != table.text and not is_class and kinds[name] not in ("bool", "int", "float", *_LISTS):
            raise DataError(f"the column {name!r} of {where} holds {kinds[name]}", fix=_fix_of(name, table))
    if not inputs:
        raise DataError(f"{where} has no column beside {table.target!r}", fix="give a table with features")
    lists = [name for name in names if kinds[name] in _LISTS and (len(inputs) > 1 or name == table.target)]
    if lists:
        raise DataError(f"the column {lists[0]!r} of {where} holds lists", fix="pass it alone: features=[…] with its name")
    return names


def _is_large(files: Sequence[SourceFile]) -> bool:
    """Whether files may not fit into this machine's memory: parquet is compressed, and arrays are copied on their way."""
    return sum(file.size for file in files) > _LARGE * int(psutil.virtual_memory().total)


def _fix_of(name: str, table: Table) -> str:
    if name == table.target:
        return "number the classes from 0"
    return "encode it as numbers, or leave it out: name the columns to use in features=[…]"


def _files(table: Table) -> tuple[list[SourceFile], str]:
    """Find the files, each with what tells that it was changed; in the order given, and in a folder by name."""
    given = [table.source] if isinstance(table.source, str | Path) else list(table.source)
    if not given:
        raise DataError("there are no files", fix="give a path, a folder or a pattern")
    files = [file for path in given for file in _found(_address(path))]
    if len(files) > _MOST_FILES:
        raise DataError(f"there are {len(files):,} files", fix=f"write them as at most {_MOST_FILES:,} larger ones")
    forms = {_format(file.path) for file in files}
    if len(forms) > 1:
        raise DataError(f"the files are of several formats: {', '.join(sorted(forms))}", fix="give files of one format")
    return files, forms.pop()


def _address(path: str | Path) -> str:
    """Return a full path or URL, without anything secret in it: it is written into the run's record."""
    text = str(path)
    if is_local(text):
        return str(Path(text.partition("://")[2] if "://" in text else text).expanduser().absolute())
    parts = urlsplit(text)
    if "@" in parts.netloc or any(_SIGNED.search(key.rpartition("-")[2]) for key, _ in parse_qsl(parts.query)):
        fix = "give one without: credentials come from the environment and are never written down"
        raise DataError("the address of the data holds a password or a signature", fix=fix)
    if "::" in text:
        raise DataError(f"{text!r} is a chain of file systems", fix="give one URL, such as s3://bucket/train.parquet")
    return text


def _found(address: str) -> list[SourceFile]:
    fs, path = filesystem(address)
    infos = persist(lambda: _infos(fs, path, address), place(address), 10.0)
    scheme = "" if is_local(address) else address.partition("://")[0] + "://"
    names = [str(info["name"]) for info in infos]
    paths = [name if "://" in name else scheme + name for name in names]
    files = [
        SourceFile(path=path, size=int(info["size"] or 0), version=_version(info))
        for path, info in zip(paths, infos, strict=True)
    ]
    if not files:
        fix = "check the path; it may be a file, a folder of files or a pattern" + (", and the network" if scheme else "")
        raise DataError(f"there is no {address}", fix=fix)
    for file in files:
        _format(file.path)
    return files


def _infos(fs: Any, path: str, address: str) -> list[Mapping[str, Any]]:
    if any(mark in path for mark in "*[") or ("?" in path and is_local(address)):
        found = fs.glob(path, detail=True)
        shown = [name for name in sorted(found) if not name.rpartition("/")[2].startswith(".")]  # as in a shell
        return [found[name] for name in shown if found[name]["type"] == "file"]
    try:
        info = fs.info(path)
    except FileNotFoundError:
        return []
    if info["type"] == "file":
        return [info]
    below = fs.find(path, detail=True)
    return [info for name, info in sorted(below.items()) if _is_data(posixpath.relpath(name, path))]


def _is_data(name: str) -> bool:
    """Whether a file in a folder is one of rows: those of other programs begin with a dot or an underscore."""
    hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    return not hidden and bool(_FORMATS.get(_suffix(name)))


def _suffix(path: str) -> str:
    return posixpath.splitext(urlsplit(path).path.removesuffix(".gz") if "://" in path else path.removesuffix(".gz"))[1].lower()


def _format(path: str) -> str:
    form = _FORMATS.get(_suffix(path), "")
    if not form or (path.endswith(".gz") and form == "parquet"):
        name = path.rpartition("/")[2]
        raise DataError(f"{name!r} is no file of a known format", fix="give .csv, .jsonl (both also .gz) or .parquet")
    return form


def _version(info: Mapping[str, Any]) -> str:
    """Return what tells that a file was changed; empty where the place does not say."""
    return next((str(info[key]).strip('"') for key in _VERSIONS if info.get(key)), "")


def _rows(files: Sequence[SourceFile], first: int) -> int:
    if len(files) > _COUNTED_FILES:
        return 0
    others = [persist(lambda f=f: readers.contents(f.path, "parquet", f.size), place(f.path), 10.0) for f in files[1:]]  # type: ignore[misc]
    return first + sum(found.rows for found in others)


def _check_first(first: Any, kinds: Mapping[str, str], path: str) -> None:
    for name, kind in kinds.items():
        readers.column_array(first.column(name), name, kind, path)


def place(address: str) -> str:
    """Return what an error names: the bucket or the host, or the file itself."""
    return address if is_local(address) else "/".join(address.split("/")[:3])


def check_reach(source: Source, on: str) -> None:
    """Refuse files of this machine for a worker that runs elsewhere.

    Raises
    ------
    DataError
        If a file lies on this machine.
    """
    here = next((file.path for file in source.files if is_local(file.path)), None)
    if here is not None:
        fix = "copy it to a place that both can read, such as s3://bucket/…, and pass its URL"
        raise DataError(f"a worker on {on!r} cannot read {here}, which lies on this machine", fix=fix)


def read(source: Source, *, patience: float) -> dict[str, np.ndarray]:
    """Read what was surveyed, in the order of the files and their rows.

    Raises
    ------
    DataError
        If a file is not what it was, or holds something that is no number.
    StoreError
        If a place cannot be reached.
    """
    parts = []
    for file in source.files:
        check_unchanged(file, patience)
        part = persist(lambda f=file: readers.read_columns(f.path, source), place(file.path), patience)  # type: ignore[misc]
        check_unchanged(file, patience)  # also not while it was read
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in source.kinds}


def check_unchanged(file: SourceFile, patience: float) -> None:
    """Refuse a file that is not what it was when the run was asked for.

    Raises
    ------
    DataError
        If it was changed, or is gone.
    """
    fs, path = filesystem(file.path)
    try:
        info = persist(lambda: fs.info(path), place(file.path), patience)
    except FileNotFoundError:
        raise DataError(f"{file.path} is gone since the run was asked for", fix="put it back, or train again") from None
    if (int(info["size"] or 0), _version(info)) != (file.size, file.version):
        raise DataError(
            f"{file.path} was changed since the run was asked for",
            fix="train again: a run reads the same rows at every attempt, or none",
        )
