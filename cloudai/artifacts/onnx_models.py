"""ONNX models: what a checked one takes and gives, and how ONNX Runtime runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from cloudai import texts
from cloudai.artifacts import onnx_checks, trees
from cloudai.artifacts.bringing import Brought
from cloudai.artifacts.inputs import arrays_for
from cloudai.artifacts.signature import TEXT, Signature, TensorSpec, dtype_of
from cloudai.artifacts.store import sha256
from cloudai.errors import CloudAIError, DataError, RequestError, SpecError

__all__ = ["OnnxServable", "brought", "open_session"]

_LENGTHS = (3, 4)
"""What is tried for axes of any length other than the batch: two, so that outputs show which of theirs follow them."""

_DTYPES = frozenset({"bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"}) | {
    "float16",
    "float32",
    "float64",
    TEXT,
}


class OnnxServable:
    """An ONNX model behind its signature; ONNX Runtime lets several threads in at once.

    Raises
    ------
    CloudAIError
        As `open_session`, and if the file reaches outside of itself.
    """

    def __init__(self, name: str, version: str, signature: Signature, data: bytes) -> None:
        self.name = name
        self.version = version
        self.signature = signature
        onnx_checks.parse(data)
        self._session = open_session(data)
        self._outputs = [spec.name for spec in signature.outputs]
        self._texts = any(spec.dtype == TEXT for spec in signature.outputs)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs for checked inputs, one row per example."""
        if self._texts:
            return _run(self._session, self._outputs, inputs)
        return dict(zip(self._outputs, self._session.run(self._outputs, _contiguous(inputs)), strict=True))


def open_session(data: bytes) -> ort.InferenceSession:
    """Load a checked model into ONNX Runtime, on as many threads as ``OMP_NUM_THREADS`` says.

    Raises
    ------
    SpecError
        If the installed runtime cannot run it.
    """
    options = ort.SessionOptions()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  the runtime's errors have no class in common
        first = str(error).strip().split("\n")[0].partition(" : ")[2] or str(error)
        what = f"ONNX Runtime {ort.__version__} cannot run this model: {first[:300]}"
        raise SpecError(what, fix="export it with an older opset_version, or update onnxruntime") from None


def brought(source: str | Path | bytes, example: Any) -> Brought:
    """Check an ONNX model, try it, and return its files.

    Raises
    ------
    CloudAIError
        As `cloudai.Model.from_onnx`.
    """
    model = onnx_checks.read(source)
    data = model.SerializeToString()
    session = open_session(data)
    inputs = tuple(_input(given) for given in session.get_inputs())
    rows = _example(inputs, example)
    outputs = _outputs(session, inputs, rows, made_up=example is None)
    files = {"model.onnx": data, "example.safetensors": trees.dump(rows)}
    lineage = {"code": "", "module": sha256(data), "data": "", "source": _source(source, model)}
    return Brought("onnx", files, Signature(inputs, outputs), lineage)


def _source(source: str | Path | bytes, model: onnx.ModelProto) -> str:
    producer = f" by {model.producer_name} {model.producer_version}".rstrip() if model.producer_name else ""
    return ("an ONNX model" if isinstance(source, bytes) else Path(source).name) + producer


def _input(given: Any) -> TensorSpec:
    """Return the spec of one of the session's inputs; its first axis must be the batch."""
    name, kind = given.name, _dtype(given)
    if not given.shape or isinstance(given.shape[0], int):
        size = f"the fixed length {given.shape[0]}" if given.shape else "no axis"
        raise SpecError(
            f"the first axis of the input {name!r} has {size}; it must be the batch",
            fix="export it with a dynamic first axis (dynamic_shapes= or dynamic_axes=)",
        )
    return TensorSpec(name, kind, (-1, *(size if isinstance(size, int) else -1 for size in given.shape[1:])))


def _dtype(given: Any) -> str:
    words = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(string)": TEXT}
    kind = words.get(given.type) or str(given.type.removeprefix("tensor(").removesuffix(")"))
    if kind not in _DTYPES:
        fix = "export it with zipmap=False" if "map" in given.type else "convert it to another type in the graph"
        raise SpecError(f"{given.name!r} of the ONNX model is a {given.type}, which cannot be served", fix=fix)
    return kind


