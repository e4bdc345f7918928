"""Columns of texts and what belongs to them, out of any of the forms that users have data in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloudai import texts
from cloudai.errors import DataError

__all__ = ["Column", "columns_of", "rows_of", "text_column"]


@dataclass(frozen=True)
class Column:
    """The values of a column, and what a Hugging Face dataset knows about them."""

    values: Any
    feature: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of classes that the values are numbers of, or the lists in it; empty where there are none."""
        feature = getattr(self.feature, "feature", None) or self.feature
        return tuple(map(str, getattr(feature, "names", None) or ()))


def columns_of(data: Any, wanted: Sequence[Sequence[str]], forms: str) -> list[Column]:
    """Take columns out of data.

    Parameters
    ----------
    data
        A tuple of so many columns, or a mapping, data frame, list of dicts, or one split of a Hugging Face dataset.
    wanted : sequence of sequences of str
        The names that each column may have; the first one that is there is taken.
    forms : str
        What data may be, for errors.

    Raises
    ------
    DataError
        If there is no data, or a column is not there.
    """
    if data is None:
        raise DataError("there is nothing to train on", fix=forms)
    if isinstance(data, tuple | list) and len(data) == len(wanted) and not isinstance(data[0], Mapping):
        return [Column(values) for values in data]
    if isinstance(data, list) and data and all(isinstance(row, Mapping) for row in data):
        data = {name: [row.get(name) for row in data] for name in data[0]}
    columns = data.column_names if hasattr(data, "column_names") else getattr(data, "columns", data)
    if isinstance(columns, Mapping) and hasattr(data, "column_names"):
        raise DataError("the dataset has several splits", fix=f"give one of them: data[{next(iter(columns), 'train')!r}]")
    if not isinstance(data, Mapping) and columns is data:
        raise DataError(f"data cannot be a {type(data).__name__}", fix=forms)
    features = getattr(data, "features", None)
    features = features if isinstance(features, Mapping) else {}
    names = [_named(list(columns), names, forms) for names in wanted]
    return [Column(data[name], features.get(name)) for name in names]


def _named(columns: Sequence[Any], wanted: Sequence[str], forms: str) -> Any:
    for name in wanted:
        if name in columns:
            return name
    raise DataError(f"the data has no column {wanted[0]!r}, but {', '.join(map(str, columns[:9]))}", fix=forms)


def text_column(given: Any, what: str = "text") -> np.ndarray:
    """Return texts as an array of objects, each of them checked.

    Raises
    ------
    DataError
        If there is none, or one is no text.
    """
    if isinstance(given, str):
        raise DataError(f"the {what}s are one text", fix="give a list of texts")
    if not hasattr(given, "__iter__"):
        raise DataError(f"the {what}s are a {type(given).__name__}", fix="give a list of texts")
    array = np.asarray(given if hasattr(given, "__array__") else list(given), dtype=object)
    if array.ndim != 1 or not len(array):
        raise DataError(f"the {what}s have the shape {list(array.shape)}", fix="give a list with at least one text")
    bad = texts.first_bad(array)
    if bad is not None:
        found = "half a character" if isinstance(bad[1], str) else repr(bad[1])[:40]
        raise DataError(f"{what} {bad[0]} is {found}, not a text", fix="drop or fill what is missing before training")
    return array.astype(object)


def rows_of(given: Any, what: str) -> list[list[Any]]:
    """Return lists, one for each row.

    Raises
    ------
    DataError
        If a row is no list.
    """
    rows = given.tolist() if hasattr(given, "tolist") else list(given)
    for place, row in enumerate(rows):
        if isinstance(row, str | Mapping) or not hasattr(row, "__iter__"):
            raise DataError(
                f"the {what} of row {place} are {repr(row)[:40]}, no list", fix=f"give a list of {what} for each row"
            )
    return [list(row) for row in rows]
