"""Deployments on a real Ray cluster of several machines: deployed, split, found again, and hit where it hurts."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import psutil
import pytest
import torch

import cloudai
from cloudai.drivers.protocols import RevisionId, Scaling
from cloudai.drivers.ray.driver import RayDriver
from cloudai.errors import DriverError, RequestError
from cloudai.serving import client
from cloudai.state.tokens import ensure_token, read_token
from tests.conftest import wait_until
from tests.drivers.ray_cluster import Cluster, free_port
from tests.drivers.ray_serving import Asking, numbered, ready, status
from tests.flow import work

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROWS = np.ones((3, 8), "float32")


@pytest.fixture(scope="module")
def cluster():
    """A head without cores, and machines beside it."""
    made = Cluster()
    made.serve_port = free_port()
    try:
        made.start_head(cpus=0)
        yield made
    finally:
        made.stop()


@pytest.fixture
def on_ray(cluster, home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
    monkeypatch.setenv("CLOUDAI_RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("CLOUDAI_RAY_SERVE_ADDRESS", f"http://127.0.0.1:{cluster.serve_port}")
    return cluster


@pytest.fixture
def token_file(tmp_path):
    ensure_token(tmp_path / "token")
    return tmp_path / "token"


def kinds_of(deployment):
    """Return which of two models answer: one gives only zeros."""
    return {bool(np.any(deployment.predict(ROWS))) for _ in range(12)}


def model(*, zeros):
    layer = torch.nn.Linear(8, 2)
    if zeros:
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    return work.recorded_model(layer, ROWS, name="small", run=f"zeros-{zeros}")


def test_a_model_is_deployed_rolled_forth_and_back_and_taken_down(on_ray):
    on_ray.have(2, 2)
    deployment = cloudai.deploy(model(zeros=False), on="ray", name="story").wait(240)
    assert deployment.traffic == {"v1.0.0": 100}
    assert kinds_of(deployment) == {True}
    deployment.canary(model(zeros=True), percent=50).wait(120)
    assert kinds_of(deployment) == {True, False}
    deployment.promote().wait(60)
    assert kinds_of(deployment) == {False}
    deployment.rollback().wait(60)
    assert kinds_of(cloudai.attach("deployment/story")) == {True}
    assert deployment.metrics()["requests"] >= 24, "those of v1.0.0; what v1.1.0 counted has gone with it"
    check_strangers(on_ray, deployment)
    old = read_token(deployment.token_file)
    deployment.rotate_token()
    bearer = {"authorization": f"Bearer {old}"}
    wait_until(lambda: status(deployment.url, "/v2", **bearer) == 401, 30, "the old token refused")
    assert kinds_of(deployment) == {True}
    deployment.delete()
    deployment.wait(60)
    wait_until(lambda: b'"applications": {}' in on_ray.read("/api/serve/applications/"), 60, "nothing left")


def check_strangers(on_ray, deployment):
    """Nobody comes in without the token, which is written nowhere on the cluster, and Ray Serve listens here alone."""
    token, url = read_token(deployment.token_file), deployment.url
    assert status(url, "/v2/health/ready") == 200
    for path in ("/v2", "/internal/metrics", "/internal/samples", "/nothing"):
        assert status(url, path) == 401
        assert status(url, path, authorization="Bearer wrong") == 401
    assert status(url, "/internal/metrics", authorization=f"Bearer {token}") == 401, "samples are the driver's alone to read"
    said = on_ray.read("/api/serve/applications/") + on_ray.read("/api/jobs/") + on_ray.read("/api/v0/actors?detail=1")
    assert token.encode() not in said
    for log in (on_ray.folder / "t" / "session_latest" / "logs").rglob("*"):
        assert not log.is_file() or token.encode() not in log.read_bytes()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert token not in " ".join(process.cmdline())
    listening = {c.laddr.ip for c in psutil.net_connections() if c.status == "LISTEN" and c.laddr.port == on_ray.serve_port}
    assert listening == {"127.0.0.1"}


def test_requests_go_on_when_a_machine_dies(on_ray, token_file):
    on_ray.have(2, 2)
    driver, name = RayDriver(), "hurt"
    driver.apply(name, numbered(name, "v1", token_file, Scaling(2, 2)), key="hurt/v1")
    wait_until(lambda: ready(driver, name, 2), 120, "two replicas")
    driver.route(name, {RevisionId("v1"): 100})
    driver.apply(name, numbered(name, "v1", token_file, Scaling(1, 1)), key="hurt/v1")
    left = wait_until(lambda: ready(driver, name, 1) and driver.inspect(name).revisions[0].pids, 60, "one replica")
    driver.apply(name, numbered(name, "v1", token_file, Scaling(2, 2)), key="hurt/v1")
    wait_until(lambda: ready(driver, name, 2), 60, "two replicas again")
    before = driver.inspect(name)
    assert set(left) < set(before.revisions[0].pids), "scaling replaces no replica"
    with Asking(before.url, name, read_token(token_file)) as asking:
        wait_until(lambda: asking.counts["answered"] > 20, 60, "answers")
        on_ray.kill(on_ray.running()[-1])
        wait_until(lambda: asking.last["answered"] > 200, 120, "answers one after the other")
        wait_until(lambda: ready(driver, name, 2) and driver.inspect(name).revisions[0].pids != before.revisions[0].pids, 120)
    print(dict(asking.counts))
    lost = sum(count for kind, count in asking.counts.items() if kind != "answered")
    assert lost <= 20, asking.counts
    driver.delete(name)


def test_a_killed_gate_is_replaced_and_knows_traffic_and_token(on_ray, token_file, monkeypatch):
    on_ray.have(2, 2)
    driver, name = RayDriver(), "gates"
    for revision in ("v1", "v2"):
        driver.apply(name, numbered(name, revision, token_file), key=f"gates/{revision}")
    wait_until(lambda: ready(driver, name, 1), 120, "both revisions")
    driver.route(name, {RevisionId("v1"): 30, RevisionId("v2"): 70})
    before = driver.inspect(name)
    for pid in before.pids:
        psutil.Process(pid).kill()
    wait_until(lambda: driver.inspect(name).url and not set(driver.inspect(name).pids) & set(before.pids), 60, "other gates")
    found = wait_until(lambda: (s := driver.inspect(name)).ready and s, 60, "a ready deployment")
    assert {r.id: r.traffic for r in found.revisions} == {"v1": 30, "v2": 70}
    rows, token = {"x": np.zeros((1, 1), "float32")}, read_token(token_file)
    answers = Counter(int(client.predict(found.url, name, rows, token=token)["answer"][0]) for _ in range(60))
    assert len(answers) == 2
    monkeypatch.setenv("CLOUDAI_RAY_SERVE_ADDRESS", f"http://127.0.0.1:{free_port()}")  # the dashboard alone is reached
    driver.route(name, {RevisionId("v2"): 100})
    assert {r.id: r.traffic for r in driver.inspect(name).revisions if r.traffic} == {"v2": 100}
    with pytest.raises(DriverError, match="set ray_serve_address"):
        list(driver.metrics(name, since=datetime.fromtimestamp(0, UTC)))
    with pytest.raises(RequestError, match="token"):
        client.predict(found.url, name, rows, token="wrong")
    driver.delete(name)


def test_a_revision_sleeps_and_wakes_when_it_is_asked(on_ray, token_file):
    on_ray.have(2, 2)
    driver, name = RayDriver(), "sleepy"
    driver.apply(name, numbered(name, "v1", token_file, Scaling(0, 2, 4.0)), key="sleepy/v1")
    wait_until(lambda: ready(driver, name, 1), 120, "a replica")
    driver.route(name, {RevisionId("v1"): 100})
    asleep = wait_until(lambda: (s := driver.inspect(name)).revisions[0].replicas == 0 and s, 180, "no replica")
    assert asleep.ready
    begun = time.monotonic()
    client.predict(asleep.url, name, {"x": np.zeros((1, 1), "float32")}, token=read_token(token_file))
    assert time.monotonic() - begun < 34
    assert len(driver.inspect(name).revisions[0].pids) == 1
    driver.delete(name)
