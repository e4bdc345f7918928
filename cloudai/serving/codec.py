"""Requests and answers of one model on the server's side, read and written fast.

What is as it should be, which is almost everything, is read by one quick path. What is not goes through the careful one in
`cloudai.serving.protocol`, which accepts the same requests and says exactly what is wrong with the others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from cloudai import texts
from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.errors import RequestError
from cloudai.serving import binary, protocol
from cloudai.serving.protocol import InferenceRequest, Wanted

__all__ = ["Codec"]

_PLAIN = frozenset({"inputs", "id", "parameters"})
"""A request with other fields is the careful path's."""
_ENTRY = frozenset({"name", "datatype", "shape", "data"})
_BYTES_ENTRY = frozenset({"name", "datatype", "shape", "parameters"})
_KINDS: Mapping[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}
_LENGTHS = frozenset({int})
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class Codec:
    """Reads requests for one model, and writes its answers.

    Examples
    --------
    >>> signature = Signature((TensorSpec("x", "float32", (-1, 2)),), (TensorSpec("y", "float32", (-1,)),))
    >>> codec = Codec("m", "1.0.0", signature)
    >>> request = codec.decode(b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]}')
    >>> body, _ = codec.encode({"y": np.float32([7])}, request)
    >>> b"".join(body).decode()
    '{"model_name":"m","model_version":"1.0.0","outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[7.0]}]}'
    """

    kind = b"application/json"

    def __init__(self, name: str, version: str, signature: Signature) -> None:
        self.signature = signature
        self._model, self._version = name, version
        self._inputs = {spec.name: _Input(spec) for spec in signature.inputs}
        self._all = tuple(Wanted(spec.name) for spec in signature.outputs)
        self._asked_as_bytes = tuple(Wanted(spec.name, binary=True) for spec in signature.outputs)
        self._words = {spec.name: protocol.datatype(spec.dtype) for spec in signature.outputs}

    def decode(self, body: bytes | bytearray, header_length: int | None = None) -> InferenceRequest:
        """Read a request.

        Parameters
        ----------
        header_length : int, optional
            How long the JSON is, where tensors follow it as bytes.

        Raises
        ------
        RequestError
            As `cloudai.serving.protocol.decode_request`.
        """
        if header_length is None:
            quick = self._quick(body, None)
        elif 0 < header_length <= len(body):
            rest = memoryview(bytearray(memoryview(body)[header_length:]))  # a model may write into its inputs
            quick = self._quick(body[:header_length], rest)
        else:
            quick = None
        return quick or protocol.decode_request(body, self.signature, header_length)

    def encode(
        self, outputs: Mapping[str, np.ndarray], request: InferenceRequest
    ) -> tuple[list[bytes | memoryview], int | None]:
        """Return an answer's body in pieces, and the length of its JSON where tensors follow it as bytes.

        Raises
        ------
        DataError
            If an output that is to be JSON has NaN or infinite values, for which JSON has no words.
        """
        entries: list[dict[str, Any]] = []
        tensors: list[bytes | memoryview] = []
        for wanted in request.outputs:
            array = outputs[wanted.name]
            entry: dict[str, Any] = {"name": wanted.name, "datatype": self._words[wanted.name], "shape": array.shape}
            if wanted.binary:
                tensors.append(binary.to_bytes(array))
                entry["parameters"] = {"binary_data_size": len(tensors[-1])}
            else:
                entry["data"] = _data(array, wanted.name)
            entries.append(entry)
        answer: dict[str, Any] = {"model_name": self._model, "model_version": self._version}
        if request.id is not None:
            answer["id"] = request.id
        answer["outputs"] = entries
        head = orjson.dumps(answer, option=_NUMPY)
        return [head, *tensors], len(head) if tensors else None

    def _quick(self, body: bytes | bytearray, rest: memoryview | None) -> InferenceRequest | None:
        """Read a request that is right in every way; None where the careful path has to look."""
        try:
            request = orjson.loads(body)
            if not _PLAIN.issuperset(request):
                return None
            identity = request.get("id")
            if rest is None:
                arrays = {entry["name"]: self._inputs[entry["name"]].quick(entry) for entry in request["inputs"]}
            else:
                arrays = self._quick_bytes(request["inputs"], rest)
            outputs = self._asked_as_bytes if _asks_for_bytes(request) else self._all
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RequestError):
            return None
        if len(arrays) != len(self._inputs) or len(request["inputs"]) != len(arrays):
            return None
        if not (identity is None or isinstance(identity, str)):
            return None
        lengths = {len(array) for array in arrays.values()}
        return InferenceRequest(identity, arrays, outputs, lengths.pop()) if len(lengths) == 1 else None

    def _quick_bytes(self, entries: list[Mapping[str, Any]], rest: memoryview) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        begin = 0
        for entry in entries:
            size = entry["parameters"]["binary_data_size"]
            if type(size) is not int or size < 0 or len(entry["parameters"]) != 1:
                raise ValueError
            arrays[entry["name"]] = self._inputs[entry["name"]].quick_bytes(entry, rest[begin : begin + size])
            begin += size
        if begin != len(rest):
            raise ValueError
        return arrays


