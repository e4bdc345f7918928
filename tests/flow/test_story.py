"""The whole story on a simulated cloud: two days of a model's life in seconds, the same each time, to the cent."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import cloudai
from cloudai import errors
from cloudai.drivers.simulated.deployments import Shift, Traffic
from cloudai.drivers.simulated.world import Fate, LostAnswer, Machine, Preemption, World, Zone
from cloudai.testing.simulation import Simulation

INPUTS, TARGETS = load_digits(return_X_y=True)
GPU = Machine(cpus=8, gpus=1, gpu_type="T4")
WORLD = World(
    zones=[
        Zone(name="north", price=1.20, machine=GPU, spot=[("0m", 0.30), ("3h", 0.36)]),
        Zone(name="south", price=1.10, machine=GPU, spot=[("0m", 0.40), ("70m", None), ("4h", 0.25)]),
        Zone(name="plain", price=0.20, boot=30),
    ],
    preemptions=[Preemption(at="40m", zone="north"), Preemption(at="65m")],
    fates=[Fate(revision="v1.1.0", error_rate=0.25)],
    lost_answers=[LostAnswer(act="submit"), LostAnswer(act="route", nth=2), LostAnswer(act="delete")],
)
START = datetime(2026, 1, 1, tzinfo=UTC)
DRIFT = 20 * 3600.0
COLUMN = 20


def network(width):
    return torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10))


def train(width, inputs, name, **options):
    torch.manual_seed(width)
    return cloudai.train(
        network(width), (inputs, TARGETS), on="simulated", name=name, model_name="digits", epochs=2, lr=3e-3, **options
    )


def spot_training(gpu):
    """A plan, and a run that loses its machine twice and stays in its budget."""
    plan = cloudai.plan(
        network(16), (INPUTS, TARGETS), on="simulated", spot_policy="spot", resources=gpu, name="first", model_name="digits"
    )
    assert (plan.offer.place, plan.offer.price_per_hour, plan.offer.spot) == ("north", 0.30, True)
    assert "on demand, and spot was asked for" in plan.explain()
    assert "needs 1 × GPU, a machine has 0 × GPU" in plan.explain()
    run = train(16, INPUTS, "first", spot_policy="spot", resources=gpu).wait(progress=False)
    assert (run.status.preemptions, run.status.attempt) == (2, 3)
    assert run.model.version == "1.0.0"
    return run


def failed_canary(deployment):
    """A second version fails a quarter of its requests, and goes."""
    second = train(32, INPUTS, "second").wait(progress=False)
    deployment.canary(second, percent=10).wait(3600)
    assert deployment.traffic == {"v1.0.0": 90, "v1.1.0": 10}
    return second


def roll_back_if_bad(simulation, deployment):
    simulation.advance("30m")
    canary, stable = (deployment.metrics(version=version) for version in ("1.1.0", "1.0.0"))
    assert canary["requests"] >= 150
    assert canary["errors"] / canary["requests"] == pytest.approx(0.25, abs=0.01)
    assert stable["errors"] == 0
    deployment.rollback().wait(3600)
    assert deployment.traffic == {"v1.0.0": 100}


def drift_is_found(simulation, watch):
    """The traffic changes at a known time; the monitor decides to retrain in the first window after it."""
    while not any(decision.kind == "retrain" for decision in watch.decisions):
        simulation.advance("15m")
    decision = next(decision for decision in watch.decisions if decision.kind == "retrain")
    assert decision.request["features"] == [f"input[{COLUMN}]"]
    return (decision.at - START).total_seconds()


def story():
    """Tell it, and return everything that must be the same the next time."""
    traffic = {"digits": Traffic(INPUTS.astype("float32"), per_minute=60, shifts=(Shift(DRIFT, COLUMN, 4.0),))}
    gpu = cloudai.Resources(gpus=1)
    with Simulation(WORLD, durations={"digits": "2h"}, traffic=traffic) as simulation:
        run = spot_training(gpu)
        deployment = cloudai.deploy(run, on="simulated", lease=None).wait(3600)
        failed_canary(deployment)
        roll_back_if_bad(simulation, deployment)
        watch = cloudai.monitor(deployment, every="1h")
        found = drift_is_found(simulation, watch)
        assert DRIFT < found <= DRIFT + 3600, "within one window"
        assert sum(d.kind == "retrain" for d in watch.decisions) == 1
        shifted = INPUTS + np.where(np.arange(64) == COLUMN, 4.0, 0.0)
        third = train(16, shifted, "third", spot_policy="spot", resources=gpu).wait(progress=False)
        deployment.canary(third, percent=50).wait(3600)
        simulation.advance("1h")
        deployment.promote().wait(3600)
        assert deployment.traffic == {f"v{third.model.version}": 100}
        assert deployment.metrics(version=third.model.version)["errors"] == 0
        deployment.delete()
        simulation.advance("10m")
        assert (deployment.phase, watch.phase) == ("deleted", "stopped")
        return checked_money(simulation, [run, third]), timeline(), [weights(run), weights(third)]


def checked_money(simulation, spot_runs):
    """The bill, the ledger and a sum by hand agree."""
    costs, bill = cloudai.costs(), simulation.bill
    assert costs.totals["USD"] == pytest.approx(bill.total, abs=1e-9)
    by_object = Counter()
    for line in bill.lines:
        by_object[line.what.split()[1].split("/")[0].partition(".")[0]] += line.amount
    for entry in costs.entries:
        assert entry.spending.amount == pytest.approx(by_object[entry.record.name], abs=1e-9), entry.record.ref
    # the first run: 39 min in the north at 0.30, from its checkpoint at 30; then 24 min in the north again, of which 20
    # are kept; then from minute 66 the last 70 minutes of the work, in the north, where spot is still 0.30
    first = 0.30 * (39 + 24 + 70) / 60
    assert spot_runs[0].cost.amount == pytest.approx(first, abs=1e-9)
    assert all(run.cost.amount < 0.5 * 1.10 * run.cost.seconds / 3600 for run in spot_runs), "less than half of on demand"
    return [(line.what, line.zone, round(line.start, 6), round(line.end, 6), round(line.amount, 6)) for line in bill.lines]


def timeline():
    ledger = cloudai.costs()._ledger
    return [(r.ref, event.what, event.at) for r in reversed(ledger.records()) for event in ledger.events(r.kind, r.name)]


def weights(run):
    return {name: tensor.numpy().tobytes() for name, tensor in run.model.module().state_dict().items()}


def test_the_story_is_told_in_seconds_and_is_the_same_each_time():
    begin = time.process_time()  # of this process: other tests run beside it
    once = story()
    took = time.process_time() - begin
    assert took < 10, f"it took {took:.1f} s"
    assert story() == once


def test_a_canary_that_never_starts_is_told_and_can_be_rolled_back():
    world = World(fates=[Fate(revision="v1.1.0", ready=False, crash_after=20)])
    with Simulation(world):
        deployment = cloudai.deploy(train(16, INPUTS, "first").wait(progress=False), on="simulated").wait(3600)
        second = train(32, INPUTS, "second").wait(progress=False)
        with pytest.raises(errors.RunFailedError, match=r"v1\.1\.0 does not start: the process ended by itself"):
            deployment.canary(second, percent=10).wait(3600)
        assert deployment.traffic == {"v1.0.0": 100}, "what does not start gets no traffic"
        deployment.rollback().wait(3600)
        assert deployment.phase == "ready"