def _example(inputs: Sequence[TensorSpec], example: Any) -> dict[str, np.ndarray]:
    if example is None:
        return _made_up(inputs, rows=2, length=_LENGTHS[0])
    try:
        return arrays_for(Signature(tuple(inputs), ()), example, ())
    except RequestError as error:
        raise DataError(f"the example does not fit the model: {error.what}", fix=error.fix) from None


def _made_up(inputs: Sequence[TensorSpec], *, rows: int, length: int) -> dict[str, np.ndarray]:
    """Return rows that most models take: small numbers, and ones where integers may be indices or masks."""
    random = np.random.default_rng(0)
    arrays = {}
    for spec in inputs:
        shape = (rows, *(length if size < 0 else size for size in spec.shape[1:]))
        if spec.dtype == TEXT:
            arrays[spec.name] = np.full(shape, "text", dtype=object)
        elif spec.dtype.startswith("float"):
            arrays[spec.name] = random.normal(size=shape).astype(spec.dtype)
        else:
            arrays[spec.name] = np.ones(shape, dtype=spec.dtype)
    return arrays


def _trials(
    inputs: Sequence[TensorSpec], example: Mapping[str, np.ndarray], *, made_up: bool
) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield rows to be tried that differ in each length that may differ."""
    yield example
    if made_up:
        yield _made_up(inputs, rows=3, length=_LENGTHS[1])
    else:
        yield {name: np.concatenate([array[:1], array]) for name, array in example.items()}


def _outputs(
    session: ort.InferenceSession, inputs: Sequence[TensorSpec], example: Mapping[str, np.ndarray], *, made_up: bool
) -> tuple[TensorSpec, ...]:
    """Return the outputs' specs, from what the graph says and what a few rows give."""
    names = [given.name for given in session.get_outputs()]
    kinds = {given.name: _dtype(given) for given in session.get_outputs()}
    axes: dict[str, list[set[int]]] = {}
    for arrays in _trials(inputs, example, made_up=made_up):
        for name, array in _tried(session, names, arrays, made_up=made_up).items():
            rows = len(next(iter(arrays.values())))
            if array.ndim == 0 or len(array) != rows:
                fix = "leave it out of the graph's outputs, or give it the batch as its first axis"
                raise SpecError(f"the output {name!r} has not one row for each row of input", fix=fix)
            sizes = axes.setdefault(name, [set() for _ in array.shape])
            for seen, size in zip(sizes, array.shape, strict=True):
                seen.add(size)
    declared = {given.name: given.shape for given in session.get_outputs()}
    free = {size for given in session.get_inputs() for size in given.shape if isinstance(size, str)}
    return tuple(TensorSpec(name, kinds[name], _shape(axes[name], declared[name], free)) for name in names)


def _shape(axes: Sequence[set[int]], declared: Sequence[Any], free: set[str]) -> tuple[int, ...]:
    """Return an output's shape: an axis has one length if the graph says so, or if none of its inputs changes it."""
    shape = [-1]
    for place, seen in enumerate(axes[1:], start=1):
        said = declared[place] if place < len(declared) else None
        fixed = said if isinstance(said, int) else -1 if len(seen) > 1 or said in free else next(iter(seen))
        shape.append(fixed)
    return tuple(shape)


def _tried(
    session: ort.InferenceSession, names: Sequence[str], arrays: Mapping[str, np.ndarray], *, made_up: bool
) -> dict[str, np.ndarray]:
    try:
        return _run(session, names, arrays)
    except CloudAIError:
        raise
    except Exception as error:  # noqa: BLE001  the runtime's errors have no class in common
        first = str(error).strip().split("\n")[0][:300]
        what = "made-up rows" if made_up else "the example"
        fix = "pass example= with a few rows that it takes" if made_up else "give rows that it takes"
        raise DataError(f"the ONNX model does not take {what}: {first}", fix=fix) from None


def _run(session: ort.InferenceSession, names: Sequence[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    outputs = session.run(list(names), _contiguous(inputs))
    arrays = {name: np.asarray(output) for name, output in zip(names, outputs, strict=True)}
    return {name: texts.object_array(array) if dtype_of(array) == TEXT else array for name, array in arrays.items()}


def _contiguous(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array if array.flags.c_contiguous else np.ascontiguousarray(array) for name, array in inputs.items()}
