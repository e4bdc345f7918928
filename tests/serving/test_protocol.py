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
from cloudai.serving.codec import Codec

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
    codec = Codec("m", "1", Signature((spec,), (spec,)))
    careful, request = protocol.decode_request(body, codec.signature), codec.decode(body)
    pieces, _ = codec.encode(request.inputs, request)
    for again in (careful.inputs["t"], request.inputs["t"], protocol.decode_response(b"".join(pieces))["t"]):
        assert again.dtype == array.dtype
        assert np.array_equal(again, array)


def test_a_request_says_its_id_its_rows_and_the_outputs_that_it_wants():
    request = decode({"id": "abc", "inputs": [K, X], "outputs": [{"name": "y"}]})
    assert (request.id, request.rows, request.outputs) == ("abc", 2, (protocol.Wanted("y"),))
    assert request.inputs["k"].tolist() == [1, 2**63 + 1]


def test_an_answer_echoes_the_id_only_if_there_was_one():
    codec = Codec("m", "1", SIGNATURE)
    outputs = {spec.name: np.ones((1, *spec.shape[1:]), spec.dtype) for spec in SIGNATURE.outputs}
    for more in ({"id": "abc"}, {}):
        request = codec.decode(json.dumps({"inputs": [X, K], **more}).encode())
        answer = json.loads(b"".join(codec.encode(outputs, request)[0]))
        assert answer.get("id") == more.get("id")


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
    codec, body = Codec("m", "1", SIGNATURE), json.dumps(value).encode()
    try:
        request = protocol.decode_request(body, SIGNATURE)
    except RequestError:
        with pytest.raises(RequestError):
            codec.decode(body)
        return
    SIGNATURE.check(request.inputs)
    quick = codec.decode(body)
    assert (quick.id, quick.rows, quick.outputs) == (request.id, request.rows, request.outputs)
    assert all(np.array_equal(quick.inputs[name], array) for name, array in request.inputs.items())


def with_bytes(*tensors, **parameters):
    """Return a body whose tensors are bytes, and the length of its JSON."""
    entries = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, kind, shape, data in tensors
    ]
    head = json.dumps({"inputs": entries, **parameters}).encode()
    return head + b"".join(data for *_, data in tensors), len(head)


X_BYTES = ("x", "FP32", [2, 2], np.float32([1, 2, 3, 4]).tobytes())
K_BYTES = ("k", "UINT64", [2], np.uint64([1, 2]).tobytes())


