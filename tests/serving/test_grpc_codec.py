"""Requests and answers as messages: all datatypes, as bytes and as lists of elements, against tritonclient's own messages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.errors import RequestError
from cloudai.serving.grpc_codec import GrpcCodec
from cloudai.serving.protocol import DATATYPES, datatype, dtype_named

TYPED = [dtype for dtype in DATATYPES if dtype != "float16"]
FIELDS = {"b": "bool_contents", "f4": "fp32_contents", "f8": "fp64_contents", "O": "bytes_contents", "u8": "uint64_contents"}
FIELDS |= (
    {"i8": "int64_contents"} | {f"i{n}": "int_contents" for n in (1, 2, 4)} | {f"u{n}": "uint_contents" for n in (1, 2, 4)}
)
VALUES = {
    "b": st.booleans(),
    "f": st.floats(-1000, 1000, width=16),
    "O": st.text(max_size=5),
    "i": st.integers(-100, 100),
    "u": st.integers(0, 200),
}


def codec_for(dtype):
    return GrpcCodec("m", "1", Signature((TensorSpec("x", dtype, (-1, 2)),), (TensorSpec("y", dtype, (-1, 2)),)))


def field_of(dtype):
    return FIELDS.get(dtype.kind) or FIELDS[dtype.str[1:]]


def raw_of(array):
    return serialize_byte_tensor(array).item() if array.dtype.kind == "O" else array.tobytes()


def message_for(array, dtype, *, raw):
    made = service_pb2.ModelInferRequest(model_name="m", id="mine")
    tensor = made.inputs.add(name="x", datatype=datatype(dtype), shape=array.shape)
    if raw:
        made.raw_input_contents.append(raw_of(array))
    else:
        elements = [text.encode() for text in array.ravel()] if array.dtype.kind == "O" else array.ravel().tolist()
        getattr(tensor.contents, field_of(array.dtype)).extend(elements)
    return made.SerializeToString()


@pytest.mark.parametrize("dtype", DATATYPES)
@settings(max_examples=15)
@given(data=st.data())
def test_each_datatype_comes_and_goes_in_both_forms(dtype, data):
    kind = dtype_named(datatype(dtype))
    rows = data.draw(st.integers(1, 3))
    values = data.draw(st.lists(VALUES[kind.kind], min_size=2 * rows, max_size=2 * rows))
    array = np.array(values, kind).reshape(rows, 2)
    codec = codec_for(dtype)
    for raw in (True, False) if dtype in TYPED else (True,):
        request = codec.decode(message_for(array, dtype, raw=raw))
        assert (request.id, request.rows, request.inputs["x"].dtype) == ("mine", rows, kind)
        assert request.inputs["x"].tolist() == array.tolist()
        assert request.inputs["x"].flags.writeable
        (body,), _ = codec.encode({"y": array}, request)
        answer = service_pb2.ModelInferResponse.FromString(body)
        assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "mine")
        assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == (datatype(dtype), [rows, 2])
        assert elements_of(answer, kind, raw=raw) == array.ravel().tolist()


def elements_of(answer, kind, *, raw):
    if not raw:
        assert not answer.raw_output_contents
        elements = list(getattr(answer.outputs[0].contents, field_of(kind)))
        return [text.decode() for text in elements] if kind.kind == "O" else elements
    (data,) = answer.raw_output_contents
    if kind.kind == "O":
        return [text.decode() for text in deserialize_bytes_tensor(data)]
    return np.frombuffer(data, kind).tolist()


def test_half_precision_goes_as_bytes_also_where_the_request_came_in_lists():
    signature = Signature(
        (TensorSpec("x", "float32", (-1,)),), (TensorSpec("y", "float16", (-1,)), TensorSpec("z", "int8", (-1,)))
    )
    codec = GrpcCodec("m", "1", signature)
    made = service_pb2.ModelInferRequest(model_name="m")
    made.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
    request = codec.decode(made.SerializeToString())
    (body,), _ = codec.encode({"y": np.float16([0.5]), "z": np.int8([7])}, request)
    answer = service_pb2.ModelInferResponse.FromString(body)
    assert list(answer.raw_output_contents) == [np.float16([0.5]).tobytes(), b"\x07"]


@pytest.mark.parametrize(("dtype", "field", "value"), [("int8", "int_contents", 128), ("uint16", "uint_contents", 65536)])
def test_a_number_that_its_datatype_cannot_hold_is_refused(dtype, field, value):
    made = service_pb2.ModelInferRequest(model_name="m")
    tensor = made.inputs.add(name="x", datatype=datatype(dtype), shape=[1, 2])
    getattr(tensor.contents, field).extend([0, value])
    with pytest.raises(RequestError, match="input 'x' has a number outside of"):
        codec_for(dtype).decode(made.SerializeToString())


def test_bytes_that_are_no_text_are_refused():
    made = service_pb2.ModelInferRequest(model_name="m")
    made.inputs.add(name="x", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"a", b"\xff"])
    with pytest.raises(RequestError, match="holds bytes that are no UTF-8"):
        codec_for("str").decode(made.SerializeToString())


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_refused(body):
    try:
        codec_for("float32").decode(body)
    except RequestError as error:
        assert error.fix
