"""gRPC: a real server and a real router, asked by tritonclient and by gRPC's own client."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from cloudai import __version__
from cloudai.serving import grpc_messages
from cloudai.state.tokens import read_token, renew_token

X = np.array([[1, 0], [2, 0]], "float32")


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "token"
    renew_token(path)
    return path


@pytest.fixture(scope="module")
def server(start_once, token_file):
    return start_once.server(token_file=str(token_file), grpc_port=0, max_body="100kB").wait_until_ready()


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
    only = client.infer("scaler", [tensor()], outputs=[triton.InferRequestedOutput("row")], model_version="1.2.0", headers=headers)
    assert only.as_numpy("row").tolist() == [0, 1]
    assert only.as_numpy("y") is None
