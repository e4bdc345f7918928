"""What a user gives to a model, as the arrays of its signature; and those arrays as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cloudai import texts
from cloudai.artifacts.signature import TEXT, Signature
from cloudai.display import nearest
from cloudai.errors import RequestError
from cloudai.statistics.profiles import columns_of

__all__ = ["arrays_for", "named_columns", "only_output", "text_array"]


def arrays_for(signature: Signature, data: Any, features: Sequence[str]) -> dict[str, np.ndarray]:
    """Turn what a user gives into the model's inputs, converted to its dtypes where no value is lost.

    Parameters
    ----------
    data : array, data frame, list of str, or mapping of str to array
        A data frame's columns are taken by name where the model was trained on named ones, or takes texts.
    features : sequence of str
        The names of the columns that the model was trained on; empty where they had none.

    Raises
    ------
    RequestError
        If names, dtypes or shapes do not fit.
    """
    if hasattr(data, "columns") and features:
        data = _in_order(data, features)
    elif hasattr(data, "columns") and any(spec.dtype == TEXT and spec.name in data.columns for spec in signature.inputs):
        data = {spec.name: data[spec.name] for spec in signature.inputs if spec.name in data.columns}
    if not isinstance(data, Mapping):
        if len(signature.inputs) != 1:
            raise RequestError(f"the model takes {len(signature.inputs)} inputs", fix=f"give a dict with {signature}")
        data = {signature.inputs[0].name: data}
    dtypes = {spec.name: spec.dtype for spec in signature.inputs}
    arrays = {name: _as_array(name, value, dtypes.get(name)) for name, value in data.items()}
    signature.check(arrays)
    return arrays


def _in_order(frame: Any, features: Sequence[str]) -> Any:
    """Return a data frame's columns in the order that the model was trained on."""
    columns = {str(column): column for column in frame.columns}
    for name in features:
        if name not in columns:
            raise RequestError(f"the column {name!r} is missing", fix=nearest(name, list(columns)))
    for name in columns:
        if name not in features:
            raise RequestError(f"the model was not trained on a column {name!r}", fix="drop it")
    return frame[[columns[name] for name in features]]


def text_array(value: Any, what: str) -> np.ndarray:
    """Return texts as an array of objects.

    Raises
    ------
    RequestError
        If something in it is no text, or holds half a character.
    """
    if isinstance(value, str):
        raise RequestError(f"{what} is one text", fix="give a list of texts: [text]")
    array = np.asarray(value if hasattr(value, "__array__") else list(value), dtype=object)
    bad = texts.first_bad(array)
    if bad is not None:
        place, element = bad
        kind = "half a character" if isinstance(element, str) else repr(element)[:40]
        raise RequestError(f"{what} holds {kind} at {place}, not only texts", fix="give texts: drop or fill what is missing")
    return array.astype(object)


def _as_array(name: str, value: Any, dtype: str | None) -> np.ndarray:
    if dtype == TEXT:
        return text_array(value, f"input {name!r}")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise RequestError(f"input {name!r} is not an array: {error}", fix="give rows of equal length") from None
    if dtype is None or array.dtype.name == dtype:
        return array
    if not np.can_cast(array.dtype, dtype, "same_kind") and not (array.dtype.kind in "iub" and np.dtype(dtype).kind == "f"):
        raise RequestError(
            f"input {name!r} has dtype {array.dtype.name}, the model takes {dtype}", fix=f"convert it: array.astype({dtype!r})"
        )
    return array.astype(dtype)


def only_output(outputs: Mapping[str, np.ndarray]) -> Any:
    """Return the array where there is one output, else all by name."""
    return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)


def named_columns(arrays: Mapping[str, np.ndarray], signature: Signature, features: Sequence[str]) -> dict[str, np.ndarray]:
    """Split a model's inputs into columns, named as its features where they have names.

    Of texts the numbers of characters and words are taken: what they say stays out of profiles.
    """
    columns: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        array = arrays[spec.name]
        columns |= _measures(array, spec.name) if spec.dtype == TEXT else columns_of(array, spec.name)
    if len(features) == len(columns):
        return dict(zip(features, columns.values(), strict=True))
    return columns


def _measures(array: np.ndarray, name: str) -> dict[str, np.ndarray]:
    flat = [" ".join(row) for row in array.reshape(len(array), -1).tolist()]
    counted = {"characters": [len(text) for text in flat], "words": [len(text.split()) for text in flat]}
    return {f"{name}.{measure}": np.array(values, dtype=np.int64) for measure, values in counted.items()}
