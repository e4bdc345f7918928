"""gRPC: a real server and a real router, asked by tritonclient and by gRPC's own client."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from cloudai import __version__
from cloudai.serving import grpc_messages
from cloudai.state.tokens import read_token, renew_token
from tests.conftest import wait_until
from tests.serving.processes import body_of

X = np.array([[1, 0], [2, 0]], "float32")


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "token"
    renew_token(path)
    return path


@pytest.fixture(scope="module")
def server(start_once, token_file):
    return start_once.server(token_file=str(token_file), grpc_port=0, max_body="100kB", threads=8).wait_until_ready()


@pytest.fixture(scope="module")
def router(start_once, server, token_file):
    made = start_once.router(token_file=token_file, grpc_port=0, max_body="100kB").wait_until_ready()
    made.route({"a": 100}, {"a": server})
    return made


@pytest.fixture(params=["server", "router"])
def served(request, server, router):
    return {"server": server, "router": router}[request.param]


@pytest.fixture
def headers(token_file):
    return {"authorization": f"Bearer {read_token(token_file)}"}


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(f"127.0.0.1:{served.state['grpc_port']}") as client:
        yield client


def tensor(x=X, name="x", kind="FP32"):
    made = triton.InferInput(name, list(x.shape), kind)
    return made.set_data_from_numpy(x)


def refused(call, *arguments, **options):
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return caught.value


def fields_of(message: descriptor.Descriptor):
    about = {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.is_packed,
            field.message_type.full_name if field.message_type else "",
            field.containing_oneof.name if field.containing_oneof else "",
        )
        for field in message.fields
    }
    return about | {nested.name: fields_of(nested) for nested in message.nested_types}


@pytest.mark.parametrize("name", [name for name in grpc_messages._INFERENCE if "." not in name])
def test_our_messages_are_those_of_the_specification(name):
    ours = grpc_messages._pool.FindMessageTypeByName(f"inference.{name}")
    assert fields_of(ours) == fields_of(service_pb2.DESCRIPTOR.message_types_by_name[name])


def test_what_triton_asks_of_a_server(client, headers):
    assert client.is_server_live()
    assert client.is_server_ready()
    about = client.get_server_metadata(headers)
    assert (about.name, about.version) == ("cloudai", __version__)
    assert client.is_model_ready("scaler", headers=headers)
    assert client.is_model_ready("scaler", "1.2.0", headers=headers)
    model = client.get_model_metadata("scaler", headers=headers)
    assert list(model.versions) == ["1.2.0"]
    assert [(x.name, x.datatype, list(x.shape)) for x in model.inputs] == [("x", "FP32", [-1, 2])]
    assert [(y.name, y.datatype, list(y.shape)) for y in model.outputs] == [("y", "FP32", [-1]), ("row", "INT64", [-1])]


def test_triton_predicts(client, headers):
    result = client.infer("scaler", [tensor()], headers=headers, request_id="mine")
    assert result.as_numpy("y").tolist() == [2, 4]
    assert result.as_numpy("row").tolist() == [0, 1]
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("mine", "scaler", "1.2.0")
    only = client.infer(
        "scaler", [tensor()], outputs=[triton.InferRequestedOutput("row")], model_version="1.2.0", headers=headers
    )
    assert only.as_numpy("row").tolist() == [0, 1]
    assert only.as_numpy("y") is None


@pytest.fixture
def stub(served):
    """A client of gRPC's own, from bytes to bytes."""
    with grpc.insecure_channel(f"127.0.0.1:{served.state['grpc_port']}") as channel:
        yield lambda method, service="inference.GRPCInferenceService": channel.unary_unary(f"/{service}/{method}")


def request(**more):
    made = service_pb2.ModelInferRequest(model_name="scaler", **more)
    if not made.inputs:
        made.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([3, 0])
    return made


def bearer(headers, *more):
    return (*headers.items(), *more)


def test_typed_contents_are_answered_in_kind(stub, headers):
    answer = service_pb2.ModelInferResponse.FromString(
        stub("ModelInfer")(request().SerializeToString(), metadata=bearer(headers))
    )
    assert [list(output.contents.fp32_contents) for output in answer.outputs] == [[6], []]
    assert list(answer.outputs[1].contents.int64_contents) == [0]
    assert not answer.raw_output_contents
    assert not answer.id


