"""The Ray driver fulfils the contract of serving and telemetry, with Ray Serve on a real cluster with a token of its own."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest

from cloudai import settings
from cloudai.drivers.protocols import RevisionId
from cloudai.drivers.ray.driver import RayDriver
from cloudai.serving import client
from cloudai.state.tokens import ensure_token, read_token
from cloudai.testing import Bench, ServeDriverConformance, TelemetryDriverConformance
from tests.drivers.ray_cluster import Cluster, free_port

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class RayServeBench(Bench):
    patience = 120.0
    step = 0.2

    def __init__(self, cluster, token_file):
        self.cluster, self.token_file = cluster, token_file

    def connect(self):
        return RayDriver(self.cluster.address)

    def _revision(self, deployment, revision, behave):
        made = super()._revision(deployment, revision, behave)
        return replace(made, argv=(*made.argv, "--token-file", str(self.token_file)))

    def ask(self, deployment):
        """Ask as `Bench` does, with the token."""
        status = self.driver.inspect(deployment)
        rows = {"x": np.zeros((1, 1), "float32")}
        number = int(client.predict(status.url, deployment, rows, token=read_token(self.token_file))["answer"][0])
        return next((r.id for r in status.revisions if zlib.crc32(r.id.encode()) == number), RevisionId(f"unknown {number}"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """One cluster for all tests: it takes half a minute to start."""
    with pytest.MonkeyPatch.context() as patch:
        cluster = Cluster()
        try:
            cluster.start_head(cpus=16)
            patch.setenv("RAY_AUTH_TOKEN", cluster.token)
            settings.configure(ray_serve_address=f"http://127.0.0.1:{free_port()}")
            token_file = tmp_path_factory.mktemp("token") / "token"
            ensure_token(token_file)
            made = RayServeBench(cluster, token_file)
            yield made
            made.close()
        finally:
            settings.configure(ray_serve_address=None)
            cluster.stop()


class TestServing(ServeDriverConformance):
    pass


class TestTelemetry(TelemetryDriverConformance):
    pass
