"""Models as ONNX files, each compared with its original before it gets its name."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cloudai.artifacts import onnx_checks, torch_models
from cloudai.artifacts.onnx_models import OnnxServable
from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.display import Card, Shown
from cloudai.errors import CloudAIError, SpecError
from cloudai.files import replace_file

__all__ = ["Export", "Exportable", "export_onnx", "of_module"]

_ROWS = 16
"""So many random rows are compared beside the example."""


@dataclass(frozen=True, repr=False)
class Export(Shown):
    """A model as a file, and how far it is from its original.

    Attributes
    ----------
    path : Path
        The file.
    size : int
        Its bytes.
    largest_difference : float
        The largest absolute difference of any output, over the compared rows.
    relative_difference : float
        The same, as a share of the largest value of that output.
    rows : int
        How many rows were compared: the model's example, and random ones.
    signature : Signature
        What the file takes and gives.
    """

    path: Path
    size: int
    largest_difference: float
    relative_difference: float
    rows: int
    signature: Signature

    def __repr__(self) -> str:
        return f"Export({self.path.name!r}, largest_difference={self.largest_difference:.3g})"

    def card(self) -> Card:
        """Show where it is, and how far it is from its original."""
        far = f"{self.largest_difference:.3g} at most, {self.relative_difference:.3g} of the largest value"
        facts = [
            ("path", str(self.path)),
            ("size", f"{self.size / 1024:,.1f} KiB"),
            ("takes → gives", str(self.signature)),
            ("difference", f"{far}, over {self.rows} rows"),
        ]
        return Card("ONNX model", facts)


@dataclass(frozen=True)
class Exportable:
    """A module with all that an exporter needs to know.

    Attributes
    ----------
    module : torch.nn.Module
        Takes the inputs in the signature's order.
    signature : Signature
        What the file shall take and give.
    example : Mapping[str, ndarray]
        A few rows of inputs.
    """

    module: torch.nn.Module
    signature: Signature
    example: Mapping[str, np.ndarray]


def of_module(module: torch.nn.Module, signature: Signature, example: Mapping[str, np.ndarray]) -> Exportable:
    """Return a stored module as it is exported: its outputs in the signature's order."""
    return Exportable(_InOrder(module, [spec.name for spec in signature.outputs]).eval(), signature, example)


class _InOrder(torch.nn.Module):
    """Gives a tuple, whatever form the module's outputs have."""

    def __init__(self, module: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = torch_models.named_outputs(self.module(*inputs))
        return tuple(outputs[name] for name in self.names)


def export_onnx(what: Exportable, path: Path, tolerance: float) -> Export:
    """Write a module as one ONNX file with a batch of any length.

    Parameters
    ----------
    path : Path
        The file; one that is there is replaced.
    tolerance : float
        The largest difference that is accepted, absolute or as a share of the largest value of an output.

    Raises
    ------
    SpecError
        If torch cannot export it, or the file answers differently. Nothing is left behind then.
    """
    if not path.parent.is_dir():
        raise SpecError(f"there is no folder {path.parent}", fix="make it first, or give another path=")
    data = _converted(what)
    onnx_checks.parse(data)
    servable = OnnxServable("export", "0", what.signature, data)
    rows, largest, relative = 0, 0.0, 0.0
    for arrays in _compared(what):
        expected = torch_models.run_module(what.module, arrays)
        names = [spec.name for spec in what.signature.outputs]
        try:
            given = servable.infer(arrays)
        except Exception as error:
            first = str(error).strip().split("\n")[0][:300]
            fix = "write forward for any batch size: no sizes taken from the example"
            raise SpecError(f"the exported model fails where the original does not: {first}", fix=fix) from error
        for name, array in zip(names, expected.values(), strict=True):
            far, share = _difference(array, given[name])
            largest, relative = max(largest, far), max(relative, share)
        rows += len(next(iter(arrays.values())))
    if min(largest, relative) > tolerance:
        raise SpecError(
            f"the exported model differs from the original by up to {largest:.3g}, tolerance is {tolerance:g}",
            fix="raise tolerance= if that is good enough, or keep the torch model",
        )
    try:
        replace_file(path, data)
    except OSError as error:
        raise CloudAIError(f"{path} cannot be written: {error.strerror}", fix="give another path=") from None
    return Export(path, len(data), largest, relative, rows, what.signature)


def _converted(what: Exportable) -> bytes:
    """Return the ONNX model of a module, exported without a word."""
    arrays = {name: np.concatenate([array, array])[: max(2, len(array))] for name, array in what.example.items()}
    inputs = tuple(torch.from_numpy(np.ascontiguousarray(arrays[spec.name])) for spec in what.signature.inputs)
    batch = torch.export.Dim("batch")
    axes = tuple(_axes(spec, batch) for spec in what.signature.inputs)
    loggers = [logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                what.module,
                inputs,
                dynamo=True,
                dynamic_shapes=(axes,) if isinstance(what.module, _InOrder) else axes,
                input_names=[spec.name for spec in what.signature.inputs],
                output_names=[spec.name for spec in what.signature.outputs],
                external_data=False,
                verbose=False,
            )
        assert program is not None
        return bytes(program.model_proto.SerializeToString())
    except Exception as error:
        first = next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)
        fix = "write forward with tensor operations only; see torch.export"
        raise SpecError(f"torch cannot export this model: {first[:300]}", fix=fix) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _axes(spec: TensorSpec, batch: Any) -> dict[int, Any]:
    free = {place: torch.export.Dim.AUTO for place, size in enumerate(spec.shape) if place and size < 0}
    return {0: batch, **free}


def _compared(what: Exportable) -> Iterator[dict[str, np.ndarray]]:
    """Yield the example, random rows like it, and a single one of them."""
    yield {spec.name: what.example[spec.name] for spec in what.signature.inputs}
    random = np.random.default_rng(0)
    rows = {spec.name: _random_rows(random, what.example[spec.name]) for spec in what.signature.inputs}
    yield rows
    yield {name: array[:1] for name, array in rows.items()}


def _random_rows(random: np.random.Generator, example: np.ndarray) -> np.ndarray:
    """Return rows like the example's: fractions of its spread, integers that occur in it, masks and flags as they are."""
    rows = example[random.integers(0, len(example), _ROWS)]
    if example.dtype.kind == "f":
        spread = float(example.std()) or 1.0
        return random.normal(float(example.mean()), spread, rows.shape).astype(example.dtype)
    if example.dtype.kind in "iu" and len(np.unique(example)) > 2:
        return random.permuted(rows, axis=-1) if rows.ndim > 1 else rows
    return rows


def _difference(expected: np.ndarray, given: np.ndarray) -> tuple[float, float]:
    """Return the largest difference of two arrays, absolute and as a share of the largest value."""
    if expected.shape != given.shape:
        return float("inf"), float("inf")
    if not expected.size:
        return 0.0, 0.0
    one, other = expected.astype(np.float64), given.astype(np.float64)
    far = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, np.abs(one - other))
    largest = float(np.nan_to_num(far, nan=np.inf).max())
    scale = float(np.abs(one[np.isfinite(one)]).max(initial=0.0))
    return largest, largest / scale if scale else largest
