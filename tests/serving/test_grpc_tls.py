"""gRPC over TLS, with client certificates and with files that change."""

from __future__ import annotations

import shutil

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.serving.certificates import Authority, Pair

X = np.array([[1, 0]], "float32")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture(scope="module")
def used(ours):
    """The files that the server reads, which a test replaces."""
    pair = ours.sign("first", names=("localhost",))
    return Pair(pair.certificate, pair.key)


@pytest.fixture(scope="module")
def server(start_once, used, theirs):
    options = {"tls_certificate": str(used.certificate), "tls_key": str(used.key), "client_ca": str(theirs.file)}
    return start_once.server(host="0.0.0.0", grpc_port=0, **options).wait_until_ready()


def connected(server, authority, pair=None):
    shown = {"private_key": str(pair.key), "certificate_chain": str(pair.certificate)} if pair else {}
    return triton.InferenceServerClient(
        f"localhost:{server.state['grpc_port']}", ssl=True, root_certificates=str(authority.file), **shown
    )


def answer(client):
    made = triton.InferInput("x", [1, 2], "FP32").set_data_from_numpy(X)
    return client.infer("scaler", [made], client_timeout=5).as_numpy("y").tolist()


def test_only_clients_of_the_authority_are_let_in(server, ours, theirs):
    with connected(server, ours, theirs.sign("client", client=True)) as client:
        assert answer(client) == [2]
    strangers = [None, ours.sign("stranger", client=True), theirs.sign("late", client=True, start=-3, end=-1)]
    for stranger in strangers:
        with (
            connected(server, ours, stranger) as client,
            pytest.raises(InferenceServerException, match=r"UNAVAILABLE|Deadline"),
        ):
            answer(client)
    with grpc.insecure_channel(f"localhost:{server.state['grpc_port']}") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=5)


def test_renewed_files_hold_from_the_next_connection_on(server, ours, theirs, used):
    shown = theirs.sign("renewing", client=True)
    with connected(server, ours, shown) as kept:
        assert answer(kept) == [2]
        new = Authority(ours.folder / "new", "new")
        pair = new.sign("second", names=("localhost",))
        shutil.copy(pair.certificate, used.certificate)
        with connected(server, ours, shown) as client:
            assert answer(client) == [2], "the key is still to come: the last good files hold"
        shutil.copy(pair.key, used.key)
        with connected(server, new, shown) as client:
            assert answer(client) == [2]
        assert answer(kept) == [2], "the open connection goes on"
