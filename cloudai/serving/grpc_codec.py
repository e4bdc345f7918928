"""Requests and answers as gRPC's messages, which say the same as REST's bodies in other words.

A request whose tensors are bytes, and right in every way, is read by one quick path. Any other is put into REST's words and
goes through the careful path there, so that both protocols accept the same and refuse it in the same sentences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.errors import RequestError
from cloudai.serving import binary, protocol
from cloudai.serving.asgi import PROTOBUF
from cloudai.serving.grpc_messages import ModelInferRequest, ModelInferResponse
from cloudai.serving.protocol import InferenceRequest, Wanted

__all__ = ["GrpcCodec", "parsed"]

_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the elements of a datatype lie; FP16 has no place, and travels as bytes."""


class GrpcCodec:
    """Reads requests for one model, and writes its answers, as `cloudai.serving.codec.Codec` does for REST.

    An answer has the form of its request: tensors as bytes where they came so, else as lists of their elements.
    """

    kind = PROTOBUF

    def __init__(self, name: str, version: str, signature: Signature) -> None:
        self._name, self._version, self._signature = name, version, signature
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._all = tuple(Wanted(spec.name, binary=True) for spec in signature.outputs)
        self._words = {spec.name: protocol.datatype(spec.dtype) for spec in signature.outputs}

    def decode(self, body: bytes | bytearray, _header_length: int | None = None) -> InferenceRequest:
        """Read a ``ModelInferRequest``.

        Raises
        ------
        RequestError
            If it is none, or does not fit the model.
        """
        message = parsed(ModelInferRequest, body)
        quick = self._quick(message)
        if quick is not None:
            return quick
        tensors = _tensors(message)
        head = json.dumps(_head(message, tensors)).encode()
        return protocol.decode_request(b"".join([head, *tensors]), self._signature, len(head))

    def _quick(self, message: Any) -> InferenceRequest | None:
        """Read a request of bytes that asks for all outputs; None where the careful path has to look."""
        raw = message.raw_input_contents
        if message.outputs or not len(raw) == len(message.inputs) == len(self._inputs):
            return None
        inputs = {}
        for tensor, data in zip(message.inputs, raw, strict=True):
            spec, shape = self._inputs.get(tensor.name), tuple(tensor.shape)
            if spec is None or not _fits(spec, shape) or tensor.datatype != protocol.datatype(spec.dtype):
                return None
            if tensor.HasField("contents"):
                return None
            own = memoryview(bytearray(data))  # a model may write into its inputs
            inputs[tensor.name] = binary.from_bytes(own, shape, protocol.dtype_named(tensor.datatype), f"input {tensor.name!r}")
        rows = {len(array) for array in inputs.values()}
        if len(inputs) != len(self._inputs) or len(rows) != 1:
            return None
        return InferenceRequest(message.id or None, inputs, self._all, rows.pop())

    def encode(
        self, outputs: Mapping[str, np.ndarray], request: InferenceRequest
    ) -> tuple[list[bytes | memoryview], int | None]:
        """Write a ``ModelInferResponse``, in one piece."""
        message = ModelInferResponse(model_name=self._name, model_version=self._version, id=request.id or "")
        words = [self._words[wanted.name] for wanted in request.outputs]
        as_bytes = any(wanted.binary for wanted in request.outputs) or "FP16" in words
        for wanted, word in zip(request.outputs, words, strict=True):
            array = outputs[wanted.name]
            tensor = message.outputs.add(name=wanted.name, datatype=word, shape=array.shape)
            if as_bytes:
                message.raw_output_contents.append(bytes(binary.to_bytes(array)))
            else:
                elements = [str(text).encode() for text in array.ravel()] if word == "BYTES" else array.ravel().tolist()
                getattr(tensor.contents, _FIELDS[word]).extend(elements)
        return [message.SerializeToString()], None


def _fits(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    sizes = zip(shape, spec.shape, strict=True) if len(shape) == len(spec.shape) else [(0, 0)]
    return all(size > 0 and want in (-1, size) for size, want in sizes)


def parsed(kind: Any, body: bytes | bytearray) -> Any:
    """Read a message of a kind.

    Raises
    ------
    RequestError
        If the bytes are none.
    """
    try:
        return kind.FromString(bytes(body))
    except DecodeError:
        what = f"the request is no {kind.DESCRIPTOR.name}"
        raise RequestError(what, fix="send the message that the Open Inference Protocol says") from None


def _tensors(message: Any) -> list[bytes | memoryview]:
    """Return the inputs' bytes, however they came."""
    raw = list(message.raw_input_contents)
    if not raw:
        return [_contents(tensor) for tensor in message.inputs]
    if len(raw) != len(message.inputs) or any(tensor.HasField("contents") for tensor in message.inputs):
        what = f"there are {len(raw)} raw_input_contents for {len(message.inputs)} inputs"
        raise RequestError(what, fix="send one for each input, and then no contents, in the order of the inputs")
    return raw


def _contents(tensor: Any) -> bytes | memoryview:
    """Return the bytes of elements that came in a list; of another datatype there are none, and its name is refused."""
    if tensor.datatype not in _FIELDS:
        return b""
    elements = list(getattr(tensor.contents, _FIELDS[tensor.datatype]))
    try:
        texts = [text.decode() for text in elements] if tensor.datatype == "BYTES" else elements
        return binary.to_bytes(np.array(texts, protocol.dtype_named(tensor.datatype)))
    except UnicodeDecodeError:
        raise RequestError(f"input {tensor.name!r} holds bytes that are no UTF-8", fix="send texts") from None
    except OverflowError:
        what = f"input {tensor.name!r} has a number outside of {tensor.datatype}"
        raise RequestError(what, fix="scale the data, or check its unit") from None


def _head(message: Any, tensors: Sequence[bytes | memoryview]) -> Mapping[str, Any]:
    """Say in REST's words what the message says beside its tensors."""
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(data)},
        }
        for tensor, data in zip(message.inputs, tensors, strict=True)
    ]
    about = {"id": message.id} if message.id else {}
    outputs = [{"name": output.name} for output in message.outputs]
    parameters = {"binary_data_output": bool(message.raw_input_contents)}
    return {**about, "inputs": inputs, "outputs": outputs, "parameters": parameters}
