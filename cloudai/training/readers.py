"""Columns out of csv, jsonl and parquet files, read with pyarrow: what a file holds, and its columns as arrays."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloudai.artifacts.filesystems import filesystem
from cloudai.errors import DataError, MissingExtraError
from cloudai.specs.training import Source

__all__ = ["Contents", "check_column", "chunks", "column_array", "contents", "group_sizes", "read_columns"]

_PEEK = 2**20
"""Bytes of a csv or jsonl file from which its columns are told, before a worker reads it whole."""
_BLOCK = 2**24  # bytes; one row must fit in
_STREAMED = 2**22  # bytes of a csv or jsonl file that are taken apart together, while it is streamed; one row must fit in


@dataclass(frozen=True)
class Contents:
    """What a file holds, told from its beginning or its footer.

    Attributes
    ----------
    kinds : Mapping[str, str]
        For each column "bool", "int", "float", "text", "list", "int list", or in words what else.
    widths : Mapping[str, int]
        How many values a row of a column of lists has, where that is known.
    rows : int
        How many rows there are; 0 where that is not known without reading them.
    first : Mapping[str, ndarray]
        The first rows of a csv or jsonl file.
    """

    kinds: Mapping[str, str]
    widths: Mapping[str, int]
    rows: int
    first: Any = None


def contents(path: str, form: str, size: int) -> Contents:
    """Tell what a file holds, without reading it whole.

    Raises
    ------
    DataError
        If it is not such a file, or is empty.
    MissingExtraError
        If pyarrow is not installed.
    """
    pa = _pyarrow()
    fs, inner = filesystem(path)
    try:
        if form == "parquet":
            from pyarrow import parquet

            with fs.open(inner, "rb") as file:
                found = parquet.ParquetFile(file)
                return _described(found.schema_arrow, found.metadata.num_rows, None)
        data = _beginning(bytes(fs.cat_file(inner, start=0, end=min(size, _PEEK))), path, whole=size <= _PEEK)
        table = _read_csv(data, None, peek=True) if form == "csv" else _read_jsonl(data, None)
    except (pa.ArrowInvalid, zlib.error) as error:
        raise _unreadable(path, form, error) from None
    return _described(table.schema, 0, table)


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtraError("files of data are read with pyarrow", fix='pip install "cloudai[data]"') from None
    return pa


def _beginning(data: bytes, path: str, *, whole: bool) -> bytes:
    """Return the whole lines at the beginning of a file."""
    if path.endswith(".gz"):
        unpacker = zlib.decompressobj(31)
        data = unpacker.decompress(data, 4 * _PEEK)
        whole = whole and unpacker.eof
    return data if whole else data[: data.rfind(b"\n") + 1] or data


def _described(schema: Any, rows: int, first: Any) -> Contents:
    doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if doubled:
        raise DataError(f"there are two columns named {doubled[0]!r}", fix="give each column a name of its own")
    kinds = {field.name: _kind(field.type) for field in schema}
    widths = {field.name: int(field.type.list_size) for field in schema if str(field.type).startswith("fixed_size_list")}
    return Contents(kinds, widths, rows, first)


def _kind(arrow: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(arrow):
        return _kind(arrow.value_type)
    if types.is_list(arrow) or types.is_large_list(arrow) or types.is_fixed_size_list(arrow):
        kinds = {"int": "int list", "float": "list", "bool": "list"}
        return kinds.get(_kind(arrow.value_type), f"lists of {arrow.value_type}")
    tests = {
        "bool": types.is_boolean,
        "int": types.is_integer,
        "float": lambda t: types.is_floating(t) or types.is_decimal(t),
        "text": lambda t: types.is_string(t) or types.is_large_string(t),
        "float ": types.is_null,  # nothing in it so far: what comes, if anything, is told when it is read
    }
    return next((kind.strip() for kind, test in tests.items() if test(arrow)), str(arrow))


def _types(source: Source) -> dict[str, Any]:
    """Return the type that each column is read as.

    A number that looked like an integer at first may be 0.5 later: it is read as a float, unless integers are needed.
    """
    pa = _pyarrow()
    number = pa.int64() if source.integers else pa.float64()
    types = {"bool": pa.bool_(), "int": number, "float": pa.float64(), "text": pa.string(), "list": pa.list_(pa.float64())}
    types["int list"] = pa.list_(number)
    types = {name: types[kind] for name, kind in source.kinds.items()}
    if types.get(source.target) == pa.int64():
        types[source.target] = pa.float64()
    return types


def read_columns(path: str, source: Source) -> dict[str, np.ndarray]:
    """Read the columns of one file, checked.

    Raises
    ------
    DataError
        If a column is missing, a value is missing, infinite or no number: with the column and the first row.
    """
    pa = _pyarrow()
    fs, inner = filesystem(path)
    types, data = _types(source), b""
    try:
        if source.format == "parquet":
            table = _read_parquet(fs, inner, path, list(types))
        else:
            data = bytes(fs.cat_file(inner))
            data = zlib.decompress(data, 31) if path.endswith(".gz") else data
            table = _read_csv(data, types) if source.format == "csv" else _read_jsonl(data, types)
    except (pa.ArrowInvalid, KeyError, zlib.error) as error:
        raise _misfit(error, data, path) or _unreadable(path, source.format, error) from None
    return {name: column_array(table.column(name), name, kind, path) for name, kind in source.kinds.items()}


def group_sizes(path: str) -> list[int]:
    """Return how many rows each row group of a parquet file has.

    Raises
    ------
    DataError
        If it is not such a file.
    """
    pa = _pyarrow()
    from pyarrow import parquet

    fs, inner = filesystem(path)
    try:
        with fs.open(inner, "rb") as file:
            found = parquet.ParquetFile(file).metadata
            return [found.row_group(group).num_rows for group in range(found.num_row_groups)]
    except pa.ArrowInvalid as error:
        raise _unreadable(path, "parquet", error) from None


def chunks(path: str, source: Source, group: int, rows: int) -> Iterator[Any]:
    """Read a file, or one row group of it, in tables of so many rows; only the last one has fewer.

    Raises
    ------
    DataError
        If a column is missing, or holds something that is no number.
    """
    pa = _pyarrow()
    fs, inner = filesystem(path)
    types = _types(source)
    try:
        with fs.open(inner, "rb") as file:
            if source.format == "parquet":
                yield from _even(_parquet_tables(file, path, list(types), group, rows), rows)
                return
            tables = _csv_tables if source.format == "csv" else _jsonl_tables
            with gzip.open(file) if path.endswith(".gz") else contextlib.nullcontext(file) as plain:
                yield from _even(tables(plain, types), rows)
    except (pa.ArrowInvalid, KeyError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        head = (
            b"" if source.format == "parquet" else _beginning(bytes(fs.cat_file(inner, start=0, end=_PEEK)), path, whole=False)
        )
        raise _misfit(error, head, path) or _unreadable(path, source.format, error) from None


def _even(tables: Iterator[Any], rows: int) -> Iterator[Any]:
    """Cut tables of any length into tables of one."""
    import pyarrow as pa

    left: list[Any] = []
    for table in tables:
        left.append(table)
        while sum(map(len, left)) >= rows:
            whole = pa.concat_tables(left)
            yield whole.slice(0, rows)
            left = [whole.slice(rows)]
    if sum(map(len, left)):
        yield pa.concat_tables(left)


def _parquet_tables(file: Any, path: str, names: list[str], group: int, rows: int) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    found = parquet.ParquetFile(file)
    _check_names(found, names, path)
    for batch in found.iter_batches(batch_size=rows, row_groups=[group], columns=names):
        yield pa.Table.from_batches([batch])


def _csv_tables(file: Any, types: Mapping[str, Any]) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import csv as arrow

    convert = arrow.ConvertOptions(column_types=dict(types), include_columns=list(types))
    parse = arrow.ParseOptions(newlines_in_values=True)
    for batch in arrow.open_csv(file, arrow.ReadOptions(block_size=_STREAMED), parse, convert):
        yield pa.Table.from_batches([batch])


def _jsonl_tables(file: Any, types: Mapping[str, Any]) -> Iterator[Any]:
    left = b""
    while block := file.read(_STREAMED):
        lines, newline, left = (left + block).rpartition(b"\n")
        if newline:
            yield _read_jsonl(lines + newline, types)
    if left.strip():
        yield _read_jsonl(left, types)


def _check_names(found: Any, names: list[str], path: str) -> None:
    for name in names:
        if name not in found.schema_arrow.names:
            raise DataError(f"{path} has no column {name!r}", fix="give files that have the same columns")


def _read_parquet(fs: Any, inner: str, path: str, names: list[str]) -> Any:
    from pyarrow import parquet

    with fs.open(inner, "rb") as file:
        found = parquet.ParquetFile(file)
        _check_names(found, names, path)
        return found.read(columns=names)


def _read_csv(data: bytes, types: Mapping[str, Any] | None, *, peek: bool = False) -> Any:
    from pyarrow import csv as arrow

    convert = arrow.ConvertOptions(column_types=dict(types or {}), include_columns=list(types or {}))
    # a row that the end of the sample cuts is left out; a row of the file that is broken is an error
    parse = arrow.ParseOptions(newlines_in_values=True, invalid_row_handler=(lambda row: "skip") if peek else None)
    return arrow.read_csv(io.BytesIO(data), arrow.ReadOptions(block_size=_BLOCK), parse, convert)


def _read_jsonl(data: bytes, types: Mapping[str, Any] | None) -> Any:
    import pyarrow as pa
    from pyarrow import json

    schema = pa.schema(list(types.items())) if types is not None else None
    behaviour = "infer" if types is None else "ignore"
    parse = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=behaviour)
    return json.read_json(io.BytesIO(data), json.ReadOptions(block_size=_BLOCK), parse)


def _misfit(error: Exception, data: bytes, path: str) -> DataError | None:
    """Return the error for a value that is no number, with the name of its column; None where it is another error."""
    found = re.search(r"CSV column #(\d+): .* invalid value '(.*)'", str(error))
    if found is None:
        return None
    header = next(csv.reader(io.StringIO(data[:_PEEK].decode(errors="replace"))))
    return DataError(
        f"the column {header[int(found[1])]!r} of {path} holds {found[2]!r}, which is no number",
        fix="mend the file, or leave the column out: name the columns to use in features=[…]",
    )


def _unreadable(path: str, form: str, error: Exception) -> DataError:
    text = str(error.args[0]).split("\n")[0]
    if "Empty" in text:
        return DataError(f"{path} is empty", fix="give a file with rows")
    fix = "every value of a column must be of the same kind: mend the file, or leave the column out with features=[…]"
    if re.search("parser got out of sync|Expected \\d+ columns|UTF8|Magic|magic", text):
        fix = f"give a {form} file in UTF-8, whose rows all have the same columns" if form != "parquet" else "write it anew"
    return DataError(f"{path} cannot be read as {form}: {text}", fix=fix)


def column_array(column: Any, name: str, kind: str, path: str) -> np.ndarray:
    """Return a column as an array: [rows], or [rows, width] for one of lists.

    Raises
    ------
    DataError
        If a value is missing or infinite, or lists have different lengths.
    """
    from pyarrow import compute, types

    if not len(column):
        return np.empty((0, 1) if kind in ("list", "int list") else 0)
    if kind == "text":
        return np.asarray([value or "" for value in column.to_pylist()], dtype=object)
    if column.null_count:
        raise _missing(name, column.null_count, int(compute.index(compute.is_null(column), True).as_py()), path)
    if kind in ("list", "int list"):
        return _matrix(column.combine_chunks(), name, path)
    if types.is_decimal(column.type):
        column = column.cast("float64")
    array: np.ndarray = column.to_numpy()
    return check_column(name, array, path)


def _matrix(column: Any, name: str, path: str) -> np.ndarray:
    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    values = column.flatten().to_numpy(zero_copy_only=False)
    lengths = np.asarray(column.value_lengths()) if hasattr(column, "value_lengths") else np.array([])
    if len(lengths) and (lengths != lengths[0]).any():
        row = int(np.argmax(lengths != lengths[0]))
        raise DataError(
            f"the column {name!r} has {lengths[0]} values in its first row and {lengths[row]} in row {row + 1} of {path}",
            fix="give lists of equal length",
        )
    return check_column(name, values.reshape(len(column), -1), path)


def check_column(name: str, array: np.ndarray, where: str) -> np.ndarray:
    """Return a column of numbers whose every value is a finite number.

    Raises
    ------
    DataError
        If one is missing or infinite: with how many, and the first row, counted from 1.
    """
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            raise _missing(name, int(bad.sum()), int(np.argmax(bad)), where)
    return array


def _missing(name: str, count: int, row: int, where: str) -> DataError:
    values = "a value" if count == 1 else f"{count} values"
    return DataError(
        f"the column {name!r} has {values} missing or infinite, the first in row {row + 1} of {where}",
        fix="drop or fill them before training",
    )
