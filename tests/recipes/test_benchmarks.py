"""The benchmarks run, say what they found in a form that can be read by a program, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import processes_of, wait_until

OVERHEAD = Path(__file__).parents[2] / "recipes" / "benchmarks" / "overhead.py"


@pytest.fixture
def started(tmp_path):
    """The benchmark, just started, with its temporary files below `tmp_path`."""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    argv = [sys.executable, str(OVERHEAD), "--quick"]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_overhead(started, tmp_path):
    out, err = started.communicate(timeout=200)
    assert started.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert (found["benchmark"], found["quick"]) == ("overhead", True)
    assert found["figures"]["machine"].keys() >= {"date", "platform", "cpus", "python", "torch", "ray", "mlflow", "litserve"}
    measured = found["figures"]["measured"]
    assert all(0 < figure["low"] <= figure["median"] <= figure["high"] for name, figure in measured.items() if "step" in name)
    for name in ("first step, plain script", "first step, cloudai cold", "first step, cloudai warm"):
        assert measured[name]["unit"] == "s"
    aims = {aim["name"]: aim for aim in found["aims"]}
    assert aims.keys() == {"import cloudai, wall ms", "second train call, ms", "second deploy call, ms"}
    assert all(aim["met"] == (aim["value"] <= aim["aim"]) for aim in aims.values())
    assert "first step, bare Ray Train, one worker" in found["figures"]["skipped"]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_benchmark_leaves_nothing(started, tmp_path):
    wait_until(lambda: any(tmp_path.glob("*/session-0/supervisor.lock")), timeout=120, what="the supervisor")
    (home,) = tmp_path.glob("*/session-0")
    os.kill(started.pid, signal.SIGTERM)
    started.communicate(timeout=30)
    assert started.returncode == 128 + signal.SIGTERM
    assert not processes_of(home)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("name", "aims"),
    [
        ("training", {"throughput over a loop written by hand", "time lost to checkpoints at one failure an hour, %"}),
        ("chaos_training", {"runs that did not end well", "runs with other weights than undisturbed"}),
        ("rollout", {"requests lost to the rollout itself", "bad versions that were not rolled back"}),
    ],
)
def test_benchmarks_of_work_run(name, aims, tmp_path):
    argv = [sys.executable, str(OVERHEAD.with_name(f"{name}.py")), "--quick"]
    done = subprocess.run(argv, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["benchmark"], found["quick"]) == (name, True)
    assert aims <= {aim["name"] for aim in found["aims"]}
    if name != "training":
        assert all(aim["met"] for aim in found["aims"]), "the very same weights, the right decisions, whatever happens"
    assert list(tmp_path.iterdir()) == []
