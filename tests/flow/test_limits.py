"""A budget for real: a machine whose hour is so dear that dollars pass in seconds."""

from __future__ import annotations

import pytest

import cloudai
from cloudai import Budget, CheckpointPolicy, errors
from cloudai.artifacts.store import Store
from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import open_ledger
from cloudai.training.context import Solo
from cloudai.training.execution import execute
from cloudai.training.job import STOPPED, SUCCEEDED, RunFiles
from cloudai.training.limits import RESERVE, Countdown, Limits, Pulse
from cloudai.training.stopping import Stop
from tests.flow import work


def prepared(name, monkeypatch, **options):
    """A run that is asked for and that nobody has begun."""
    monkeypatch.setattr("cloudai._api.ensure_supervisor", lambda home: None)
    monkeypatch.setattr("cloudai.state.handles.ensure_supervisor", lambda home: None)
    cloudai.train(work.network(), work.data(), name=name, model_name="same", **options)
    return TrainSpec.model_validate(open_ledger().get("run", name).spec)


class StepClock(Stop):
    """Lets a second pass with each step; a step asks once at its end, and once more after a checkpoint."""

    def __init__(self, limits):
        super().__init__(self._at_a_limit)
        self.now = 0.0
        self.pulse = Pulse(lambda: self.now)
        self.countdown = Countdown(limits, 0.0, self.pulse)

    def __call__(self):
        self.now += 1.0
        return super().__call__()

    def _at_a_limit(self):
        return self.countdown()


def test_the_loop_stops_within_one_step_with_a_checkpoint_of_it_and_ends_with_the_same_weights(home, monkeypatch):
    every = {"epochs": 3, "checkpoint": CheckpointPolicy(every="1h")}
    whole = prepared("whole", monkeypatch, **every)
    assert execute(whole, 1, Solo(), Stop()) == SUCCEEDED
    parted = prepared("parted", monkeypatch, **every)
    limits = Limits(Budget(usd=50)).at(spent=0.0, per_hour=3600.0)
    assert execute(parted, 1, Solo(), StepClock(limits)) == STOPPED
    status = RunFiles(parted).folder.read_json("status.json")
    assert "the budget of 50.00 USD is used up" in status["ending"]
    assert 50 - RESERVE - 2 <= status["checkpoint"] <= 50 - RESERVE - 1
    assert execute(parted, 2, Solo(), Stop()) == SUCCEEDED
    assert RunFiles(parted).folder.read_json("status.json")["resumed_from"] == status["checkpoint"]
    assert weights_of(parted) == weights_of(whole)


def weights_of(spec):
    result = RunFiles(spec).folder.read_json("result.json")
    manifest = Store(spec.store).read_json(f"models/same/{result['model']['version']}/manifest.json")
    return manifest["files"]["module.safetensors"]["sha256"]


@pytest.mark.slow
def test_a_run_stops_at_its_budget_and_ends_with_the_same_weights_when_it_is_resumed(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_LOCAL_PRICE_PER_HOUR", "3600")
    options = {"epochs": 1000, "checkpoint": CheckpointPolicy(every=60)}  # long enough to be warned before the reserve begins
    undisturbed = cloudai.train(work.network(), work.data(), name="undisturbed", **options).wait(120, progress=False)
    budget = undisturbed.cost.amount * 0.7
    run = cloudai.train(work.network(), work.data(), name="limited", budget=Budget(usd=budget), **options)
    with pytest.raises(errors.RunFailedError, match="USD is used up but for the reserve: spent") as caught:
        run.wait(120, progress=False)
    stopped = run.status
    assert (run.phase, stopped.checkpoint is not None) == ("stopped", True)
    assert budget - 2 * RESERVE <= run.cost.amount <= budget, "but for the reserve, a checkpoint and a step"
    assert "resume(budget=" in caught.value.fix
    events = [event.what for event in run._ledger.events("run", "limited")]
    assert any(event.startswith("warning: ") for event in events), events
    assert any("spent" in event for event in events if event.startswith("stopped"))

    run = cloudai.attach("run/limited").resume(budget=None).wait(120, progress=False)
    assert (run.status.attempt, run.status.resumed_from) == (2, stopped.checkpoint)
    assert work.weights(run) == work.weights(undisturbed)
