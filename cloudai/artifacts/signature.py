"""What a model takes and gives: names, dtypes, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloudai.display import nearest
from cloudai.errors import RequestError
from cloudai.texts import is_text

__all__ = ["TEXT", "Signature", "TensorSpec", "dtype_of"]

TEXT = "str"
"""The dtype of texts of any length; such arrays hold Python's own texts as objects."""


def dtype_of(array: np.ndarray) -> str:
    """Return the name of an array's dtype as a signature has it.

    Examples
    --------
    >>> dtype_of(np.zeros(2, "float32")), dtype_of(np.array(["a", "bc"]))
    ('float32', 'str')
    """
    return TEXT if array.dtype.kind in "UTO" and is_text(array) else array.dtype.name


@dataclass(frozen=True)
class TensorSpec:
    """One named array.

    Attributes
    ----------
    name : str
        Its name in requests and answers.
    dtype : str
        numpy's name of its dtype, such as ``"float32"``; ``"str"`` for texts.
    shape : tuple of int
        Its shape; -1 stands for any length, as the first axis of a batch does.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('n' if size < 0 else str(size) for size in self.shape)}]"

    def check(self, array: np.ndarray) -> None:
        """Raise `RequestError` if `array` has another dtype or shape."""
        if dtype_of(array) != self.dtype:
            raise RequestError(
                f"input {self.name!r} has dtype {array.dtype.name}, the model takes {self.dtype}",
                fix="give a list of texts" if self.dtype == TEXT else f"convert it: array.astype({self.dtype!r})",
            )
        fits = array.ndim == len(self.shape) and all(
            want in (-1, have) for want, have in zip(self.shape, array.shape, strict=True)
        )
        if not fits:
            raise RequestError(
                f"input {self.name!r} has shape {list(array.shape)}, the model takes {self}",
                fix="give one row per example; a single example needs array[None]",
            )


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in order.

    Examples
    --------
    >>> signature = Signature((TensorSpec("x", "float32", (-1, 2)),), (TensorSpec("y", "float32", (-1, 1)),))
    >>> print(signature)
    x: float32[n, 2] → y: float32[n, 1]
    >>> signature.check({"x": np.zeros((3, 4), "float32")})
    Traceback (most recent call last):
        ...
    cloudai.errors.RequestError: input 'x' has shape [3, 4], the model takes x: float32[n, 2]
    Fix: give one row per example; a single example needs array[None]
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.inputs))} → {', '.join(map(str, self.outputs))}"

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise `RequestError` unless `arrays` are exactly the inputs: names, dtypes, shapes and one batch size."""
        names = [spec.name for spec in self.inputs]
        for name in arrays:
            if name not in names:
                raise RequestError(f"the model has no input {name!r}", fix=nearest(name, names))
        for spec in self.inputs:
            if spec.name not in arrays:
                raise RequestError(f"the input {spec.name!r} is missing", fix=f"give all of: {', '.join(names)}")
            spec.check(arrays[spec.name])
        lengths = {arrays[spec.name].shape[0] for spec in self.inputs if spec.shape[:1] == (-1,)}
        if len(lengths) > 1:
            raise RequestError(f"the inputs have different lengths: {sorted(lengths)}", fix="give one row per example in each")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"inputs": [vars(spec) for spec in self.inputs], "outputs": [vars(spec) for spec in self.outputs]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """Read what `to_json` returned."""
        return cls(_specs(data["inputs"]), _specs(data["outputs"]))


def _specs(rows: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(row["name"], row["dtype"], tuple(row["shape"])) for row in rows)
