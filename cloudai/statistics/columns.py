"""One column of a profile: a histogram on a grid that its reference has fixed.

Numbers are counted in the 65 536 cells of bfloat16 after (x − centre) / scale, so that every cell is within 0.4 % of its
value, whatever the column's range, and an outlier only fills a cell of its own. Categories are counted in 4096 cells of a
hash. Neither grid looks at how often a value occurs: tests between two histograms on it keep their error rates, and
merging is adding.
"""

from __future__ import annotations

import math
import sys
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from numbers import Real
from typing import Any, Literal

import numpy as np

from cloudai.errors import DataError

__all__ = ["Column", "paired", "positions"]

Kind = Literal["numeric", "category"]

_CELLS = 1 << 16
_ZERO = _CELLS // 2
_ZERO_BAND = (127 - 12) << 7
"""bfloat16's bits of 2⁻¹²: closer to the centre than that many scales is the centre, which absorbs rounding noise."""
_CATEGORY_CELLS = 1 << 12
_MOST_LABELS = 256
_LABEL_LENGTH = 80
_FIT_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class Column:
    """The histogram of one column.

    Attributes
    ----------
    kind : {"numeric", "category"}
        Which of the two grids it is on.
    center, scale : float
        The grid of a numeric column, in its own units; 0 and 1 for categories.
    rows : int
        Rows in which the column was given, missing values included.
    cells : ndarray of uint16, shape (k,)
        The occupied cells, increasing; those of a numeric column in the order of its values.
    counts : ndarray of int64, shape (k,)
        Rows in each of them, at least 1.
    labels : Mapping[int, str]
        For up to 256 cells of categories the first of their values, shortened to 80 characters.

    Examples
    --------
    >>> column = Column.fit(np.array([1.0, 2.0, 3.0, np.nan, 9.0]))
    >>> column.rows, column.present, column.center, column.scale, positions(column.cells).tolist()
    (5, 4, 2.0, 1.0, [-1.0, 0.0, 1.0, 7.0])
    """

    kind: Kind
    center: float = 0.0
    scale: float = 1.0
    rows: int = 0
    cells: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    labels: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def fit(cls, array: np.ndarray) -> Column:
        """Fix the grid by `array`, shape (n,), and count it.

        The centre is the median and the scale the interquartile range, of a fixed sample of 65 536 rows where there are
        more. Where half of the values are one value, the scale is that value's own precision.

        Raises
        ------
        DataError
            If the dtype is neither numbers, booleans, dates nor text.
        """
        values = _present(array)
        if isinstance(values, Counter):
            return _added(cls("category"), values, len(array))
        return _added(cls("numeric", *_grid(values)), values, len(array))

    @property
    def present(self) -> int:
        """Rows with a value."""
        return int(self.counts.sum())

    def empty(self) -> Column:
        """Return the same grid without rows."""
        return replace(self, rows=0, cells=self.cells[:0], counts=self.counts[:0], labels={})

    def updated(self, array: np.ndarray) -> Column | None:
        """Return the column with the rows of `array`, shape (n,), added; ``None`` if they are not of its kind."""
        if self.kind == "numeric" and array.dtype.kind == "b":
            array = array.astype(np.float64)
        values = _present(array)
        fits = isinstance(values, Counter) == (self.kind == "category")
        anything = bool(values) if isinstance(values, Counter) else bool(values.size)
        if anything and not fits:
            return None
        return _added(self, values if anything else np.zeros(0), len(array))

    def merged(self, other: Column) -> Column:
        """Return both columns' rows on their common grid."""
        dense = _dense(self)
        dense[other.cells] += other.counts
        return _sparse(self, dense, self.rows + other.rows, _merged_labels(self.labels, other.labels))

    def same_grid(self, other: Column) -> bool:
        """Tell whether the two can be merged and compared."""
        return (self.kind, self.center, self.scale) == (other.kind, other.center, other.scale)


def paired(one: Column, other: Column) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cells that either occupies, increasing, and each one's counts in them, all of shape (k,)."""
    cells = np.union1d(one.cells, other.cells)
    counts = np.zeros((2, len(cells)), np.int64)
    for row, column in zip(counts, (one, other), strict=True):
        row[np.searchsorted(cells, column.cells)] = column.counts
    return cells, counts[0], counts[1]


def positions(cells: np.ndarray) -> np.ndarray:
    """Return where numeric cells lie, in scales from the centre; infinity as float32's largest number."""
    magnitude = np.abs(cells.astype(np.int32) - _ZERO).astype(np.uint32)
    size = (magnitude << 16).view(np.float32).astype(np.float64)
    return np.where(cells < _ZERO, -1.0, 1.0) * np.minimum(size, np.finfo(np.float32).max)


