"""Every built-in tracker passes the suite that ships with the package."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from cloudai.testing import trackers as suite
from cloudai.testing.trackers import TrackerConformance
from cloudai.tracking import tracker_for
from tests.tracking.conftest import read_mlflow, read_wandb


class TestMlflowOnSqlite(TrackerConformance):
    @pytest.fixture
    def make(self, sqlite_uri, tmp_path):
        return lambda: tracker_for(sqlite_uri, tmp_path)

    @pytest.fixture
    def read(self, sqlite_uri):
        return lambda experiment: read_mlflow(sqlite_uri, experiment)


@pytest.mark.slow
class TestMlflowOverAServer(TrackerConformance):
    numbers = itertools.count()

    @pytest.fixture
    def place(self, mlflow_server, monkeypatch):
        """An experiment and a model of each test's own, since the server is one for all."""
        name = f"conformance-{next(self.numbers)}"
        identity = f"{next(self.numbers):032x}"
        monkeypatch.setattr(suite, "RUN", replace(suite.RUN, experiment=name, identity=identity))
        monkeypatch.setattr(suite, "MODEL", replace(suite.MODEL, name=name))
        return mlflow_server.uri

    @pytest.fixture
    def make(self, place, tmp_path):
        return lambda: tracker_for(place, tmp_path)

    @pytest.fixture
    def read(self, place):
        return lambda experiment: read_mlflow(place, experiment)


class TestWandbOffline(TrackerConformance):
    @pytest.fixture
    def make(self, tmp_path):
        return lambda: tracker_for("wandb://me/digits?mode=offline", tmp_path)

    @pytest.fixture
    def read(self, tmp_path):
        return lambda experiment: read_wandb(tmp_path, experiment)
