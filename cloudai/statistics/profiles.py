"""Profiles: what the columns of a data set looked like, small enough to keep and exact to merge."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cloudai.errors import DataError, IntegrityError, SpecError
from cloudai.statistics.columns import Column

__all__ = ["Profile", "columns_of"]

_FORMAT = 1
_MOST_STRANGERS = 100


@dataclass(frozen=True, eq=False, repr=False)
class Profile:
    """The histograms of named columns, on a grid that a reference has fixed.

    Attributes
    ----------
    rows : int
        Rows counted.
    columns : Mapping[str, Column]
        The columns of the reference, in its order.
    strangers : Mapping[str, int]
        Rows that came under a name, or with a kind of values, that the reference does not have: the alphabetically
        first 100 names.

    Examples
    --------
    >>> reference = Profile.of({"age": np.array([31.0, 45.0, 52.0]), "plan": np.array(["free", "pro", "free"])})
    >>> current = reference.empty().updated({"age": np.array([np.nan, 40.0]), "plan": np.array(["pro", "team"])})
    >>> current.rows, current.columns["age"].present, current.columns["plan"].present
    (2, 1, 2)
    >>> Profile.from_bytes(current.to_bytes()).merge(reference)
    Profile(rows=5, columns=2)
    """

    rows: int
    columns: Mapping[str, Column]
    strangers: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, columns: Mapping[str, ArrayLike]) -> Profile:
        """Profile a reference: fix the grid by its columns and count them.

        Parameters
        ----------
        columns : Mapping[str, array of shape (n,)]
            Numbers, booleans, dates or text. NaN, NaT and None are missing values. `columns_of` splits a matrix.

        Raises
        ------
        DataError
            If there is no column or no row, the lengths differ, or a column has another shape or dtype.
        """
        arrays, rows = _arrays(columns)
        if not rows:
            raise DataError("there is nothing to profile: no rows", fix="give at least one column with one row")
        return cls(rows, {name: Column.fit(array) for name, array in arrays.items()})

    def __repr__(self) -> str:
        return f"Profile(rows={self.rows}, columns={len(self.columns)})"

    def empty(self) -> Profile:
        """Return the same grid without rows, to count a current window on."""
        return Profile(0, {name: column.empty() for name, column in self.columns.items()})

    def updated(self, columns: Mapping[str, ArrayLike]) -> Profile:
        """Return the profile with the rows of `columns` added.

        A column that the reference does not have, or that holds another kind of values, is counted in `strangers`;
        one that is absent counts as missing.

        Raises
        ------
        DataError
            If the lengths differ, or a column has another shape or dtype than `of` takes.
        """
        arrays, rows = _arrays(columns)
        kept, strangers = dict(self.columns), {}
        for name, array in arrays.items():
            column = self.columns[name].updated(array) if name in self.columns else None
            if column is None:
                strangers[name] = rows
            else:
                kept[name] = column
        return Profile(self.rows + rows, kept, _merged_strangers(self.strangers, strangers))

    def merge(self, other: Profile) -> Profile:
        """Return the rows of both. Exact: any order and any grouping of merges gives the same bytes.

        Raises
        ------
        SpecError
            If the two are not on the same grid.
        """
        self.require_same_grid(other)
        columns = {name: column.merged(other.columns[name]) for name, column in self.columns.items()}
        return Profile(self.rows + other.rows, columns, _merged_strangers(self.strangers, other.strangers))

    def require_same_grid(self, other: Profile) -> None:
        """Raise `SpecError` unless both profiles come from one reference."""
        same = list(self.columns) == list(other.columns)
        if not same or not all(column.same_grid(other.columns[name]) for name, column in self.columns.items()):
            raise SpecError(
                "the two profiles are on different grids",
                fix="profile the reference with Profile.of, and everything else with reference.empty().updated(columns)",
            )

    def to_bytes(self) -> bytes:
        """Write the profile as safetensors; the same content gives the same bytes."""
        from safetensors.numpy import save

        tensors: dict[str, np.ndarray] = {}
        for index, column in enumerate(self.columns.values()):
            tensors[f"{index}.cells"] = column.cells
            tensors[f"{index}.counts"] = _narrowed(column.counts)
        columns = [_column_header(name, column) for name, column in self.columns.items()]
        header = {"format": _FORMAT, "rows": self.rows, "strangers": self.strangers, "columns": columns}
        tensors["header"] = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
        return save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Profile:
        """Read what `to_bytes` wrote.

        Raises
        ------
        IntegrityError
            If the bytes are not such a profile.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(data)
            header = json.loads(tensors["header"].tobytes())
            return _read(header, tensors)
        except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
            raise IntegrityError(
                f"the stored profile cannot be read: {error}", fix="profile the reference data again, or restore the file"
            ) from None