def test_the_request_id_and_the_revision_come_back_as_metadata(served, stub, headers):
    _, call = stub("ModelInfer").with_call(request().SerializeToString(), metadata=bearer(headers, ("x-request-id", "mine")))
    trailing = dict(call.trailing_metadata())
    assert trailing["x-request-id"] == "mine"
    assert trailing.get("x-cloudai-revision") == ("a" if "router" in str(served.folder) else None)


@pytest.mark.parametrize("given", [{}, {"authorization": "Bearer " + "A" * 43}, {"authorization": "Basic x"}])
def test_without_the_token_only_health_is_answered(client, stub, given):
    assert client.is_server_ready(headers=given)
    for ask in (client.get_server_metadata, lambda headers: client.infer("scaler", [tensor()], headers=headers)):
        error = refused(ask, headers=given)
        assert error.status() == "StatusCode.UNAUTHENTICATED"
        assert "the token is missing or wrong\nFix: send 'authorization: Bearer '" in error.message()
    checked = stub("Check", "grpc.health.v1.Health")(b"")
    assert checked == b"\x08\x01"  # SERVING


def test_a_stranger_is_refused_before_he_has_sent_anything(served):
    forever = threading.Event()
    with grpc.insecure_channel(f"127.0.0.1:{served.state['grpc_port']}") as channel:
        for method in ("ModelInfer", "ModelMetadata", "ModelStreamInfer"):
            call = channel.stream_unary(f"/inference.GRPCInferenceService/{method}").future(iter(forever.wait, None))
            assert call.exception(5).code() == grpc.StatusCode.UNAUTHENTICATED
        late = channel.stream_unary("/inference.GRPCInferenceService/ServerLive").future(iter(forever.wait, None))
        assert late.exception(5).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    forever.set()


