"""The Open Inference Protocol v2 over REST: requests and answers, both as the server and as a client sees them.

Source: https://github.com/kserve/open-inference-protocol (``specification/protocol/inference_rest.md``). Where the
specification contradicts itself, both readings are accepted: tensor data may be nested or flat. Tensors may also follow the
JSON as bytes, see `cloudai.serving.binary`. A server's quick path is `cloudai.serving.codec`; this one is careful.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloudai import texts
from cloudai.artifacts.signature import TEXT, Signature, TensorSpec, dtype_of
from cloudai.display import nearest
from cloudai.errors import DataError, RequestError
from cloudai.serving import binary

__all__ = [
    "DATATYPES",
    "InferenceRequest",
    "Wanted",
    "check_finite",
    "datatype",
    "decode_request",
    "decode_response",
    "dtype_named",
    "encode_binary_request",
    "encode_request",
    "model_metadata",
]

DATATYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    TEXT: "BYTES",
}
"""A signature's name of a dtype → the protocol's. Texts travel as BYTES, whose elements are JSON strings. The protocol's
table knows no BF16."""

_DTYPES = {name: np.dtype(object if dtype == TEXT else dtype) for dtype, name in DATATYPES.items()}
_MOST_DIMENSIONS = 16


@dataclass(frozen=True)
class Wanted:
    """An output that a request asks for, and whether as bytes after the JSON."""

    name: str
    binary: bool = False


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request that fits the model's signature.

    Attributes
    ----------
    id : str or None
        The client's name for it, echoed in the answer.
    inputs : dict of str to array
        Exactly the inputs of the signature.
    outputs : tuple of Wanted
        The outputs that are asked for, in the order asked.
    rows : int
        The length of the batch.
    """

    id: str | None
    inputs: dict[str, np.ndarray]
    outputs: tuple[Wanted, ...]
    rows: int


def datatype(dtype: str) -> str:
    """Return the protocol's name of a signature's dtype.

    Raises
    ------
    DataError
        If the protocol has none.

    Examples
    --------
    >>> datatype("float32")
    'FP32'
    """
    if dtype not in DATATYPES:
        raise DataError(f"the dtype {dtype} cannot be served", fix=f"use one of: {', '.join(DATATYPES)}")
    return DATATYPES[dtype]


def dtype_named(word: str) -> np.dtype:
    """Return numpy's dtype of a protocol's datatype; texts are objects."""
    return _DTYPES[word]


def decode_request(body: bytes | bytearray, signature: Signature, header_length: int | None = None) -> InferenceRequest:
    """Read an inference request and check it against the model.

    Parameters
    ----------
    body : bytes
        JSON. Tensor data may be nested as the shape says, or flat in row-major order.
    signature : Signature
        What the model takes and gives; the first axis of each array is the batch.
    header_length : int, optional
        How long the JSON is, where tensors follow it as bytes; 0 where the body is the one input's bytes alone.

    Raises
    ------
    RequestError
        If it is not JSON, or not a request, or does not fit the signature, or has no rows, or holds NaN or infinite values.

    Examples
    --------
    >>> signature = Signature((TensorSpec("x", "float32", (-1, 2)),), (TensorSpec("y", "float32", (-1,)),))
    >>> body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[3, 4]]}]}'
    >>> decode_request(body, signature).inputs
    {'x': array([[3., 4.]], dtype=float32)}
    """
    if header_length == 0:
        return _raw_request(body, signature)
    content = _Content(body, header_length)
    request = _object(_json(content.json), "the body", '{"inputs": [...]}')
    identity = request.get("id")
    if not isinstance(identity, str | None):
        raise RequestError('"id" must be a text', fix="leave it out, or give a text")
    specs = {spec.name: spec for spec in signature.inputs}
    inputs: dict[str, np.ndarray] = {}
    for entry in _list(request, "inputs"):
        name = _name(entry, "input", specs)
        if name in inputs:
            raise RequestError(f"the input {name!r} is given twice", fix="give each input once")
        inputs[name] = _tensor(entry, name, specs[name], content)
    content.check_end()
    return _checked(identity, inputs, _asked(request, signature), signature)