def columns_of(array: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Split an array with one row per example into named columns.

    Parameters
    ----------
    array : ndarray of shape (n,) or (n, …)
        All axes after the first are flattened, as for images.
    name : str
        The name of a single column, or the first part of ``name[0]``, ``name[1]``, ….

    Raises
    ------
    DataError
        If the array has no axis of rows.

    Examples
    --------
    >>> {name: column.tolist() for name, column in columns_of(np.array([[1, 2], [3, 4]]), "x").items()}
    {'x[0]': [1, 3], 'x[1]': [2, 4]}
    """
    array = np.asarray(array)
    if array.ndim == 0:
        raise DataError(f"{name!r} is a single value", fix="give one row per example; a single example needs array[None]")
    if array.ndim == 1:
        return {name: array}
    flat = array.reshape(len(array), math.prod(array.shape[1:]))
    return {f"{name}[{index}]": column for index, column in enumerate(np.ascontiguousarray(flat.T))}


def _arrays(columns: Mapping[str, ArrayLike]) -> tuple[dict[str, np.ndarray], int]:
    """Return the columns as arrays, and their common length."""
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    for name, array in arrays.items():
        if array.ndim != 1:
            raise DataError(f"the column {name!r} has shape {list(array.shape)}", fix="split it with columns_of(array, name)")
    rows = max((len(array) for array in arrays.values()), default=0)
    for name, array in arrays.items():
        if len(array) != rows:
            raise DataError(
                f"the column {name!r} has {len(array)} rows, another has {rows}", fix="give one value per row in each column"
            )
    return arrays, rows


def _merged_strangers(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    names = sorted({*one, *other})[:_MOST_STRANGERS]
    return {name: one.get(name, 0) + other.get(name, 0) for name in names}


def _narrowed(counts: np.ndarray) -> np.ndarray:
    return counts.astype(np.min_scalar_type(int(counts.max(initial=256))))


def _column_header(name: str, column: Column) -> dict[str, Any]:
    grid = {"kind": column.kind, "center": column.center, "scale": column.scale}
    return {"name": name, **grid, "rows": column.rows, "labels": {str(cell): text for cell, text in column.labels.items()}}


def _read(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Profile:
    _require(header["format"] == _FORMAT, f"its format is {header['format']!r}")
    columns = {}
    for index, entry in enumerate(header["columns"]):
        columns[str(entry["name"])] = _read_column(entry, tensors[f"{index}.cells"], tensors[f"{index}.counts"])
    _require(len(tensors) == 2 * len(columns) + 1, "columns are missing, or too many")
    strangers = {str(name): int(rows) for name, rows in header["strangers"].items()}
    rows = int(header["rows"])
    _require(all(column.rows <= rows for column in columns.values()), "a column has more rows than the profile")
    return Profile(rows, columns, strangers)


def _read_column(entry: Mapping[str, Any], cells: np.ndarray, counts: np.ndarray) -> Column:
    _require(entry["kind"] in ("numeric", "category"), f"unknown kind {entry['kind']!r}")
    center, scale = float(entry["center"]), float(entry["scale"])
    _require(math.isfinite(center) and 0 < scale < math.inf, "a centre or a scale is not a number")
    _require(cells.dtype == np.uint16 and cells.ndim == 1 and cells.shape == counts.shape, "cells and counts do not fit")
    _require(bool(np.all(cells[1:] > cells[:-1])), "cells are not increasing")
    _require(counts.dtype.kind == "u" and bool(np.all(counts.astype(np.int64) > 0)), "a count is not positive")
    labels = {int(cell): str(text) for cell, text in entry["labels"].items()}
    column = Column(entry["kind"], center, scale, int(entry["rows"]), cells, counts.astype(np.int64), labels)
    _require(0 <= column.present <= column.rows, "a column has more values than rows")
    return column


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)
