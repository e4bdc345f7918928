"""tritonclient over HTTP: JSON, and tensors as bytes, from a server and through a router, with the token and over TLS."""

from __future__ import annotations

import ssl

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from cloudai.state.tokens import read_token, renew_token
from tests.serving.certificates import Authority

X = np.array([[1, 0], [2, 0]], "float32")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "token"
    renew_token(path)
    return path


@pytest.fixture(scope="module")
def server(start_once, token_file):
    return start_once.server(token_file=str(token_file)).wait_until_ready()


@pytest.fixture(scope="module")
def router(start_once, server, token_file, authority):
    pair = authority.sign("router")
    options = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    made = start_once.router(token_file=token_file, **options).wait_until_ready()
    made.route({"a": 100}, {"a": server})
    return made


@pytest.fixture(params=["plain, to a server", "TLS, to a router"])
def client(request, server, router, authority):
    if "TLS" in request.param:
        trusted = {"ssl": True, "ssl_options": {"ca_certs": str(authority.file), "cert_reqs": ssl.CERT_REQUIRED}}
        with triton.InferenceServerClient(f"localhost:{router.port}", **trusted) as client:
            yield client
    else:
        with triton.InferenceServerClient(f"localhost:{server.port}") as client:
            yield client


@pytest.fixture
def headers(token_file):
    return {"authorization": f"Bearer {read_token(token_file)}"}


@pytest.mark.parametrize("sent", [True, False], ids=["bytes", "JSON"])
@pytest.mark.parametrize("wanted", [True, False], ids=["bytes wanted", "JSON wanted"])
def test_it_predicts(client, headers, sent, wanted):
    rows = triton.InferInput("x", [2, 2], "FP32").set_data_from_numpy(X, binary_data=sent)
    outputs = [triton.InferRequestedOutput(name, binary_data=wanted) for name in ("y", "row")]
    result = client.infer("scaler", [rows], outputs=outputs, headers=headers, request_id="mine")
    assert result.as_numpy("y").tolist() == [2, 4]
    assert result.as_numpy("row").tolist() == [0, 1]
    assert result.get_response()["id"] == "mine"


def test_it_finds_server_and_model(client, headers):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scaler", headers=headers)
    assert client.get_server_metadata(headers=headers)["name"] == "cloudai"
    assert client.get_model_metadata("scaler", headers=headers)["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    ]


def test_it_says_what_is_wrong(client, headers):
    rows = triton.InferInput("x", [2, 2], "FP32").set_data_from_numpy(X)
    with pytest.raises(InferenceServerException, match="the token is missing or wrong"):
        client.infer("scaler", [rows])
    with pytest.raises(InferenceServerException, match="there is no model at /v2/models/other"):
        client.infer("other", [rows], headers=headers)
    wrong = triton.InferInput("x", [2, 2], "FP64").set_data_from_numpy(X.astype("float64"))
    with pytest.raises(InferenceServerException, match="the model takes FP32"):
        client.infer("scaler", [wrong], headers=headers)
