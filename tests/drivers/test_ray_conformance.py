"""The Ray driver fulfils the contract, against a real cluster that runs beside the tests with a token of its own."""

from __future__ import annotations

import contextlib

import psutil
import pytest

from cloudai.drivers.ray import RayDriver
from cloudai.testing import Bench, TrainDriverConformance
from tests.drivers.ray_cluster import Cluster

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class RayBench(Bench):
    patience = 120.0
    step = 0.2

    def __init__(self, cluster):
        self.cluster = cluster

    def connect(self):
        return RayDriver(self.cluster.address)

    def interrupt(self, job_id):
        """Kill the command of the job, which the Jobs API gives no number of."""
        killed = False
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    "time.sleep(600)" in " ".join(process.cmdline())
                    and process.environ().get("RAY_AUTH_TOKEN") == self.cluster.token
                ):
                    process.kill()
                    killed = True
        return killed


@pytest.fixture(scope="module")
def bench():
    """One cluster for all tests: it takes half a minute to start."""
    with pytest.MonkeyPatch.context() as patch:
        cluster = Cluster()
        try:
            cluster.start_head(cpus=8)
            patch.setenv("RAY_AUTH_TOKEN", cluster.token)
            made = RayBench(cluster)
            yield made
            made.close()
        finally:
            cluster.stop()


class TestTraining(TrainDriverConformance):
    pass
