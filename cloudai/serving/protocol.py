"""The Open Inference Protocol v2 over JSON: requests and answers, both as the server and as a client sees them.

Source: https://github.com/kserve/open-inference-protocol (``specification/protocol/inference_rest.md``). Where the
specification contradicts itself, both readings are accepted: tensor data may be nested or flat.
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

__all__ = [
    "DATATYPES",
    "InferenceRequest",
    "datatype",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
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
class InferenceRequest:
    """A request that fits the model's signature.

    Attributes
    ----------
    id : str or None
        The client's name for it, echoed in the answer.
    inputs : dict of str to array
        Exactly the inputs of the signature.
    outputs : tuple of str
        The outputs that are asked for, in the order asked.
    rows : int
        The length of the batch.
    """

    id: str | None
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...]
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


def decode_request(body: bytes, signature: Signature) -> InferenceRequest:
    """Read an inference request and check it against the model.

    Parameters
    ----------
    body : bytes
        JSON. Tensor data may be nested as the shape says, or flat in row-major order.
    signature : Signature
        What the model takes and gives; the first axis of each array is the batch.

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
    request = _object(_json(body), "the body", '{"inputs": [...]}')
    identity = request.get("id")
    if not isinstance(identity, str | None):
        raise RequestError('"id" must be a text', fix="leave it out, or give a text")
    specs = {spec.name: spec for spec in signature.inputs}
    inputs: dict[str, np.ndarray] = {}
    for entry in _list(request, "inputs"):
        name = _name(entry, "input", specs)
        if name in inputs:
            raise RequestError(f"the input {name!r} is given twice", fix="give each input once")
        inputs[name] = _tensor(entry, name, specs[name])
    signature.check(inputs)
    empty = [name for name, array in inputs.items() if array.size == 0]
    if empty:
        raise RequestError(f"input {empty[0]!r} is empty", fix="send at least one row")
    return InferenceRequest(identity, inputs, _asked(request, signature), len(inputs[signature.inputs[0].name]))


def encode_response(
    model: str, version: str, outputs: Mapping[str, np.ndarray], *, asked: Sequence[str], request_id: str | None
) -> bytes:
    """Write an answer: the outputs in `asked`, each flat in row-major order.

    Raises
    ------
    DataError
        If an output has NaN or infinite values, which JSON has no words for.
    """
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id is not None:
        answer["id"] = request_id
    answer["outputs"] = [_entry("output", name, outputs[name]) for name in asked]
    return json.dumps(answer, separators=(",", ":")).encode()


def encode_request(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Write a request.

    Raises
    ------
    DataError
        If an array's dtype has no name in the protocol, or it holds NaN or infinite values.

    Examples
    --------
    >>> encode_request({"x": np.array([[1, 2]], "int8")}).decode()
    '{"inputs":[{"name":"x","datatype":"INT8","shape":[1,2],"data":[1,2]}]}'
    """
    entries = [_entry("input", name, array) for name, array in arrays.items()]
    return json.dumps({"inputs": entries}, separators=(",", ":")).encode()


def decode_response(body: bytes) -> dict[str, np.ndarray]:
    """Read an answer.

    Raises
    ------
    RequestError
        If it is not an answer of this protocol.
    """
    outputs: dict[str, np.ndarray] = {}
    for entry in _list(_object(_json(body), "the answer", "JSON"), "outputs"):
        named = _object(entry, "an output", "an object")
        name, kind = str(named.get("name")), named.get("datatype")
        if kind not in _DTYPES:
            raise RequestError(f"the output {name!r} has the unknown datatype {kind!r}", fix=f"known: {', '.join(_DTYPES)}")
        outputs[name] = _array(named, f"output {name!r}", _DTYPES[kind])
    return outputs


def model_metadata(model: str, version: str, signature: Signature) -> dict[str, Any]:
    """Describe a model as ``GET /v2/models/{model}`` answers."""
    return {
        "name": model,
        "versions": [version],
        "platform": "cloudai",
        "inputs": [_describe(spec) for spec in signature.inputs],
        "outputs": [_describe(spec) for spec in signature.outputs],
    }


def _describe(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype(spec.dtype), "shape": list(spec.shape)}


def _entry(role: str, name: str, array: np.ndarray) -> dict[str, Any]:
    kind = datatype(dtype_of(array))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{role} {name!r} has NaN or infinite values, which JSON cannot carry", fix="replace them by numbers")
    return {"name": name, "datatype": kind, "shape": list(array.shape), "data": array.ravel().tolist()}


def _json(body: bytes) -> Any:
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


def _tensor(entry: Mapping[str, Any], name: str, spec: TensorSpec) -> np.ndarray:
    wanted = datatype(spec.dtype)
    if entry.get("datatype") != wanted:
        raise RequestError(
            f"input {name!r} has datatype {_short(entry.get('datatype'))}, the model takes {wanted}",
            fix=f'send "datatype": "{wanted}" and data of that kind',
        )
    return _array(entry, f"input {name!r}", _DTYPES[wanted])


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


def _asked(request: Mapping[str, Any], signature: Signature) -> tuple[str, ...]:
    specs = {spec.name: spec for spec in signature.outputs}
    if not request.get("outputs"):
        return tuple(specs)
    return tuple(dict.fromkeys(_name(entry, "output", specs) for entry in _list(request, "outputs")))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"
