"""A search and a schedule on this machine: real workers, and kill -9 in the middle."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

import cloudai
from cloudai import Search, choice
from cloudai.state.leader import supervisor_pid
from cloudai.state.ledger import open_ledger
from tests.conftest import kill, processes_of, wait_until
from tests.flow import work

ROOT = Path(__file__).parents[2]


def train(search, **options):
    return cloudai.train(work.network(), work.data(), search=search, name="s", model_name="m", lease="5m", **options)


def test_a_search_whose_supervisor_is_killed_ends_with_the_best_model(home):
    run = train(Search({"lr": choice(0.01, 1e-6)}, trials=2, parallel=1), epochs=20)
    wait_until(lambda: any(trial.step for trial in run.trials), what="the first report", timeout=120)
    kill(supervisor_pid(home))
    run.wait(120, progress=False)
    drawn = run.search.drawn(0)
    phases = {trial.parameters["lr"]: trial.phase for trial in run.trials}
    assert phases[0.01] == "succeeded"
    if drawn[0]["lr"] == 0.01:
        assert phases[1e-6] == "stopped"
        [weak] = [trial for trial in run.trials if trial.phase == "stopped"]
        record = cloudai.attach(f"run/{weak.name}")
        assert "is not among the best 1/3 of 2" in weak.reason
        assert record.phase == "succeeded" or record.status.reason == weak.reason, "it may have been too quick to be ended"
    assert run.trials.best.parameters["lr"] == 0.01
    assert run.model.verify().metrics["val_accuracy"] > 0.8
    assert cloudai.load_model("m").digest == run.model.digest
    assert run.cost.seconds == pytest.approx(sum(trial.cost.seconds for trial in run.trials))


def test_a_weak_trial_is_really_ended_and_its_checkpoint_stays(home):
    run = train(Search({"lr": choice(0.01, 1e-9)}, trials=2, parallel=2, grace=3), epochs=5000)
    wait_until(lambda: any(trial.phase == "stopped" for trial in run.trials), what="an early stop", timeout=120)
    [weak] = [trial for trial in run.trials if trial.phase == "stopped"]
    stopped = cloudai.attach(f"run/{weak.name}")
    assert (stopped.phase, stopped.status.reason) == ("cancelled", weak.reason)
    assert stopped.status.checkpoint >= weak.step
    assert sum(trial.phase == "running" for trial in run.trials) == 1, "the other one goes on"
    run.cancel()
    wait_until(lambda: run.refresh() or run.ended, what="the end of the search", timeout=120)
    assert run.phase == "cancelled"
    assert not [process for process in processes_of(home) if "cloudai.training.worker" in process.cmdline()]


def test_a_schedule_starts_its_run_when_its_time_comes(home):
    def load_and_report(context):
        context.report({"loss": 0.5})

    handle = cloudai.train(load_and_report, schedule="0 3 * * *", name="nightly")
    wait_until(lambda: handle.refresh() or handle.phase == "scheduled", what="the schedule", timeout=120)
    at = datetime(2026, 1, 2, 3, tzinfo=UTC)
    open_ledger().observe("schedule", "nightly", "scheduled", {"next": at.timestamp()})  # as if nobody had led since then
    wait_until(lambda: handle.refresh() or handle.runs, what="the run", timeout=120)
    wait_until(lambda: handle.refresh() or handle.runs[-1].what == "succeeded", what="its end", timeout=120)
    assert len(handle.runs) == 1
    code = "import cloudai; s = cloudai.attach('schedule/nightly'); print(s.phase, len(s.runs), s.runs[0].name); s.cancel()"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.split() == ["scheduled", "1", handle.runs[0].name]
    wait_until(lambda: handle.refresh() or handle.ended, what="its cancellation")
