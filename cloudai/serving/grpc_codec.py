"""Requests and answers as gRPC's messages: read by the rules of REST's bodies, of which they say the same in other words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from cloudai.artifacts.signature import Signature
from cloudai.errors import RequestError
from cloudai.serving import binary, protocol
from cloudai.serving.grpc_messages import ModelInferRequest, ModelInferResponse
from cloudai.serving.protocol import InferenceRequest

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

    def __init__(self, name: str, version: str, signature: Signature) -> None:
        self._name, self._version, self._signature = name, version, signature
        self._words = {spec.name: protocol.datatype(spec.dtype) for spec in signature.outputs}

    def decode(self, body: bytes | bytearray, _header_length: int | None = None) -> InferenceRequest:
        """Read a ``ModelInferRequest``.

        Raises
        ------
        RequestError
            If it is none, or does not fit the model.
        """
        message = parsed(ModelInferRequest, body)
        tensors = _tensors(message)
        head = json.dumps(_head(message, tensors)).encode()
        return protocol.decode_request(b"".join([head, *tensors]), self._signature, len(head))

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
