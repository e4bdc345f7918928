"""Two workers on a real Ray cluster of this machine: the same checkpoints, the same weights after a kill."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import numpy as np
import pandas as pd
import psutil
import pytest

import cloudai
from tests.conftest import kill, processes_of, wait_until
from tests.flow import work

pytest.importorskip("ray")


def ranks():
    """Return the processes of the ranks that this user's Ray runs now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def long_steps(context):
    """Take steps of five seconds, each with a checkpoint."""
    for step in range((context.resumed_from or 0) + 1, 1000):
        time.sleep(5)
        context.report({"loss": 1.0}, step=step, checkpoint={"step": step})


def rows_in_files(folder):
    """Write the digits into four files of several row groups, and return their folder."""
    inputs, targets = work.data()
    frame = pd.DataFrame(inputs, columns=[f"p{place:02d}" for place in range(inputs.shape[1])])
    frame["label"] = targets
    folder.mkdir()
    for number in range(4):
        frame[number::4].to_parquet(folder / f"{number}.parquet", row_group_size=50)
    return folder


def train(name, epochs=12, **options):
    options = {"num_workers": 2} | options if "scaling" not in options else options
    return cloudai.train(work.network(), work.data(), name=name, epochs=epochs, model_name="two", lease="10m", **options)


def test_two_workers_train_one_model(home):
    run = train("two").wait(200)
    assert run.metrics["val_accuracy"] > 0.8
    assert run.exact
    steps, losses = run.history("loss")
    assert steps[-1] == run.status.total_steps
    assert losses[-1] < losses[0]
    assert sorted(path.name for path in (home / "store/runs/two/checkpoints").glob("*/*")).count("rank-1.safetensors") >= 1
    assert run.model.predict(work.data()[0][:4]).shape == (4, 4)
    written = "".join(run.logs())
    assert "State API" not in written, "Ray's own chatter"
    assert "\x1b" not in written, "colours are for terminals"
    wait_until(lambda: not [p for p in processes_of(home) if "ray" in " ".join(p.cmdline())], what="the end of Ray's processes")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_rank_costs_time_and_not_a_bit(home):
    calm = train("calm", epochs=60).wait(300)
    run = train("hurt", epochs=60)
    wait_until(lambda: run.refresh() or (run.status.checkpoint or 0) > 1, timeout=200, what="a checkpoint")
    kill(next(pid for pid in ranks() if pid != run.status.pid))
    run.wait(400)
    assert run.status.attempt == 2
    assert work.weights(run) == work.weights(calm)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cancelled_run_leaves_no_process(home):
    run = train("cancelled", epochs=100_000)
    wait_until(lambda: run.refresh() or run.status.step is not None, timeout=200, what="the first step")
    run.cancel()
    wait_until(lambda: run.refresh() or run.ended, timeout=60, what="the end")
    assert run.phase == "cancelled"
    wait_until(lambda: not processes_of(home) or not ranks(), timeout=30, what="the end of the ranks")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_that_are_told_to_stop_write_a_last_checkpoint_first(home):
    rarely = cloudai.CheckpointPolicy(every="10m")
    run = train("told", epochs=4000, checkpoint=rarely)
    wait_until(lambda: run.refresh() or (run.status.step or 0) > 200, timeout=200, what="some steps")
    before = run.status.checkpoint or 0
    os.killpg(os.getpgid(run._record.status["attempts"][0]["pid"]), signal.SIGTERM)  # Ray's own processes are in the group
    wait_until(lambda: run.refresh() or run.status.attempt == 2, timeout=60, what="the next attempt")
    assert run._record.status["attempts"][0]["reason"] == "killed by SIGTERM"
    wait_until(lambda: run.refresh() or run.status.resumed_from, timeout=200, what="coming back")
    assert run.status.resumed_from > max(before, 200)
    assert "another worker was told to stop" in "".join(run.logs())
    run.cancel()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_in_parts_ends_as_whole_copies_do_and_exactly_over_a_kill(home):
    inputs = work.data()[0][:64]
    whole = train("whole", epochs=60).wait(300).model.predict(inputs)
    parts = cloudai.ScalingPolicy(num_workers=2, strategy="fsdp")
    calm = train("parts", epochs=60, scaling=parts).wait(300)
    # two thousand steps carry the rounding of another order of sums on, which tests/training/test_sharding.py sees after a few
    np.testing.assert_allclose(calm.model.predict(inputs), whole, rtol=1e-2, atol=1e-2)
    run = train("hurt-parts", epochs=60, scaling=parts)
    wait_until(lambda: run.refresh() or (run.status.checkpoint or 0) > 1, timeout=200, what="a checkpoint")
    kill(next(pid for pid in ranks() if pid != run.status.pid))
    run.wait(400)
    assert run.status.attempt == 2
    assert run.exact
    assert work.weights(run) == work.weights(calm)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stream_over_two_workers_is_exact_over_a_kill(home, tmp_path):
    table = cloudai.Table(rows_in_files(tmp_path / "rows"), target="label", stream=True)
    options = {"epochs": 40, "batch_size": 32, "num_workers": 2, "lease": "10m"}
    calm = cloudai.train(work.network(), table, name="calm", **options).wait(300)
    run = cloudai.train(work.network(), table, name="hurt", **options)
    wait_until(lambda: run.refresh() or (run.status.checkpoint or 0) > 1, timeout=200, what="a checkpoint")
    kill(next(pid for pid in ranks() if pid != run.status.pid))
    run.wait(400)
    assert (calm.status.workers, run.status.workers, run.status.attempt) == (2, 2, 2)
    assert run.exact
    assert work.weights(run) == work.weights(calm)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_of_long_steps_end_by_themselves_before_the_deadline(home):
    run = cloudai.train(long_steps, name="long", num_workers=2, deadline="2m", lease="10m")
    wait_until(lambda: run.refresh() or run.ended, timeout=200, what="the end")
    assert run.phase == "stopped"
    attempt = run._record.status["attempts"][0]
    assert "ending" not in attempt, "nobody had to end them"
    assert run.status.checkpoint == run.status.step >= 3
    assert attempt["ended"] < attempt["limits"]["until"]
