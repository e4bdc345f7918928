"""What a user gives as data, as checked arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloudai.errors import DataError

__all__ = ["TrainingData", "parse_data"]

_MOST_BYTES = 2 * 2**30
_FORMS = "give (inputs, targets) as arrays or data frames, a dict with both, or a torch dataset of such pairs"


@dataclass(frozen=True)
class TrainingData:
    """Checked arrays, one row per example.

    Attributes
    ----------
    arrays : Mapping[str, ndarray]
        ``inputs`` and, where there are any, ``targets``.
    features : tuple of str
        The names of the inputs' columns, where they have names.
    """

    arrays: Mapping[str, np.ndarray]
    features: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How many examples there are."""
        return len(self.arrays["inputs"])


def parse_data(data: Any, *, integers: bool = False) -> TrainingData:
    """Read data in any of the forms that users have it in.

    Parameters
    ----------
    data
        ``(inputs, targets)`` or ``{"inputs": …, "targets": …}`` of arrays, tensors, lists or data frames, or a map-style
        torch dataset of ``(input, target)`` pairs, which is read once, now.
    integers : bool
        Whether integer inputs stay integers, as an embedding needs; else they become float32.

    Raises
    ------
    DataError
        If there is no row, lengths differ, a value is NaN or infinite, or a dtype is not numeric.
    """
    if isinstance(data, Mapping):
        unknown = set(data) - {"inputs", "targets"}
        if unknown or "inputs" not in data:
            raise DataError(f"the data has the parts {sorted(map(str, data))}", fix="call them 'inputs' and 'targets'")
        parts = dict(data)
    elif isinstance(data, tuple | list) and len(data) == 2:
        parts = {"inputs": data[0], "targets": data[1]}
    elif (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not hasattr(data, "dtype")
        and not hasattr(data, "columns")
    ):
        parts = _from_dataset(data)
    else:
        raise DataError(f"data cannot be a {type(data).__name__}", fix=_FORMS)
    features = tuple(map(str, getattr(parts["inputs"], "columns", ())))
    arrays = {name: _array(name, part) for name, part in parts.items()}
    _check_lengths(arrays)
    for name, array in arrays.items():
        _check_values(name, array, features if name == "inputs" else ())
    return TrainingData({name: _converted(name, array, integers) for name, array in arrays.items()}, features)


def _from_dataset(dataset: Any) -> dict[str, Any]:
    """Read a map-style dataset row by row."""
    if len(dataset) == 0:
        raise DataError("the data is empty", fix="give at least one row")
    first = dataset[0]
    if not isinstance(first, tuple | list) or len(first) != 2:
        raise DataError(f"the dataset's rows are {type(first).__name__}s, not (input, target) pairs", fix=_FORMS)
    size = sum(np.asarray(part).nbytes for part in first) * len(dataset)
    if size > _MOST_BYTES:
        fix = "train with a function of the context, and load the data inside it"
        raise DataError(f"the dataset would take {size / 2**30:.1f} GiB of memory", fix=fix)
    rows = [dataset[i] for i in range(len(dataset))]
    return {"inputs": [np.asarray(row[0]) for row in rows], "targets": [np.asarray(row[1]) for row in rows]}


def _array(name: str, part: Any) -> np.ndarray:
    if hasattr(part, "detach"):
        part = part.detach().cpu().numpy()
    elif hasattr(part, "to_numpy"):
        part = part.to_numpy()
    try:
        array = np.asarray(part)
    except ValueError as error:
        raise DataError(f"the {name} are not an array: {error}", fix="give rows of equal shape") from None
    if array.dtype.kind not in "biuf":
        sample = array.ravel()[0] if array.size else ""
        raise DataError(
            f"the {name} have dtype {array.dtype} (such as {sample!r})", fix="give numbers: encode texts and dates first"
        )
    return array


def _check_lengths(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) == 0:
            raise DataError(f"the {name} are empty", fix="give at least one row")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"inputs and targets have different lengths: {lengths}", fix="give one target for each row of inputs")


def _check_values(name: str, array: np.ndarray, features: tuple[str, ...]) -> None:
    if array.dtype.kind != "f" or np.isfinite(np.sum(array, dtype=np.float64)):
        return
    bad = np.argwhere(~np.isfinite(array))
    if not len(bad):
        return  # finite values whose sum is not
    place = [int(i) for i in bad[0]]
    column = f", column {features[place[1]]!r}" if len(place) == 2 and features else ""
    raise DataError(
        f"the {name} hold {len(bad)} values that are NaN or infinite, the first at {place}{column}",
        fix="drop or fill them before training",
    )


def _converted(name: str, array: np.ndarray, integers: bool) -> np.ndarray:
    stays = array.dtype.kind != "f" and (name == "targets" or (integers and array.dtype.kind in "iu"))
    if stays:
        return array.astype(np.int64)
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32)
    if converted.size and not np.isfinite(np.abs(converted).max()):
        raise DataError(f"the {name} hold values beyond float32's 3.4e38", fix="scale them before training")
    return converted