def _added(column: Column, values: np.ndarray | Counter[str], rows: int) -> Column:
    dense, labels = _dense(column), column.labels
    if isinstance(values, Counter):
        new = {}
        for label in sorted(values, reverse=True):
            cell = zlib.crc32(label.encode("utf-8", "surrogatepass")) % _CATEGORY_CELLS
            dense[cell] += values[label]
            new[cell] = label[:_LABEL_LENGTH]
        labels = _merged_labels(labels, new)
    elif values.size:
        dense += _numeric_counts(values, column.center, column.scale)
    return _sparse(column, dense, column.rows + rows, labels)


def _numeric_counts(values: np.ndarray, center: float, scale: float) -> np.ndarray:
    """Count values without NaN in each of the 65 536 cells, in the order of the values."""
    with np.errstate(over="ignore", under="ignore"):
        z = ((values - np.float64(center)) / scale).astype(np.float32)
    # Rounding to the nearest bfloat16, where its top 16 bits would round down, keeps round numbers away from the
    # cells' borders, so that the same column as float32 and as float64 fills the same cells.
    keys = (z.view(np.uint32) + np.uint32(0x8000)) >> 16
    by_bits = np.bincount(keys, minlength=_CELLS)
    ordered = np.concatenate([[0], by_bits[:_ZERO:-1], by_bits[:_ZERO]])  # sign and magnitude → increasing
    ordered[_ZERO] += by_bits[_ZERO]
    band = slice(_ZERO - _ZERO_BAND + 1, _ZERO + _ZERO_BAND)
    close = ordered[band].sum()
    ordered[band] = 0
    ordered[_ZERO] = close
    return ordered


def _grid(values: np.ndarray) -> tuple[float, float]:
    """Fit centre and scale by three order statistics, which one bad row cannot move far."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    if finite.size > _FIT_ROWS:
        finite = finite[np.random.default_rng(0).integers(0, finite.size, _FIT_ROWS)]
    last, quarter = finite.size - 1, finite.size // 4
    low, middle, high = quarter, last // 2, last - quarter
    part = np.partition(finite.astype(np.float64), (low, middle, high))
    center = float(part[middle])
    scale = 2 * min(float(part[high] / 2 - part[low] / 2), sys.float_info.max / 2)
    return center, scale or abs(center) * 2**-8 or 1e-9


def _present(array: np.ndarray) -> np.ndarray | Counter[str]:
    """Return the values that are not missing: as an array of numbers, or as counted texts."""
    match array.dtype.kind:
        case "i" | "u":
            return array
        case "f":
            missing = np.isnan(array)
            values: np.ndarray = array[~missing] if missing.any() else array
            return values if values.itemsize <= 8 else values.astype(np.float64)
        case "b":
            return Counter({str(value): int((array == value).sum()) for value in (True, False) if (array == value).any()})
        case "m" | "M":
            instants: np.ndarray = array[~np.isnat(array)].astype(f"{array.dtype.kind}8[us]").astype(np.int64)
            return instants
        case "U" | "S" | "O" | "T":
            return _present_objects(array.tolist())
    raise DataError(f"a column of dtype {array.dtype} cannot be profiled", fix="give numbers, booleans, dates or text")


def _present_objects(objects: list[Any]) -> np.ndarray | Counter[str]:
    if set(map(type, objects)) == {str}:
        return Counter(objects)
    values = [value for value in objects if not _is_missing(value)]
    if values and all(issubclass(kind, Real | Decimal) and not issubclass(kind, bool) for kind in set(map(type, values))):
        return np.array([_float(value) for value in values])
    return Counter(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _is_missing(value: Any) -> bool:
    """Tell None, NaN, NaT and pandas' NA, none of which equals itself."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError, ArithmeticError):
        return True


def _dense(column: Column) -> np.ndarray:
    dense = np.zeros(_CELLS, np.int64)
    dense[column.cells] = column.counts
    return dense


def _sparse(column: Column, dense: np.ndarray, rows: int, labels: Mapping[int, str]) -> Column:
    cells = np.flatnonzero(dense)
    return replace(column, rows=rows, cells=cells.astype(np.uint16), counts=dense[cells], labels=labels)


def _merged_labels(one: Mapping[int, str], other: Mapping[int, str]) -> dict[int, str]:
    """Keep each cell's first label and the first cells: this much of a union does not depend on the order of merging."""
    both = sorted({*one, *other})[:_MOST_LABELS]
    return {cell: min(labels[cell] for labels in (one, other) if cell in labels) for cell in both}
