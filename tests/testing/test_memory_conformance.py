"""The correct driver in memory fulfils every clause."""

from __future__ import annotations

import pytest

from cloudai.testing import ServeDriverConformance, TelemetryDriverConformance, TrainDriverConformance
from tests.testing.memory import MemoryBench


@pytest.fixture
def bench():
    return MemoryBench()


class TestTraining(TrainDriverConformance):
    pass


class TestServing(ServeDriverConformance):
    pass


class TestTelemetry(TelemetryDriverConformance):
    pass
