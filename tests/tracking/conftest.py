"""Trackers to read back: MLflow by its client, W&B's offline files by its own message definitions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cloudai.testing.trackers import Recorded
from tests.conftest import wait_until


def mlflow_client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def read_mlflow(uri, experiment):
    client = mlflow_client(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], order_by=["attributes.start_time"]) if found else []
    return [_mlflow_run(client, run) for run in runs]


def _mlflow_run(client, run):
    def history(name):
        points = client.get_metric_history(run.info.run_id, name)
        return sorted((point.step, point.value) for point in points)

    versions = client.search_model_versions(f"run_id='{run.info.run_id}'")
    models = [(v.name, v.tags["cloudai.version"], v.tags["cloudai.digest"]) for v in versions]
    for name, version, _ in models:
        assert client.get_model_version_by_alias(name, f"v{version.replace('.', '-')}").run_id == run.info.run_id
    ended = {"FINISHED": True, "FAILED": False, "RUNNING": None}[run.info.status]
    metrics = {name: history(name) for name in run.data.metrics}
    return Recorded(run.info.run_name, {**run.data.tags, **run.data.params}, metrics, models, ended)


class MlflowServer:
    """A real ``mlflow server`` in a process group of its own, to start, kill and start again on the same port and database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = Path(sys.executable).with_name("mlflow")
        if not self.command.exists():
            pytest.skip("there is no `mlflow` command here")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        database = f"sqlite:///{self.folder / 'server.db'}"
        argv = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--backend-store-uri", database, "--workers", "1"]
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.command, *argv], cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until(self.answers, timeout=90, what="the start of mlflow server")
        except AssertionError:
            if "No module named" in (self.folder / "server.log").read_text():
                pytest.skip("`mlflow server` needs packages that are not installed")
            raise
        return self

    def answers(self):
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except OSError:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            return False

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A database with MLflow's tables, which take seconds to make."""
    from cloudai.tracking.mlflow import _make_database

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    _make_database(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_uri(tmp_path, template):
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory, template):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow-server"))
    shutil.copy(template, server.folder / "server.db")
    try:
        yield server.start()
    finally:
        server.kill()


def read_wandb(folder, experiment):
    """Read back all offline runs below a folder, in the order in which they were begun."""
    paths = sorted(Path(folder).rglob("run-*.wandb"), key=lambda path: path.stat().st_mtime)
    found = [_wandb_run(path) for path in paths]
    return [recorded for group, recorded in found if group == experiment]


def _wandb_run(path):
    run, ended, metrics, models = None, None, {}, []
    # wandb's own process writes the last of it some milliseconds after `finish` returns
    wait_until(lambda: any(record.WhichOneof("record_type") == "exit" for record in wandb_records(path)))
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
        elif kind == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = int(items["_step"])
            for name, value in items.items():
                if not name.startswith("_"):
                    metrics.setdefault(name, []).append((step, value))
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            models.append(_wandb_model(record.request.log_artifact.artifact))
        elif kind == "artifact":
            models.append(_wandb_model(record.artifact))
        elif kind == "exit":
            ended = record.exit.exit_code == 0
    params = {item.key: json.loads(item.value_json) for item in run.config.update}
    # an artifact that is logged again is the same version, since its content is
    return run.run_group, Recorded(run.display_name, params, metrics, list(dict.fromkeys(models)), ended)


def _wandb_model(artifact):
    about = json.loads(artifact.metadata)
    return artifact.name, about["version"], about["digest"]


def wandb_records(path):
    """Read the records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record
