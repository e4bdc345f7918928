from __future__ import annotations

import pytest

from tests.serving.processes import Starter


@pytest.fixture
def start(tmp_path):
    starter = Starter(tmp_path)
    yield starter
    starter.stop()


@pytest.fixture(scope="module")
def start_once(tmp_path_factory):
    starter = Starter(tmp_path_factory.mktemp("served"))
    yield starter
    starter.stop()