def _asks_for_bytes(request: Mapping[str, Any]) -> bool:
    """Whether all outputs are asked for as bytes; what asks otherwise is the careful path's."""
    parameters = request.get("parameters")
    if not parameters:
        return False
    if len(parameters) != 1 or parameters["binary_data_output"] is not True:
        raise ValueError
    return True


class _Input:
    """One input of the model, read quickly."""

    def __init__(self, spec: TensorSpec) -> None:
        self._shape, self._tail = spec.shape, list(spec.shape[1:])
        self._word = protocol.datatype(spec.dtype)
        self._dtype = protocol.dtype_named(self._word)
        self._kinds = _KINDS[self._dtype.kind]

    def quick(self, entry: Mapping[str, Any]) -> np.ndarray:
        """Return the array of an entry that is right in every way; an exception says that it is not."""
        shape, data = entry["shape"], entry["data"]
        if entry["datatype"] != self._word or not _ENTRY.issuperset(entry) or not self._fits(shape):
            raise ValueError
        flat = _flat(data, shape)
        if not self._kinds.issuperset(map(type, flat)):
            raise ValueError
        array = np.array(flat, self._dtype)
        kind = self._dtype.kind
        if (kind == "f" and not binary.is_finite(array)) or (kind == "O" and texts.first_bad(array) is not None):
            raise ValueError
        return array.reshape(shape)

    def quick_bytes(self, entry: Mapping[str, Any], data: memoryview) -> np.ndarray:
        """Return the array of an entry whose elements are these bytes, like `quick`."""
        shape = entry["shape"]
        if entry["datatype"] != self._word or not _BYTES_ENTRY.issuperset(entry) or not self._fits(shape):
            raise ValueError
        return binary.from_bytes(data, shape, self._dtype, "")

    def _fits(self, shape: Any) -> bool:
        if type(shape) is not list or not _LENGTHS.issuperset(map(type, shape)) or not shape or shape[0] < 1:
            return False
        return shape[1:] == self._tail or (
            len(shape) == len(self._shape)
            and all(want == size or (want == -1 and size > 0) for want, size in zip(self._shape, shape, strict=True))
        )


def _flat(data: list[Any], shape: Sequence[int]) -> list[Any]:
    """Return all elements in one list, from one that is flat already or nested as the shape says."""
    if type(data) is not list:
        raise TypeError
    if len(shape) > 1 and data and type(data[0]) is list:
        if len(data) != shape[0]:
            raise ValueError
        for length in shape[1:]:
            if not all(type(row) is list and len(row) == length for row in data):
                raise ValueError
            data = list(itertools.chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise ValueError
    return data


def _data(array: np.ndarray, name: str) -> Any:
    """Return an output's elements as orjson writes them: flat, in row-major order."""
    if array.dtype.kind == "O":
        return array.ravel().tolist()
    if array.dtype.kind == "f":
        protocol.check_finite(array, "output", name)
        if array.dtype == np.float16:
            return array.ravel().astype(np.float32)
    return np.ascontiguousarray(array).reshape(-1)
