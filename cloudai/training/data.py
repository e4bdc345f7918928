"""What a user gives as data, as checked arrays, or as the files that a worker reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloudai.errors import DataError
from cloudai.specs.confidential import refuse_credentials
from cloudai.specs.training import Source
from cloudai.training import hugging_face, tables
from cloudai.training.tables import Survey, Table

__all__ = ["TrainingData", "assembled", "parse_data", "read_source"]

_MOST_BYTES = 2 * 2**30
_FORMS = (
    "give (inputs, targets) as arrays or data frames, a dict with both, a torch or Hugging Face dataset, or a cloudai.Table"
)


@dataclass(frozen=True)
class TrainingData:
    """Checked arrays, one row per example.

    Attributes
    ----------
    arrays : Mapping[str, ndarray]
        ``inputs`` and, where there are any, ``targets``.
        Of files that a worker will read, one row of zeros in the shape and dtype of the data; nothing where that is unknown.
    features : tuple of str
        The names of the inputs' columns, where they have names.
    source : Source or None
        The files that a worker will read.
    counted : int
        The number of rows of the source; 0 where it is not known.
    """

    arrays: Mapping[str, np.ndarray]
    features: tuple[str, ...] = ()
    source: Source | None = None
    counted: int = 0

    @property
    def rows(self) -> int:
        """How many examples there are; 0 where that is not known before they are read."""
        return self.counted if self.source is not None else len(self.arrays["inputs"])


def parse_data(data: Any, *, integers: bool = False, texts: bool = False) -> TrainingData:
    """Read data in any of the forms that users have it in.

    Parameters
    ----------
    data
        ``(inputs, targets)`` or ``{"inputs": …, "targets": …}`` of arrays, tensors, lists or data frames; a map-style
        torch dataset of ``(input, target)`` pairs or a Hugging Face dataset, which is read once, now; or a `cloudai.Table`,
        of whose files only the beginning is looked at.
    integers : bool
        Whether integer inputs stay integers, as an embedding needs; else they become float32.
    texts : bool
        Whether the inputs are texts: an object array of str, [rows].

    Raises
    ------
    DataError
        If there is no row, lengths differ, a value is NaN or infinite, or a dtype is not numeric.
    StoreError
        If a table's place cannot be reached.
    """
    if hugging_face.is_dataset(data):
        data = Table(data)
    if isinstance(data, Table):
        return _of_table(data, integers=integers, texts=texts)
    parts = _parts(data)
    features = tuple(map(str, getattr(parts["inputs"], "columns", ())))
    if texts:
        return _checked({"inputs": _texts(parts.pop("inputs")), **_arrays(parts)}, (), integers)
    return _checked(_arrays(parts), features, integers)


def read_source(source: Source, *, patience: float) -> TrainingData:
    """Read the files of a source, as a worker does.

    Raises
    ------
    DataError
        If a file is not what it was when the run was asked for, or holds something that is no number.
    StoreError
        If a place cannot be reached within `patience` seconds.
    """
    return assembled(tables.read(source, patience=patience), source)


def assembled(columns: Mapping[str, np.ndarray], source: Source) -> TrainingData:
    """Put columns that were read from a source side by side, as inputs and targets.

    Raises
    ------
    DataError
        If a value cannot be trained on.
    """
    columns = dict(columns)
    if source.kinds.get(source.target) == "int":
        columns[source.target] = _whole(columns[source.target])
    return _assembled(columns, source.inputs, source.target, source.integers)


def _parts(data: Any) -> dict[str, Any]:
    """Return inputs and targets as they were given."""
    if isinstance(data, Mapping):
        unknown = set(data) - {"inputs", "targets"}
        if unknown or "inputs" not in data:
            raise DataError(f"the data has the parts {sorted(map(str, data))}", fix="call them 'inputs' and 'targets'")
        return dict(data)
    if isinstance(data, tuple | list) and len(data) == 2:
        return {"inputs": data[0], "targets": data[1]}
    if isinstance(data, str | Path):
        refuse_credentials(str(data), "the address of the data")
        raise DataError(
            "data cannot be a path alone", fix=f"say what is to be predicted: cloudai.Table({str(data)!r}, target=…)"
        )
    if (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not hasattr(data, "dtype")
        and not hasattr(data, "columns")
    ):
        return _from_dataset(data)
    raise DataError(f"data cannot be a {type(data).__name__}", fix=_FORMS)


def _of_table(table: Table, *, integers: bool, texts: bool) -> TrainingData:
    if table.in_files:
        found = tables.survey(table, integers=integers)
        alone = {"list", "int list", "text"} & set(found.source.kinds.values())
        names = () if alone else found.source.inputs
        return TrainingData(_zeros(found), names, found.source, found.rows)
    if not hugging_face.is_dataset(table.source):
        kind = type(table.source).__name__
        raise DataError(f"a table cannot be a {kind}", fix="give a path, a URL, several of them, or a Hugging Face dataset")
    if table.stream:
        fix = "write it with to_parquet, and give the files"
        raise DataError("a Hugging Face dataset is copied into the store, and not streamed", fix=fix)
    columns, inputs, target = hugging_face.columns_of(table, texts=texts)
    return _assembled(columns, inputs, target, integers)


def _zeros(found: Survey) -> dict[str, np.ndarray]:
    """Return one row of zeros in place of data that has not been read."""
    source = found.source
    kinds = [source.kinds[name] for name in source.inputs]
    if kinds[0] in ("list", "int list") and source.inputs[0] not in found.widths:
        return {}
    width = found.widths.get(source.inputs[0], len(kinds))
    inputs = np.zeros((1, width), dtype=np.int64 if source.integers else np.float32)
    arrays = {"inputs": np.array([""], dtype=object) if kinds == ["text"] else inputs}
    if source.target:
        arrays["targets"] = np.zeros(1, dtype=np.float32 if source.kinds[source.target] == "float" else np.int64)
    return arrays


def _assembled(columns: Mapping[str, np.ndarray], inputs: Sequence[str], target: str, integers: bool) -> TrainingData:
    """Put columns side by side: [rows, columns], or the only one as it is where its rows are lists or texts."""
    first = columns[inputs[0]]
    alone = len(inputs) == 1 and (first.ndim > 1 or first.dtype == object)
    arrays = {"inputs": first if alone else np.stack([columns[name] for name in inputs], axis=1)}
    if target:
        arrays["targets"] = columns[target]
    return _checked(arrays, () if alone else tuple(inputs), integers)


def _whole(target: np.ndarray) -> np.ndarray:
    """Return a target that looked like integers at first as integers, unless a later row was none."""
    return target.astype(np.int64) if target.dtype.kind == "f" and np.array_equal(target, np.rint(target)) else target


def _checked(arrays: Mapping[str, np.ndarray], features: tuple[str, ...], integers: bool) -> TrainingData:
    _check_lengths(arrays)
    for name, array in arrays.items():
        _check_values(name, array, features if name == "inputs" else ())
    return TrainingData({name: _converted(name, array, integers) for name, array in arrays.items()}, features)


def _texts(part: Any) -> np.ndarray:
    values = part.to_list() if hasattr(part, "to_list") else list(part)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"row {row} of the inputs is a {type(value).__name__}, not a text", fix="give a list of texts")
    return np.array(values, dtype=object)


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


def _arrays(parts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: _array(name, part) for name, part in parts.items()}


def _array(name: str, part: Any) -> np.ndarray:
    if hasattr(part, "detach"):
        part = part.detach().cpu().numpy()
    elif hasattr(part, "to_numpy"):
        kinds = {getattr(dtype, "kind", "O") for dtype in part.dtypes} if hasattr(part, "columns") else set()
        mixed = "b" in kinds and len(kinds) > 1 and kinds <= set("biuf")  # which would be objects
        part = part.astype("float64").to_numpy() if mixed else part.to_numpy()
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
    if array.dtype == object:
        return array  # texts
    stays = array.dtype.kind != "f" and (name == "targets" or (integers and array.dtype.kind in "iu"))
    if stays:
        return array.astype(np.int64)
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32)
    if converted.size and not np.isfinite(np.abs(converted).max()):
        raise DataError(f"the {name} hold values beyond float32's 3.4e38", fix="scale them before training")
    return converted
