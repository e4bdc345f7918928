"""Ray Serve's fast ingress, which listens on every interface: asked for, it answers who has the token, and nobody else."""

from __future__ import annotations

import psutil
import pytest

from cloudai.drivers.protocols import RevisionId
from cloudai.drivers.ray.driver import RayDriver
from cloudai.state.tokens import ensure_token, read_token
from tests.conftest import wait_until
from tests.drivers.ray_cluster import Cluster, free_port
from tests.drivers.ray_serving import Asking, numbered, ready, status

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cluster(home, monkeypatch):
    made, port = Cluster(), free_port()
    try:
        made.start_head(cpus=4)
        monkeypatch.setenv("RAY_AUTH_TOKEN", made.token)
        monkeypatch.setenv("CLOUDAI_RAY_ADDRESS", made.address)
        monkeypatch.setenv("CLOUDAI_RAY_SERVE_ADDRESS", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("CLOUDAI_RAY_INGRESS", "fast")
        yield port
    finally:
        made.stop()


def test_it_is_open_to_every_interface_and_to_nobody_without_the_token(cluster, tmp_path):
    ensure_token(tmp_path / "token")
    driver, name, token = RayDriver(), "fast", read_token(tmp_path / "token")
    for revision in ("v1", "v2"):
        driver.apply(name, numbered(name, revision, tmp_path / "token"), key=f"fast/{revision}")
    wait_until(lambda: ready(driver, name, 1), 120, "both revisions")
    driver.route(name, {RevisionId("v1"): 100})
    url = driver.inspect(name).url
    assert {c.laddr.ip for c in psutil.net_connections() if c.status == "LISTEN" and c.laddr.port == cluster} == {"0.0.0.0"}
    for path in ("/v2", "/internal/metrics", "/nothing"):
        assert [status(url, path), status(url, path, authorization="Bearer wrong")] == [401, 401]
    assert status(url, "/v2", authorization=f"Bearer {token}") == 200
    with Asking(url, name, token) as asking:
        for traffic in ({"v2": 100}, {"v1": 50, "v2": 50}, {"v1": 100}):
            before = asking.counts["answered"]
            driver.route(name, {RevisionId(revision): share for revision, share in traffic.items()})
            wait_until(lambda before=before: asking.counts["answered"] > before + 20, 60, "answers after the change")
    assert set(asking.counts) == {"answered"}
    driver.delete(name)
