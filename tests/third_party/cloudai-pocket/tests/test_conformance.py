"""The driver keeps cloudai's contract."""

import pytest

from cloudai.testing import Bench, ServeDriverConformance, TrainDriverConformance
from cloudai_pocket.driver import PocketDriver


class PocketBench(Bench):
    def __init__(self, folder):
        self.folder = folder

    def connect(self):
        return PocketDriver(self.folder)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = PocketBench(tmp_path_factory.mktemp("pocket"))
    yield made
    made.close()


class TestTraining(TrainDriverConformance):
    pass


class TestServing(ServeDriverConformance):
    pass
