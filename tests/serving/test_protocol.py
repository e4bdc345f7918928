from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.errors import DataError, RequestError
from cloudai.serving import protocol

SIGNATURE = Signature(
    (TensorSpec("x", "float32", (-1, 2)), TensorSpec("k", "uint64", (-1,))), (TensorSpec("y", "float32", (-1,)),)
)
X = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2.5], [3, 4]]}
K = {"name": "k", "datatype": "UINT64", "shape": [2], "data": [1, 2**63 + 1]}


def decode(value, signature=SIGNATURE):
    return protocol.decode_request(json.dumps(value).encode(), signature)


def array_strategy(dtype):
    shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)
    if dtype == "str":
        return hnp.arrays(object, shapes, elements=st.text(st.characters(codec="utf-8"), max_size=8))
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else None
    return hnp.arrays(dtype, shapes, elements=elements)


@pytest.mark.parametrize("dtype", protocol.DATATYPES)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), nested=st.booleans())
def test_every_dtype_survives_the_way_there_and_back(dtype, nested, data):
    array = data.draw(array_strategy(dtype))
    spec = TensorSpec("t", dtype, (-1, *array.shape[1:]))
    body = protocol.encode_request({"t": array})
    if nested:
        request = json.loads(body)
        request["inputs"][0]["data"] = array.tolist()
        body = json.dumps(request).encode()
    inputs = protocol.decode_request(body, Signature((spec,), (spec,))).inputs
    answer = protocol.encode_response("m", "1", inputs, asked=["t"], request_id=None)
    for again in (inputs["t"], protocol.decode_response(answer)["t"]):
        assert again.dtype == array.dtype
        assert np.array_equal(again, array)


def test_a_request_says_its_id_its_rows_and_the_outputs_that_it_wants():
    request = decode({"id": "abc", "inputs": [K, X], "outputs": [{"name": "y"}]})
    assert (request.id, request.rows, request.outputs) == ("abc", 2, ("y",))
    assert request.inputs["k"].tolist() == [1, 2**63 + 1]


def test_an_answer_echoes_the_id_only_if_there_was_one():
    outputs = {"y": np.ones(1, "float32")}
    with_id = json.loads(protocol.encode_response("m", "1", outputs, asked=["y"], request_id="abc"))
    without = json.loads(protocol.encode_response("m", "1", outputs, asked=["y"], request_id=None))
    assert with_id["id"] == "abc"
    assert "id" not in without


def x_with(**change):
    return {"inputs": [{**X, **change}, K]}


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        ([], "not a JSON object"),
        ({}, '"inputs" is missing'),
        ({"inputs": {}}, "not a list"),
        ({"inputs": [3]}, "not a JSON object"),
        ({"inputs": [X, K], "id": 3}, '"id" must be a text'),
        ({"inputs": [X]}, "the input 'k' is missing"),
        ({"inputs": [X, K, X]}, "given twice"),
        ({"inputs": [X, K, {**X, "name": "z"}]}, 'no input "z"'),
        ({"inputs": [X, K], "outputs": [{"name": "z"}]}, 'no output "z"'),
        ({"inputs": [X, K], "outputs": "y"}, "not a list"),
        (x_with(datatype="FP64"), "takes FP32"),
        (x_with(datatype=None), "takes FP32"),
        (x_with(shape=[2, 3]), "its data has shape [2, 2]"),
        (x_with(shape=[4], data=[1, 2, 3, 4]), "the model takes x: float32[n, 2]"),
        (x_with(shape=[1, 2], data=[1, 2]), "different lengths"),
        (x_with(shape=[-1, 2]), "has the shape [-1, 2]"),
        (x_with(shape=[2.0, 2]), "has the shape"),
        (x_with(shape=[True, 2]), "has the shape"),
        (x_with(shape=None), "has the shape null"),
        (x_with(shape=[1] * 17), "17 dimensions"),
        (x_with(shape=[2**62, 2**62]), "its data has shape"),
        (x_with(shape=[10**4000, 10**4000]), "has the shape [1000"),
        (x_with(data=None), 'no "data" list'),
        (x_with(data="1234"), 'no "data" list'),
        (x_with(data=[1, 2, 3]), "its data has shape [3]"),
        (x_with(data=[[1, 2], [3]]), "its data has shape [2]"),
        (x_with(data=[1, 2, 3, [4]]), "rows of unequal length"),
        (x_with(data=[1, 2, 3, "4"]), "texts"),
        (x_with(data=[1, 2, 3, None]), "null"),
        (x_with(data=[1, 2, 3, {}]), "objects"),
        (x_with(data=[1, 2, 3, True]), "true or false"),
        (x_with(data=[1, 2, 3, 1e39]), "outside of float32"),
        (x_with(data=[1, 2, 3, 10**400]), "outside of float32"),
        (x_with(data=[1, 2, 3, float("nan")]), "NaN"),
        (x_with(data=[1, 2, 3, float("-inf")]), "-Infinity"),
        ({"inputs": [X, {**K, "data": [1, 2.0]}]}, "fractions"),
        ({"inputs": [X, {**K, "data": [1, -2]}]}, "outside of uint64"),
        ({"inputs": [X, {**K, "data": [1, 2**64]}]}, "outside of uint64"),
        ({"inputs": [{**X, "shape": [0, 2], "data": []}, {**K, "shape": [0], "data": []}]}, "is empty"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(request_, what):
    with pytest.raises(RequestError) as caught:
        decode(request_)
    assert what in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"inputs": ' + b"9" * 5000 + b"}", b'"\xed\xa0\x80"']
)
def test_a_body_that_is_not_json_is_refused(body):
    with pytest.raises(RequestError):
        protocol.decode_request(body, SIGNATURE)