def _raw_request(body: bytes | bytearray, signature: Signature) -> InferenceRequest:
    """Read a body that is one tensor's bytes and nothing else: one row of a model with one input of numbers."""
    spec = signature.inputs[0]
    if len(signature.inputs) != 1 or -1 in spec.shape[1:] or spec.dtype == TEXT:
        raise RequestError(
            "a body without JSON needs a model with one input of numbers of a fixed shape", fix="send JSON first"
        )
    dtype = _DTYPES[datatype(spec.dtype)]
    rows = len(body) // max(1, dtype.itemsize * math.prod(spec.shape[1:]))
    array = binary.from_bytes(memoryview(bytearray(body)), (rows, *spec.shape[1:]), dtype, f"input {spec.name!r}")
    wanted = tuple(Wanted(output.name, binary=True) for output in signature.outputs)
    return _checked(None, {spec.name: array}, wanted, signature)


def _checked(
    identity: str | None, inputs: dict[str, np.ndarray], wanted: tuple[Wanted, ...], signature: Signature
) -> InferenceRequest:
    signature.check(inputs)
    empty = [name for name, array in inputs.items() if array.size == 0]
    if empty:
        raise RequestError(f"input {empty[0]!r} is empty", fix="send at least one row")
    return InferenceRequest(identity, inputs, wanted, len(inputs[signature.inputs[0].name]))


class _Content:
    """A body: its JSON, and the bytes after it, which tensors take one after the other."""

    def __init__(self, body: bytes | bytearray, header_length: int | None) -> None:
        whole = memoryview(body)
        length = len(whole) if header_length is None else header_length
        if not 0 <= length <= len(whole):
            what = f"the header says that {length} bytes are JSON, the body has {len(whole)}"
            raise RequestError(what, fix="send Inference-Header-Content-Length as the length of the JSON")
        self.json = bytes(whole[:length]) if header_length is not None else body
        self._rest = memoryview(bytearray(whole[length:]))  # a model may write into its inputs

    def take(self, size: Any, who: str) -> memoryview:
        """Return the next `size` bytes."""
        if type(size) is not int or not 0 <= size <= len(self._rest):
            raise RequestError(
                f"{who} should have {_short(size)} bytes, {len(self._rest)} are left",
                fix="send the tensors' bytes after the JSON, in the order of the inputs",
            )
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def check_end(self) -> None:
        """Raise `RequestError` where bytes are left over."""
        if len(self._rest):
            fix = "say each tensor's binary_data_size, and Inference-Header-Content-Length"
            raise RequestError(f"{len(self._rest)} bytes of the body belong to no tensor", fix=fix)