def test_health_in_grpcs_own_words(stub):
    check = stub("Check", "grpc.health.v1.Health")
    assert check(grpc_messages.HealthCheckRequest(service="inference.GRPCInferenceService").SerializeToString()) == b"\x08\x01"
    with pytest.raises(grpc.RpcError) as caught:
        check(grpc_messages.HealthCheckRequest(service="other").SerializeToString())
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        stub("Watch", "grpc.health.v1.Health")(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def of_shape(*shape, **more):
    made = service_pb2.ModelInferRequest(model_name="scaler", raw_input_contents=more.pop("raw", [b"\0" * 8]))
    made.inputs.add(**{"name": "x", "datatype": "FP32", "shape": shape} | more)
    return made


def mixed():
    made = of_shape(1, 2)
    made.inputs[0].contents.fp32_contents.extend([1, 0])
    return made


def floats(*values, **more):
    made = service_pb2.ModelInferRequest(model_name="scaler")
    made.inputs.add(**{"name": "x", "datatype": "FP32", "shape": [1, 2]} | more).contents.fp32_contents.extend(values)
    return made


BAD = {
    "no message": (b"\xff\xff\xff", "INVALID_ARGUMENT", "the request is no ModelInfer"),
    "half a message": (of_shape(1, 2).SerializeToString()[:-3], "INVALID_ARGUMENT", "the request is no ModelInfer"),
    "a name that is no text": (b"\x0a\x02\xff\xff", "INVALID_ARGUMENT", "the request is no ModelInfer"),
    "nothing": (b"", "NOT_FOUND", "there is no"),
    "another model": (request(model_version="9"), "NOT_FOUND", "there is no model at /v2/models/scaler/versions/9"),
    "a way out": (service_pb2.ModelInferRequest(model_name="../../metrics?"), "NOT_FOUND", "there is no"),
    "another input": (of_shape(1, 2, name="z"), "INVALID_ARGUMENT", 'the model has no input "z"'),
    "another datatype": (of_shape(1, 2, datatype="FP64"), "INVALID_ARGUMENT", "the model takes FP32"),
    "no such datatype": (floats(1, 0, datatype="BF16"), "INVALID_ARGUMENT", "the model takes FP32"),
    "too few bytes": (of_shape(2, 2), "INVALID_ARGUMENT", "input 'x' has 8 bytes, its shape [2, 2] of float32 takes 16"),
    "too few elements": (floats(1), "INVALID_ARGUMENT", "input 'x' has 4 bytes"),
    "a negative length": (of_shape(-1, -2), "INVALID_ARGUMENT", "input 'x' has the shape [-1, -2]"),
    "an endless length": (of_shape(2**62, 2**62), "INVALID_ARGUMENT", "input 'x'"),
    "no rows": (of_shape(0, 2, raw=[b""]), "INVALID_ARGUMENT", "is empty"),
    "too many tensors": (of_shape(1, 2, raw=[b"", b""]), "INVALID_ARGUMENT", "there are 2 raw_input_contents for 1 inputs"),
    "both forms": (mixed(), "INVALID_ARGUMENT", "there are 1 raw_input_contents for 1 inputs"),
    "NaN": (floats(float("nan"), 0), "INVALID_ARGUMENT", "holds NaN or infinite values"),
    "infinity in bytes": (of_shape(1, 2, raw=[np.float32([np.inf, 0]).tobytes()]), "INVALID_ARGUMENT", "holds NaN or infinite"),
    "another output": (
        request(outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="z")]), "INVALID_ARGUMENT", "no output",
    ),
    "a model that refuses": (floats(1, -4), "INVALID_ARGUMENT", "x is out of the model's range"),
    "a model that fails": (floats(1, -1), "INTERNAL", "the model failed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_its_status(stub, headers, case):
    message, code, what = BAD[case]
    body = message if isinstance(message, bytes) else message.SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        stub("ModelInfer")(body, metadata=bearer(headers), timeout=10)
    assert (caught.value.code().name, what in caught.value.details()) == (code, True), caught.value.details()
    assert "\nFix: " in caught.value.details()
    assert "secret" not in caught.value.details()


def test_metadata_cannot_speak_http(stub, headers):
    tricks = (("content-length", "5"), ("content-encoding", "br"), ("content-type-x", "y"), ("host", "evil.example"))
    more = (("inference-header-content-length", "3"), ("x-request-timeout", "-1"), ("key-bin", b"\x00\xff"))
    metadata = bearer(headers, *tricks, *more, ("connection", "authorization"), ("transfer-encoding", "chunked"))
    answer = stub("ModelInfer")(request().SerializeToString(), metadata=metadata, timeout=10)
    assert service_pb2.ModelInferResponse.FromString(answer).outputs[0].contents.fp32_contents[0] == 6


def test_large_and_compressed_messages_are_refused(client, served, headers):
    error = refused(client.infer, "scaler", [tensor(np.zeros((20_000, 2), "float32"))], headers=headers)
    assert error.status() == "StatusCode.RESOURCE_EXHAUSTED"
    zeros = [tensor(np.zeros((100, 2), "float32"))]
    error = refused(client.infer, "scaler", zeros, headers=headers, compression_algorithm="gzip")
    assert error.status() == "StatusCode.UNIMPLEMENTED"
    assert client.is_server_live()


def test_a_stream_answers_one_after_the_other_and_goes_on(client, headers):
    answers: list = []
    client.start_stream(lambda result, error: answers.append((result, error)), headers=headers)
    for x in ([[1, 0]], [[1, -4]], [[3, 0]]):
        client.async_stream_infer("scaler", [tensor(np.array(x, "float32"))])
    client.stop_stream()
    assert [result.as_numpy("y").tolist() for result, _ in answers if result] == [[2], [6]]
    assert ["out of the model" in error.message() for _, error in answers if error] == [True]
    assert answers[1][1] is not None


def test_a_deadline_is_passed_down(stub, server, headers):
    late = slow_call(stub, server, headers, timeout=0.3)
    assert late.exception(5).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: in_flight(server, headers) == 0, timeout=5)
    assert metric(server, headers, "ml_inference_errors_total") >= 1


def test_a_cancelled_call_is_dropped(stub, server, headers):
    slow_call(stub, server, headers).cancel()
    wait_until(lambda: in_flight(server, headers) == 0, timeout=5)
    assert stub("ModelInfer")(request().SerializeToString(), metadata=bearer(headers), timeout=5)


def slow_call(stub, server, headers, **options):
    call = stub("ModelInfer").future(floats(1, 25).SerializeToString(), metadata=bearer(headers), **options)
    wait_until(lambda: in_flight(server, headers) == 1)
    return call


def in_flight(server, headers):
    return metric(server, headers, "ml_inference_in_flight")


def metric(server, headers, name):
    from prometheus_client.parser import text_string_to_metric_families

    text = server.get("/metrics", **headers).body.decode()
    return sum(
        sample.value for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == name
    )