@pytest.mark.parametrize("key", ["name", "datatype", "shape", "data"])
def test_no_depth_of_nesting_breaks_it(key):
    for depth in range(850, 1010):
        request = json.dumps({"inputs": [{**X, key: "deep"}, K]}).replace('"deep"', "[" * depth + "]" * depth)
        with pytest.raises(RequestError):
            protocol.decode_request(request.encode(), SIGNATURE)


def test_a_float_that_json_reads_as_infinite_is_refused():
    body = json.dumps({"inputs": [X, K]}).replace("2.5", "1e999").encode()
    with pytest.raises(RequestError, match="outside of float32"):
        protocol.decode_request(body, SIGNATURE)


def test_one_long_text_among_many_short_ones_costs_no_memory():
    data = ["x" * 1_000_000, *["y"] * 1_000_000]  # as numpy's texts this would be 4 TB
    with pytest.raises(RequestError, match="texts"):
        decode(x_with(shape=[len(data)], data=data))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["x", "k", "FP32", "UINT64"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "shape", "data"]), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "inputs": JSON
            | st.lists(
                st.fixed_dictionaries(
                    {
                        "name": st.sampled_from(["x", "k"]) | JSON,
                        "datatype": st.sampled_from(["FP32", "UINT64"]) | JSON,
                        "shape": st.sampled_from([[2], [2, 2], [0]]) | JSON,
                        "data": JSON,
                    }
                ),
                max_size=3,
            )
        }
    )
)
def test_whatever_comes_is_a_good_request_or_a_request_error(value):
    try:
        request = decode(value)
    except RequestError:
        return
    SIGNATURE.check(request.inputs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_json_cannot_carry_are_not_written(bad):
    with pytest.raises(DataError, match="NaN or infinite"):
        protocol.encode_request({"x": np.array([bad])})


@pytest.mark.parametrize("dtype", ["complex64", "S3", "datetime64[s]", "object"])
def test_dtypes_that_the_protocol_does_not_know_are_refused(dtype):
    with pytest.raises(DataError, match="cannot be served"):
        protocol.encode_request({"x": np.zeros(1, dtype)})


TEXTS = Signature((TensorSpec("text", "str", (-1,)),), (TensorSpec("label", "str", (-1,)),))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (["good", 1], "integers at 1"),
        ([None, "good"], "null at 0"),
        (["good", ["bad"]], "unequal length"),
        (["good", "\ud83d"], "half a character at 1"),
        ("good", 'no "data" list'),
        (["good"], "says shape [2]"),
    ],
)
def test_texts_are_json_strings_of_valid_unicode(data, what):
    with pytest.raises(RequestError) as caught:
        decode({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": data}]}, TEXTS)
    assert what in caught.value.what


def test_a_text_may_be_empty_but_a_batch_may_not():
    inputs = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [""]}
    assert decode({"inputs": [inputs]}, TEXTS).inputs["text"].tolist() == [""]
    with pytest.raises(RequestError, match="is empty"):
        decode({"inputs": [{**inputs, "shape": [0], "data": []}]}, TEXTS)


def test_metadata_uses_the_protocols_words():
    about = protocol.model_metadata("m", "1.0.0", SIGNATURE)
    assert about["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    assert about["versions"] == ["1.0.0"]
