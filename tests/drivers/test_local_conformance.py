"""The local driver fulfils the contract, with real processes."""

from __future__ import annotations

import contextlib

import psutil
import pytest

from cloudai.drivers.local import LocalDriver
from cloudai.testing import Bench, ServeDriverConformance, TelemetryDriverConformance, TrainDriverConformance
from tests.conftest import processes_of


class LocalBench(Bench):
    def __init__(self, root):
        self.root = root

    def connect(self):
        return LocalDriver(self.root)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """One folder for all tests, so that they share the processes of one deployment."""
    made = LocalBench(tmp_path_factory.mktemp("local"))
    yield made
    made.close()
    for process in processes_of(made.root):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


class TestTraining(TrainDriverConformance):
    pass


class TestServing(ServeDriverConformance):
    pass


class TestTelemetry(TelemetryDriverConformance):
    pass