@pytest.mark.parametrize("dtype", protocol.DATATYPES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_dtype_survives_as_bytes(dtype, data):
    array = data.draw(array_strategy(dtype))
    spec = TensorSpec("t", dtype, (-1, *array.shape[1:]))
    codec = Codec("m", "1", Signature((spec,), (spec,)))
    request = codec.decode(*protocol.encode_binary_request({"t": array}))
    pieces, head = codec.encode(request.inputs, request)
    for again in (request.inputs["t"], protocol.decode_response(b"".join(pieces), head)["t"]):
        assert again.dtype == array.dtype
        assert np.array_equal(again, array)


def test_json_and_bytes_may_be_mixed():
    body, head = with_bytes(X_BYTES, outputs=[{"name": "y", "parameters": {"binary_data": True}}])
    request = json.loads(body[:head])
    mixed = json.dumps({**request, "inputs": [K, *request["inputs"]]}).encode()
    read = protocol.decode_request(mixed + body[head:], SIGNATURE, len(mixed))
    assert read.inputs["x"].tolist() == [[1, 2], [3, 4]]
    assert read.outputs == (protocol.Wanted("y", binary=True),)


def test_a_tensor_after_an_odd_number_of_bytes_is_aligned_again():
    signature = Signature((TensorSpec("b", "uint8", (-1, 3)), TensorSpec("x", "float32", (-1, 1))), SIGNATURE.outputs)
    body, head = with_bytes(("b", "UINT8", [1, 3], b"abc"), ("x", "FP32", [1, 1], np.float32([7]).tobytes()))
    x = protocol.decode_request(body, signature, head).inputs["x"]
    assert x.tolist() == [[7]]
    assert x.flags.aligned
    assert x.flags.writeable


def test_a_body_without_json_is_the_one_inputs_bytes():
    signature = Signature(SIGNATURE.inputs[:1], SIGNATURE.outputs)
    read = protocol.decode_request(X_BYTES[3], signature, 0)
    assert read.inputs["x"].tolist() == [[1, 2], [3, 4]]
    assert [wanted.binary for wanted in read.outputs] == [True]
    with pytest.raises(RequestError, match="one input"):
        protocol.decode_request(X_BYTES[3], SIGNATURE, 0)
    for wrong in (b"", b"1234567", X_BYTES[3] + b"1"):
        with pytest.raises(RequestError):
            protocol.decode_request(wrong, signature, 0)


TEXTS = Signature((TensorSpec("t", "str", (-1,)),), SIGNATURE.outputs)


@pytest.mark.parametrize(
    ("signature", "tensors", "change", "what"),
    [
        (SIGNATURE, [X_BYTES], {}, "the input 'k' is missing"),
        (SIGNATURE, [X_BYTES, K_BYTES], {"more": b"!"}, "1 bytes of the body belong to no tensor"),
        (SIGNATURE, [X_BYTES, K_BYTES], {"fewer": 1}, "should have 16 bytes, 15 are left"),
        (SIGNATURE, [X_BYTES, K_BYTES], {"head": 10**9}, "bytes are JSON, the body has"),
        (SIGNATURE, [X_BYTES, K_BYTES], {"head": 5}, "not JSON"),
        (SIGNATURE, [("x", "FP32", [2, 3], X_BYTES[3]), K_BYTES], {}, "has 16 bytes, its shape [2, 3] of float32 takes 24"),
        (SIGNATURE, [("x", "FP32", [2**62, 2**62], X_BYTES[3]), K_BYTES], {}, "has 16 bytes"),
        (SIGNATURE, [("x", "FP32", [-1, 2], X_BYTES[3]), K_BYTES], {}, "has the shape [-1, 2]"),
        (SIGNATURE, [("x", "FP32", [2, 2], np.float32([1, 2, 3, np.nan]).tobytes()), K_BYTES], {}, "NaN"),
        (SIGNATURE, [("x", "FP64", [2, 2], np.zeros(4).tobytes()), K_BYTES], {}, "takes FP32"),
        (TEXTS, [("t", "BYTES", [2**60], b"")], {}, "too few for"),
        (TEXTS, [("t", "BYTES", [1], b"\x05\0\0\0abc")], {}, "ends before its text does"),
        (TEXTS, [("t", "BYTES", [1], b"\x01\0\0\0\xff")], {}, "holds no texts"),
        (TEXTS, [("t", "BYTES", [1], b"\0\0\0\0\0")], {}, "1 bytes are left over"),
    ],
)
def test_wrong_bytes_are_refused_before_anything_is_allocated(signature, tensors, change, what):
    body, head = with_bytes(*tensors)
    body = body[: len(body) - change.get("fewer", 0)] + change.get("more", b"")
    with pytest.raises(RequestError) as caught:
        protocol.decode_request(body, signature, change.get("head", head))
    assert what in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"parameters": {"binary_data_size": "8"}}, "should have"),
        ({"parameters": {"binary_data_size": -1}}, "should have -1 bytes"),
        ({"parameters": {"binary_data_size": True}}, "should have true bytes"),
        ({"parameters": 3}, '"parameters" is not'),
        ({"parameters": {"binary_data_size": 16}, "data": [1, 2, 3, 4]}, "both data and binary_data_size"),
    ],
)
def test_wrong_words_about_bytes_are_refused(entry, what):
    head = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], **entry}]}).encode()
    with pytest.raises(RequestError) as caught:
        protocol.decode_request(head + X_BYTES[3], SIGNATURE, len(head))
    assert what in caught.value.what


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=80), head=st.integers(-2, 90), place=st.integers(0, 200), junk=st.binary(max_size=8))
def test_whatever_bytes_come_is_a_good_request_or_a_request_error(body, head, place, junk):
    good, length = with_bytes(X_BYTES, K_BYTES)
    for content, split in ((body, head), (good[:place] + junk + good[place + len(junk) :], length)):
        codec = Codec("m", "1", SIGNATURE)
        try:
            request = protocol.decode_request(content, SIGNATURE, split)
        except RequestError:
            with pytest.raises(RequestError):
                codec.decode(content, split)
            continue
        SIGNATURE.check(request.inputs)
        quick = codec.decode(content, split)
        assert (quick.id, quick.rows, quick.outputs) == (request.id, request.rows, request.outputs)
        assert all(np.array_equal(quick.inputs[name], array) for name, array in request.inputs.items())


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
    about = protocol.model_metadata("m", ["1.0.0"], SIGNATURE)
    assert about["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    assert about["versions"] == ["1.0.0"]
