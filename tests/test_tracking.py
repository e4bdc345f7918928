"""Tracking: a real MLflow on SQLite, and trackers that fail without anybody noticing but the log."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

import cloudai
from cloudai import tracking
from cloudai.tracking import BackgroundTracker, NoTracker, tracker_for

ROWS = np.random.default_rng(0).normal(size=(200, 8)).astype("float32")


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def the_run(client, name):
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    return runs[0]


def test_a_run_is_recorded_with_params_metrics_model_and_lineage(home, monkeypatch, uri, client):
    monkeypatch.setenv("CLOUDAI_TRACKING", uri)
    run = cloudai.train(torch.nn.Linear(8, 2), (ROWS, ROWS[:, 0] > 0), model_name="tracked", epochs=3, lr=0.01).wait(90)
    wanted = run.metrics
    recorded = the_run(client, "tracked")
    assert recorded.info.status == "FINISHED"
    assert recorded.data.params["lr"] == "0.01"
    assert recorded.data.metrics["val_accuracy"] == pytest.approx(wanted["val_accuracy"])
    assert len(client.get_metric_history(recorded.info.run_id, "epoch_loss")) == 3
    assert recorded.data.tags["cloudai.run"] == run.name
    version = client.get_model_version_by_alias("tracked", "v1-0-0")
    assert version.tags["cloudai.version"] == "1.0.0"
    assert version.tags["cloudai.digest"] == run.model.digest
    assert version.source == run.model.uri


def test_a_restarted_worker_goes_on_with_the_same_record(uri, client):
    for rows in ([(0, {"loss": 2.0}, 1.0)], [(1, {"loss": 1.0}, 2.0)]):
        tracker = tracker_for(uri, "again")
        tracker.start("run-1", {"lr": "0.1"}, {"cloudai.run": "run-1"})
        tracker.log(rows)
    tracker.end(succeeded=True)
    tracker.register("again", "1.0.0", "/somewhere", "digest")
    tracker.register("again", "1.0.0", "/somewhere", "digest")
    recorded = the_run(client, "again")
    assert [m.value for m in client.get_metric_history(recorded.info.run_id, "loss")] == [2.0, 1.0]
    assert len(client.search_model_versions("name='again'")) == 1


def test_more_metrics_than_one_request_takes(uri, client):
    tracker = tracker_for(uri, "many")
    tracker.start("run-2", {}, {"cloudai.run": "run-2"})
    tracker.log([(i, {"loss": float(i)}, 0.0) for i in range(2500)])
    assert len(client.get_metric_history(the_run(client, "many").info.run_id, "loss")) == 2500


class Flaky(NoTracker):
    """A tracker that is down for a while, as a server that restarts."""

    def __init__(self, failures):
        self.failures, self.rows, self.ended = failures, [], None

    def log(self, rows):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("nobody answers")
        self.rows += rows

    def end(self, succeeded):
        self.ended = succeeded


def background(monkeypatch, tracker):
    monkeypatch.setattr(tracking, "tracker_for", lambda uri, experiment: tracker)
    monkeypatch.setattr(tracking, "_INTERVAL", 0.01)
    return BackgroundTracker("any", "any", "run", {}, {"cloudai.run": "run"})


def test_what_was_missed_while_it_was_down_is_sent_later(monkeypatch):
    flaky = Flaky(failures=3)
    feeder = background(monkeypatch, flaky)
    for step in range(20):
        feeder.add(step, {"loss": 1.0})
        time.sleep(0.005)
    feeder.close(succeeded=True)
    assert [step for step, _, _ in flaky.rows] == list(range(20))
    assert flaky.ended is True
    assert feeder.problem == ""


def test_one_that_stays_down_is_said_and_stops_nothing(monkeypatch):
    feeder = background(monkeypatch, Flaky(failures=10**9))
    feeder.add(0, {"loss": 1.0})
    feeder.close(succeeded=True)
    assert "nobody answers" in feeder.problem


def test_one_that_hangs_holds_up_nobody(monkeypatch):
    class Hanging(NoTracker):
        def start(self, run, params, tags):
            time.sleep(5)

    monkeypatch.setattr(tracking, "_LAST_TRY", 0.2)
    feeder = background(monkeypatch, Hanging())
    began = time.monotonic()
    feeder.add(0, {"loss": 1.0})
    feeder.close(succeeded=True)
    assert time.monotonic() - began < 2
    assert feeder.problem == "it does not answer"


def test_a_run_succeeds_although_its_tracker_is_unreachable(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_TRACKING", "http://127.0.0.1:9")
    run = cloudai.train(torch.nn.Linear(8, 2), (ROWS, ROWS[:, 0] > 0), epochs=2).wait(90)
    assert run.model.version == "1.0.0"
    assert run.status.reason == ""