def test_calls_are_in_the_access_log_like_other_requests(start, tmp_path):
    log = tmp_path / "access.jsonl"
    server = start.server(access_log=str(log), grpc_port=0).wait_until_ready()
    with triton.InferenceServerClient(f"127.0.0.1:{server.state['grpc_port']}") as client:
        client.infer("scaler", [tensor()], headers={"x-request-id": "one"})
        refused(client.infer, "other", [tensor()], headers={"x-request-id": "two"})
    assert server.terminate().exit_code() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["id"], line["status"], line["client"]) for line in lines] == [
        ("one", 200, "127.0.0.1"),
        ("two", 404, "127.0.0.1"),
    ]
    assert [line["path"] for line in lines] == ["/v2/models/scaler/infer", "/v2/models/other/infer"]


def test_more_than_the_server_takes_is_refused_with_the_time_to_wait(start, tmp_path):
    server = start.server(grpc_port=0, max_in_flight=1).wait_until_ready()
    with grpc.insecure_channel(f"127.0.0.1:{server.state['grpc_port']}") as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        first = ask.future(floats(1, 20).SerializeToString())
        wait_until(lambda: in_flight(server, {}) == 1)
        with pytest.raises(grpc.RpcError) as caught:
            ask(request().SerializeToString())
        first.cancel()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(caught.value.trailing_metadata())["retry-after"]) >= 1


def test_it_drains_and_says_that_it_is_not_ready(start):
    server = start.server(grpc_port=0, drain_delay=0.5).wait_until_ready()
    with triton.InferenceServerClient(f"127.0.0.1:{server.state['grpc_port']}") as client:
        answers: list = []
        client.async_infer(
            "scaler", [tensor(np.array([[1, 1]], "float32"))], lambda result, error: answers.append((result, error))
        )
        wait_until(lambda: in_flight(server, {}) == 1)
        server.terminate()
        wait_until(lambda: not client.is_server_ready())
        assert client.is_server_live()
        assert client.infer("scaler", [tensor()]).as_numpy("y").tolist() == [2, 4], "new calls are still taken for a moment"
        assert server.exit_code(5) == 0
        wait_until(lambda: answers)
        assert answers[0][0].as_numpy("y").tolist() == [2], "what was in flight was answered"
        assert refused(client.infer, "scaler", [tensor()]).status() == "StatusCode.UNAVAILABLE"


def test_an_open_stream_does_not_hold_the_end(start):
    server = start.server(grpc_port=0, drain_delay=0.0).wait_until_ready()
    with triton.InferenceServerClient(f"127.0.0.1:{server.state['grpc_port']}") as client:
        answers: list = []
        client.start_stream(lambda result, error: answers.append((result, error)))
        client.async_stream_infer("scaler", [tensor()])
        wait_until(lambda: answers)
        assert server.terminate().exit_code(4) == 0


def test_it_is_off_unless_asked_for_and_a_taken_port_is_named(start, server):
    plain = start.server("plain").wait_until_ready()
    assert "grpc_port" not in plain.state
    assert "/grpc/" not in Path(f"/proc/{plain.process.pid}/maps").read_text()
    second = start.server("second", grpc_port=server.state["grpc_port"])
    assert second.exit_code() == 3
    assert f"the port {server.state['grpc_port']} cannot be taken" in second.log.read_text()
    assert not second.state_file.exists()


def test_both_protocols_at_once_and_nobody_gets_anothers_answer(server, headers):
    async def asked_all():
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{server.state['grpc_port']}") as channel,
            aiohttp.ClientSession() as http,
        ):
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            calls = [over_grpc(infer, x) for x in range(60)] + [over_http(http, x) for x in range(60, 120)]
            return await asyncio.gather(*calls)

    async def over_grpc(infer, x):
        answer = await infer(floats(x, 0).SerializeToString(), metadata=bearer(headers), timeout=20)
        return service_pb2.ModelInferResponse.FromString(answer).outputs[0].contents.fp32_contents[0]

    async def over_http(http, x):
        url = f"{server.state['url']}/v2/models/scaler/infer"
        more = {**headers, "content-type": "application/json"}
        async with http.post(url, data=body_of([[x, 0]]), headers=more) as answer:
            return (await answer.json())["outputs"][0]["data"][0]

    assert asyncio.run(asked_all()) == [2 * x for x in range(120)]