def encode_request(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Write a request as JSON.

    Raises
    ------
    DataError
        If an array's dtype has no name in the protocol, or it holds NaN or infinite values.

    Examples
    --------
    >>> encode_request({"x": np.array([[1, 2]], "int8")}).decode()
    '{"inputs":[{"name":"x","datatype":"INT8","shape":[1,2],"data":[1,2]}]}'
    """
    entries = [_entry(name, array) | {"data": array.ravel().tolist()} for name, array in arrays.items()]
    return json.dumps({"inputs": entries}, separators=(",", ":")).encode()


def encode_binary_request(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, int]:
    """Write a request whose tensors, and those of its answer, are bytes; return it and the length of its JSON.

    Raises
    ------
    DataError
        As `encode_request`.
    """
    tensors = [binary.to_bytes(array) for array in arrays.values()]
    entries = [
        _entry(name, array) | {"parameters": {"binary_data_size": len(tensor)}}
        for (name, array), tensor in zip(arrays.items(), tensors, strict=True)
    ]
    request = {"inputs": entries, "parameters": {"binary_data_output": True}}
    head = json.dumps(request, separators=(",", ":")).encode()
    return b"".join([head, *tensors]), len(head)


def decode_response(body: bytes, header_length: int | None = None) -> dict[str, np.ndarray]:
    """Read an answer.

    Raises
    ------
    RequestError
        If it is not an answer of this protocol.
    """
    content = _Content(body, header_length)
    outputs: dict[str, np.ndarray] = {}
    for entry in _list(_object(_json(content.json), "the answer", "JSON"), "outputs"):
        named = _object(entry, "an output", "an object")
        name, kind = str(named.get("name")), named.get("datatype")
        if kind not in _DTYPES:
            raise RequestError(f"the output {name!r} has the unknown datatype {kind!r}", fix=f"known: {', '.join(_DTYPES)}")
        size = _binary_size(named)
        if size is None:
            outputs[name] = _array(named, f"output {name!r}", _DTYPES[kind])
        else:
            shape = _shape(named.get("shape"), f"output {name!r}")
            data = content.take(size, f"output {name!r}")
            outputs[name] = binary.from_bytes(data, shape, _DTYPES[kind], f"output {name!r}", finite=False)
    return outputs


def model_metadata(model: str, versions: Sequence[str], signature: Signature) -> dict[str, Any]:
    """Describe a model as ``GET /v2/models/{model}`` answers."""
    return {
        "name": model,
        "versions": list(versions),
        "platform": "cloudai",
        "inputs": [_describe(spec) for spec in signature.inputs],
        "outputs": [_describe(spec) for spec in signature.outputs],
    }


def _describe(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype(spec.dtype), "shape": list(spec.shape)}


def _entry(name: str, array: np.ndarray) -> dict[str, Any]:
    kind = datatype(dtype_of(array))
    if array.dtype.kind == "f":
        check_finite(array, "input", name)
    return {"name": name, "datatype": kind, "shape": list(array.shape)}


def check_finite(array: np.ndarray, role: str, name: str) -> None:
    """Raise `DataError` if numbers that are to be JSON are NaN or infinite."""
    if not binary.is_finite(array):
        raise DataError(f"{role} {name!r} has NaN or infinite values, which JSON cannot carry", fix="replace them by numbers")


def _json(body: bytes | bytearray) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is not JSON: {reason}", fix="send JSON as the Open Inference Protocol v2 says") from None


def _refuse_constant(word: str) -> None:
    raise RequestError(f"the body has {word}, which is not JSON and no model takes", fix="replace it by a number")


def _object(value: Any, what: str, example: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{what} is not a JSON object", fix=f"send {example}")
    return value


def _list(request: Mapping[str, Any], key: str) -> list[Any]:
    value = request.get(key)
    if not isinstance(value, list):
        raise RequestError(f'"{key}" is missing or not a list', fix=f'send {{"{key}": [{{"name": ...}}, ...]}}')
    return value


def _name(entry: Any, role: str, known: Mapping[str, TensorSpec]) -> str:
    name = _object(entry, f"an {role}", '{"name": ...}').get("name")
    if not isinstance(name, str) or name not in known:
        raise RequestError(f"the model has no {role} {_short(name)}", fix=nearest(str(name)[:80], list(known)))
    return name


def _tensor(entry: Mapping[str, Any], name: str, spec: TensorSpec, content: _Content) -> np.ndarray:
    wanted, who = datatype(spec.dtype), f"input {name!r}"
    if entry.get("datatype") != wanted:
        raise RequestError(
            f"{who} has datatype {_short(entry.get('datatype'))}, the model takes {wanted}",
            fix=f'send "datatype": "{wanted}" and data of that kind',
        )
    size = _binary_size(entry)
    if size is None:
        return _array(entry, who, _DTYPES[wanted])
    if "data" in entry:
        raise RequestError(f"{who} has both data and binary_data_size", fix="send one of them")
    return binary.from_bytes(content.take(size, who), _shape(entry.get("shape"), who), _DTYPES[wanted], who)


def _binary_size(entry: Mapping[str, Any]) -> Any:
    """Return how many bytes an entry says that its tensor has after the JSON, or None."""
    return _parameters(entry).get("binary_data_size")


def _parameters(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object(holder.get("parameters", {}), '"parameters"', "{}")


def _array(entry: Mapping[str, Any], who: str, dtype: np.dtype) -> np.ndarray:
    """Build the array of one tensor; nothing is allocated by what the shape claims, only by the data that came."""
    shape, data = _shape(entry.get("shape"), who), entry.get("data")
    if not isinstance(data, list):
        raise RequestError(f'{who} has no "data" list', fix="send its elements in a list, nested or flat")
    elements = np.array(data, dtype=object)  # object: a list of texts would be allocated at the width of its longest
    if elements.shape != shape and elements.shape != (math.prod(shape),):
        raise RequestError(
            f"{who} says shape {list(shape)}, its data has shape {list(elements.shape)}",
            fix=f"send {math.prod(shape)} elements, flat or nested as the shape says",
        )
    return (_numbers if dtype.kind != "O" else _texts)(elements, who, dtype).reshape(shape)


def _shape(value: Any, who: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and 0 <= size < 2**63 for size in value):
        raise RequestError(f"{who} has the shape {_short(value)}", fix="send a list of lengths ≥ 0, such as [1, 4]")
    if len(value) > _MOST_DIMENSIONS:
        raise RequestError(f"{who} has {len(value)} dimensions", fix=f"send at most {_MOST_DIMENSIONS}")
    return tuple(value)


_ACCEPTED: Mapping[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


def _numbers(elements: np.ndarray, who: str, dtype: np.dtype) -> np.ndarray:
    """Convert without changing meaning: no texts, no nulls, no fractions or overflow in integers, no infinities."""
    kinds = set(map(type, elements.ravel().tolist()))
    strange = kinds - _ACCEPTED[dtype.kind]
    if strange:
        found = ", ".join(sorted(_JSON_WORDS[kind] for kind in strange))
        raise RequestError(
            f"{who} holds {found}, not only {dtype.name}", fix="send rows of equal length that hold numbers only"
        )
    try:
        with np.errstate(over="ignore"):
            numbers = elements.astype(dtype)
    except OverflowError:
        raise RequestError(f"{who} has a number outside of {dtype.name}", fix="scale the data, or check its unit") from None
    if dtype.kind == "f" and not np.isfinite(numbers).all():
        raise RequestError(f"{who} has a number outside of {dtype.name}", fix="scale the data, or check its unit")
    return numbers


def _texts(elements: np.ndarray, who: str, dtype: np.dtype) -> np.ndarray:
    """Take texts as they are; half a character, which JSON can say and UTF-8 cannot, is refused."""
    bad = texts.first_bad(elements)
    if bad is None:
        return elements
    found = "half a character" if isinstance(bad[1], str) else _JSON_WORDS[type(bad[1])]
    raise RequestError(f"{who} holds {found} at {bad[0]}, not only texts", fix="send JSON strings of valid Unicode")


_JSON_WORDS = {
    bool: "true or false",
    dict: "objects",
    float: "fractions",
    int: "integers",
    list: "rows of unequal length or too many dimensions",
    str: "texts",
    type(None): "null",
}


def _asked(request: Mapping[str, Any], signature: Signature) -> tuple[Wanted, ...]:
    specs = {spec.name: spec for spec in signature.outputs}
    as_bytes = _flag(_parameters(request), "binary_data_output", default=False)
    if not request.get("outputs"):
        return tuple(Wanted(name, as_bytes) for name in specs)
    asked = {
        _name(entry, "output", specs): _flag(_parameters(entry), "binary_data", default=as_bytes)
        for entry in _list(request, "outputs")
    }
    return tuple(Wanted(name, as_bytes) for name, as_bytes in asked.items())


def _flag(parameters: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise RequestError(f'the parameter "{key}" is {_short(value)}', fix="give true or false")
    return value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"
