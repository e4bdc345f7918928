"""A deployment that others may reach: an address, TLS, client certificates."""

from __future__ import annotations

import socket
import subprocess

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

import cloudai
from cloudai import errors
from cloudai.drivers.registry import serve_driver
from cloudai.drivers.simulated.driver import SimulatedDriver
from cloudai.serving.exposure import check_exposure
from cloudai.specs.serving import DeploySpec
from cloudai.state.tokens import read_token
from tests.conftest import kill, wait_until
from tests.flow import work
from tests.serving.certificates import Authority

ROWS = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")


@pytest.fixture
def model(home):
    return work.recorded_model(torch.nn.Linear(4, 2), ROWS, name="small")


def test_client_certificates_over_both_protocols_and_a_router_that_comes_back(model, tmp_path):
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    server, client = ours.sign("server", names=("localhost", "models.example")), theirs.sign("client", client=True)
    tls = cloudai.Tls(
        certificate=server.certificate,
        key=server.key,
        client_ca=theirs.file,
        client_certificate=client.certificate,
        client_key=client.key,
    )
    deployment = cloudai.deploy(model, host="0.0.0.0", grpc_port=0, tls=tls).wait(60)
    assert deployment.url.startswith("https://localhost:")
    expected = model.predict(ROWS)
    assert np.allclose(deployment.predict(ROWS), expected, atol=1e-6)
    answer = subprocess.run(["sh", "-c", deployment.curl(ROWS)], capture_output=True, text=True, timeout=20)
    assert '"outputs"' in answer.stdout, answer.stderr
    refused = subprocess.run(["curl", "-s", "--cacert", ours.file, deployment.url + "/v2/health/live"], capture_output=True)
    assert refused.returncode
    assert not refused.stdout
    assert deployment.grpc_url in repr(deployment.card())
    files = {"root_certificates": ours.file, "certificate_chain": client.certificate, "private_key": client.key}
    headers = {"authorization": f"Bearer {read_token(deployment.token_file)}"}
    rows = triton.InferInput("input", list(ROWS.shape), "FP32").set_data_from_numpy(ROWS)
    with triton.InferenceServerClient(
        deployment.grpc_url, ssl=True, **{key: str(file) for key, file in files.items()}
    ) as asking:
        answers = [asking.infer("small", [rows], headers=headers)]
        kill(serve_driver("local").inspect("small").pids[0])
        wait_until(lambda: serve_driver("local").inspect("small").ready, what="a new router, on the same ports")
        assert np.allclose(deployment.predict(ROWS), expected, atol=1e-6)
        answers.append(asking.infer("small", [rows], headers=headers))
    assert all(np.allclose(answer.as_numpy("output"), expected, atol=1e-6) for answer in answers)
    assert deployment.metrics()["requests"] == 5


def test_what_cannot_be_exposed_is_refused_before_anything_is_started(model, tmp_path):
    authority = Authority(tmp_path)
    server, late = authority.sign("server"), authority.sign("late", start=-3, end=-1)

    def refused(match, **options):
        with pytest.raises(errors.SpecError, match=match):
            cloudai.deploy(model, **options)
        assert cloudai.ps().entries == []

    tls = cloudai.Tls(certificate=server.certificate, key=server.key)
    refused("cannot listen on '0.0.0.0' without TLS", host="0.0.0.0")
    refused("certificate has expired", tls=cloudai.Tls(certificate=late.certificate, key=late.key))
    refused("cannot be read: No such file", tls=cloudai.Tls(certificate="nowhere.pem", key="nowhere.key"))
    refused("the address 192.0.2.1, port 0, cannot be used: Cannot assign", host="192.0.2.1", tls=tls)
    refused("cannot share the port 18999", port=18999, grpc_port=18999)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(f"the address 0.0.0.0, port {port}, cannot be used", host="0.0.0.0", port=port, tls=tls)


def test_a_driver_without_our_router_is_named():
    spec = DeploySpec.of(name="d", on="simulated", host="localhost", lease=None)
    with pytest.raises(
        errors.SpecError,
        match="the driver 'simulated' has its own way in, which knows no host=, tls=, grpc_port= and access_log=",
    ):
        check_exposure(spec, SimulatedDriver)


def test_who_has_no_client_certificate_is_told_so(model, tmp_path):
    authority = Authority(tmp_path)
    pair = authority.sign("server")
    tls = cloudai.Tls(certificate=pair.certificate, key=pair.key, client_ca=authority.file)
    deployment = cloudai.deploy(model, tls=tls)
    for ask in (deployment.predict, deployment.curl):
        with pytest.raises(
            errors.SpecError, match=r"asks for a client certificate, and knows none to show\nFix: deploy it with Tls"
        ):
            ask(ROWS)
