"""Trackers that are really down: the run goes on undisturbed, and afterwards the record is as if nothing had been."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cloudai
from cloudai.errors import NotReadyError
from cloudai.state.leader import supervisor_pid
from cloudai.training.tracked import behind
from tests.conftest import ROOT, kill, wait_until
from tests.tracking.conftest import MlflowServer, mlflow_client, read_mlflow

INPUTS = np.random.default_rng(0).normal(size=(200, 8)).astype("float32")
CLI = Path(sys.executable).with_name("cloudai")


def train(name, **options):
    torch.manual_seed(0)
    return cloudai.train(torch.nn.Linear(8, 2), (INPUTS, INPUTS[:, 0] > 0), name=name, model_name=name, epochs=3, **options)


def content(uri, name):
    """What a record says, without what differs between two runs."""
    (recorded,) = read_mlflow(uri, name)
    own = ("cloudai.run", "cloudai.id", "cloudai.spec", "cloudai.model", "mlflow.runName")
    params = {key: value for key, value in recorded.params.items() if key not in own}
    return params, recorded.metrics, len(recorded.models), recorded.succeeded


def slow_steps(context):
    """Report until the file ``go`` appears, and then ten more."""
    import time
    from pathlib import Path

    go, left, step = Path(context.config["go"]), 10, 0
    while left:
        left -= go.exists()
        context.report({"loss": 1.0 / (step + 1)}, step=step)
        step += 1
        time.sleep(0.05)


def test_a_database_that_cannot_be_used_is_caught_up_by_the_supervisor(home, monkeypatch, tmp_path, template):
    database, uri = tmp_path / "runs.db", f"sqlite:///{tmp_path / 'runs.db'}"
    monkeypatch.setenv("CLOUDAI_TRACKING", uri)
    monkeypatch.setenv("CLOUDAI_SUPERVISOR_IDLE", "60s")
    database.write_bytes(b"this is no database" * 1000)
    down = train("down").wait(90, progress=False)
    assert down.model.version == "1.0.0"
    assert "which is behind: " in str(down)
    assert behind(home) == ["down"]
    shutil.copy(template, database)
    up = train("up").wait(90, progress=False)
    wait_until(lambda: not behind(home), timeout=60, what="the end of catching up")
    down.refresh()
    up.refresh()
    assert "behind" not in str(down) + str(up)
    assert content(uri, "down") == content(uri, "up")
    client = mlflow_client(uri)
    assert client.get_model_version_by_alias("down", "v1-0-0").tags["cloudai.digest"] == down.model.digest
    (record,) = client.search_runs([client.get_experiment_by_name("down").experiment_id])
    assert abs(record.info.end_time / 1000 - down._worker["updated"]) < 10  # when the run ended, not when it was told


@pytest.mark.slow
def test_one_that_accepts_and_never_answers_holds_up_the_end_for_seconds_only(home, monkeypatch):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        monkeypatch.setenv("CLOUDAI_TRACKING", f"http://127.0.0.1:{listening.getsockname()[1]}")
        run = train("hanging").wait(90, progress=False)
        attempt = run._record.status["attempts"][-1]
        assert attempt["ended"] - run._rows[-1].at < 12  # five seconds of waiting, and a loaded machine
        assert "which is behind" in str(run)


@pytest.mark.slow
def test_one_where_nobody_listens_is_said_and_can_be_asked_again_by_hand(home, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens: connections are refused
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("CLOUDAI_TRACKING", uri)
        run = train("alone").wait(90, progress=False)
        assert run.status.reason == ""
        with pytest.raises(NotReadyError, match=f"{uri} is behind: "):
            run.track(wait=True)
        asked = subprocess.run([CLI, "track", "run/alone"], capture_output=True, text=True, timeout=90)
        all_of_them = subprocess.run([CLI, "track"], capture_output=True, text=True, timeout=90)
        assert all_of_them.stdout == "run/alone is still behind: `cloudai show run/alone` says why\n"
        assert all_of_them.returncode == 1
    assert (asked.returncode, asked.stdout) == (1, "")
    assert [line.partition(":")[0] for line in asked.stderr.splitlines()] == [uri.partition(":")[0], "Fix"]


def test_a_run_whose_worker_was_killed_is_ended_in_its_tracker(home, monkeypatch, sqlite_uri, tmp_path):
    monkeypatch.setenv("CLOUDAI_TRACKING", sqlite_uri)
    run = cloudai.train(slow_steps, name="killed", model_name="killed", config={"go": str(tmp_path / "go")}, max_failures=0)
    with pytest.raises(NotReadyError, match="its worker records it"):
        run.track()
    wait_until(lambda: run.refresh() or len(run._rows) > 5, timeout=60)
    kill(run.status.pid)
    wait_until(lambda: run.refresh() or run.phase == "failed")
    wait_until(lambda: not behind(home), timeout=60)
    run.refresh()
    (recorded,) = read_mlflow(sqlite_uri, "killed")
    assert recorded.succeeded is False
    assert recorded.metrics["loss"] == [(row.step, row.metrics["loss"]) for row in run._rows]
    assert "behind" not in str(run)


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_and_returns_after_the_run(home, monkeypatch, tmp_path, template):
    shutil.copy(template, tmp_path / "server.db")
    server = MlflowServer(tmp_path)
    go = tmp_path / "go"
    monkeypatch.setenv("CLOUDAI_TRACKING", server.uri)
    try:
        server.start()
        run = cloudai.train(slow_steps, name="cut", model_name="cut", config={"go": str(go)})
        wait_until(lambda: (read_mlflow(server.uri, "cut") or [None])[0], timeout=90, what="the record")
        wait_until(lambda: read_mlflow(server.uri, "cut")[0].metrics, timeout=60, what="the first metrics")
        server.kill()
        seen = len(run._rows)
        wait_until(lambda: run.refresh() or len(run._rows) > seen + 20, timeout=60, what="more steps without the server")
        wait_until(lambda: run.refresh() or "which is behind" in str(run), timeout=90, what="a word about it")
        go.touch()
        run.wait(90, progress=False)
        if pid := supervisor_pid(home):
            kill(pid)  # days pass: nobody is there when the server returns
        server.start()
        run.track(wait=True)
        (recorded,) = read_mlflow(server.uri, "cut")
        assert recorded.metrics["loss"] == [(row.step, row.metrics["loss"]) for row in run._rows]
        assert recorded.succeeded is True
        assert "behind" not in str(run)
    finally:
        server.kill()


@pytest.mark.slow
def test_a_worker_that_is_killed_comes_back_into_the_same_record(home, monkeypatch, mlflow_server):
    monkeypatch.setenv("CLOUDAI_TRACKING", mlflow_server.uri)
    torch.manual_seed(0)
    module, data = torch.nn.Linear(8, 2), (INPUTS, INPUTS[:, 0] > 0)
    run = cloudai.train(module, data, name="returning", model_name="returning", epochs=4000)
    wait_until(lambda: run.refresh() or (run.status.checkpoint or 0) > 20, timeout=60)
    kill(run.status.pid)
    run.wait(120, progress=False)
    assert run.status.attempt == 2
    wait_until(lambda: not behind(home), timeout=60)
    (recorded,) = read_mlflow(mlflow_server.uri, "returning")
    wanted = {}
    for row in run._rows:
        for name, value in row.metrics.items():
            wanted.setdefault(name, []).append((row.step, value))
    assert recorded.metrics == wanted


def test_weights_and_biases_offline_has_the_run_and_nothing_lies_elsewhere(home, monkeypatch, tmp_path):
    from tests.tracking.conftest import read_wandb

    user = tmp_path / "user"
    (user / "home").mkdir(parents=True)
    monkeypatch.chdir(user)
    for name, value in {"WANDB_MODE": "offline", "CLOUDAI_TRACKING": "wandb://me/digits", "HOME": str(user / "home")}.items():
        monkeypatch.setenv(name, value)
    run = train("offline").wait(90, progress=False)
    wait_until(lambda: not behind(home), timeout=60)
    (recorded,) = read_wandb(home / "tracking" / "offline", "offline")
    assert recorded.metrics["loss"] == [(row.step, row.metrics["loss"]) for row in run._rows if "loss" in row.metrics]
    assert recorded.params["lr"] == "0.001"
    assert recorded.models == [("offline", "1.0.0", run.model.digest)]
    assert recorded.succeeded is True
    assert sorted(path.name for path in user.rglob("*")) == ["home"]


@pytest.mark.slow
def test_weights_and_biases_that_cannot_be_reached_stops_nothing_and_its_key_is_written_nowhere(home, monkeypatch, tmp_path):
    key = "canary" + "0" * 34
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDAI_TRACKING", "wandb://me/digits")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        run = train("unreachable").wait(90, progress=False)
        assert "which is behind" in str(run)
        assert behind(home) == ["unreachable"]
        with pytest.raises(NotReadyError, match="wandb://me/digits is behind"):
            run.track(wait=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in files)
    assert [path for path in files if key.encode() in path.read_bytes()] == []
    assert key not in str(run) + "".join(run.logs())


ENTRY_POINT = """
import json
class Tracker:
    def __init__(self, address, folder):
        self.path = folder / "kept.json"
    def start(self, run):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.kept = {"run": run.name, "params": dict(run.params), "rows": [], "model": None, "end": None}
    def log(self, rows):
        self.kept["rows"] += [[row.step, dict(row.metrics)] for row in rows]
    def register(self, model):
        self.kept["model"] = model.version
    def end(self, succeeded, at):
        self.kept["end"] = succeeded
        self.path.write_text(json.dumps(self.kept))
"""


def test_a_tracker_of_another_package_is_found_by_its_scheme(home, tmp_path):
    package = tmp_path / "site" / "diary"
    dist = tmp_path / "site" / "diary-1.0.dist-info"
    package.mkdir(parents=True)
    dist.mkdir()
    (package / "__init__.py").write_text(ENTRY_POINT)
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: diary\nVersion: 1.0\n")
    (dist / "entry_points.txt").write_text("[cloudai.trackers]\ndiary = diary:Tracker\n")
    code = "from tests.tracking import test_down as t; print(t.train('kept').wait(90, progress=False)._tracked_in())"
    env = os.environ | {"CLOUDAI_TRACKING": "diary://here", "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "site")])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "diary://here\n", done.stderr
    kept = (home / "tracking" / "kept" / "kept.json").read_text()
    assert '"model": "1.0.0", "end": true' in kept
    shutil.rmtree(package)  # half uninstalled: its entry point is left
    code = "from tests.tracking import test_down as t; t.train('again')"
    failed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert "MissingExtraError: the tracker 'diary' needs diary, which is not installed\nFix: pip install" in failed.stderr
