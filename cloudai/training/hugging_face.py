"""Hugging Face datasets as columns: told by their module's name, so that nothing is imported for those who have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cloudai.errors import DataError
from cloudai.training.readers import check_column
from cloudai.training.tables import Table, choose

__all__ = ["columns_of", "is_dataset"]

_MOST_BYTES = 2 * 2**30
_TARGETS = ("label", "labels", "target", "targets")
_WHERE = "the dataset"


def is_dataset(data: Any) -> bool:
    """Whether something is a dataset, or a dict of datasets, of the package ``datasets``."""
    return type(data).__module__.partition(".")[0] == "datasets"


def columns_of(table: Table, *, texts: bool) -> tuple[dict[str, np.ndarray], list[str], str]:
    """Read the columns that are taken.

    Parameters
    ----------
    table : Table
        A dataset and the wishes; a target that is not named is the column with class labels, or one called "label".
    texts : bool
        Whether the inputs are the only column of texts.

    Returns
    -------
    dict of str to ndarray
        The columns by name.
    list of str
        The names of the inputs, in order.
    str
        The name of the target.

    Raises
    ------
    DataError
        If it is streamed, has several splits or no target, is too large, or a column does not hold what is needed.
    """
    dataset = _single(table.source)
    kinds = {name: _kind(feature) for name, feature in dataset.features.items()}
    target = table.target or _target(dataset.features)
    text = table.text or (_only_text(kinds, target) if texts and table.features is None else "")
    names = choose(Table(_WHERE, target, table.features, text), kinds, _WHERE)
    size = dataset.data.nbytes
    if size > _MOST_BYTES:
        fix = "write it with dataset.to_parquet(path) and pass cloudai.Table(path, …), which a worker reads"
        raise DataError(f"the dataset has {size / 2**30:.1f} GiB", fix=fix)
    if len(dataset) == 0:
        raise DataError("the dataset is empty", fix="give at least one row")
    found = dataset.select_columns(names).with_format("numpy")[:]
    columns = {name: _checked(name, found[name], is_text=name == text) for name in names}
    return columns, names[:-1], target


def _single(data: Any) -> Any:
    if isinstance(data, Mapping):
        if len(data) != 1:
            splits = ", ".join(map(repr, data))
            raise DataError(f"the dataset has the splits {splits}", fix=f"pass one of them: data[{next(iter(data), '')!r}]")
        data = next(iter(data.values()))
    if not hasattr(data, "select_columns") or not hasattr(data, "__len__"):
        raise DataError("the dataset is streamed", fix="load it without streaming=True")
    return data


def _kind(feature: Any) -> str:
    kind = type(feature).__name__
    dtype = str(getattr(feature, "dtype", ""))
    if kind == "ClassLabel":
        return "int"
    if kind == "Value":
        starts = {"int": "int", "uint": "int", "float": "float", "decimal": "float", "bool": "bool", "string": "text"}
        starts["large_string"] = "text"
        return next((found for start, found in starts.items() if dtype.startswith(start)), dtype)
    if kind in ("List", "LargeList", "Sequence") or kind.startswith("Array"):
        inner = getattr(feature, "feature", None)
        return "list" if inner is None or _kind(inner) in ("int", "float", "bool", "list") else f"lists of {_kind(inner)}"
    return kind


def _target(features: Mapping[str, Any]) -> str:
    labels = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if len(labels) == 1:
        return labels[0]
    named = [name for name in features if name in _TARGETS]
    if len(named) == 1:
        return named[0]
    raise DataError(
        f"which column of the dataset is the target? It has {', '.join(map(repr, features))}",
        fix="say it: cloudai.Table(dataset, target=…)",
    )


def _only_text(kinds: Mapping[str, str], target: str) -> str:
    found = [name for name, kind in kinds.items() if kind == "text" and name != target]
    if len(found) != 1:
        listed = ", ".join(map(repr, found)) or "none"
        raise DataError(
            f"which column of the dataset holds the texts? There is: {listed}", fix="say it: cloudai.Table(dataset, text=…)"
        )
    return found[0]


def _checked(name: str, column: Any, *, is_text: bool) -> np.ndarray:
    array = np.asarray(column)
    if is_text:
        return np.asarray([value or "" for value in array.tolist()], dtype=object)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"the rows of the column {name!r} have different lengths, or none", fix="give lists of equal length without None"
        )
    return check_column(name, array, _WHERE)
