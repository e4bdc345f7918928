"""Simulations: the real core on a simulated cloud, and what the clock, the faults and the bill do there."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
import torch

import cloudai
from cloudai import errors
from cloudai.drivers.simulated.world import Crash, LostAnswer, Machine, Outage, Preemption, World, Zone
from cloudai.testing.simulation import Simulation

DATA = (np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2)
START = datetime(2026, 1, 1, tzinfo=UTC)
CHEAP = Zone.of(name="cheap", price=2.0, spot=0.5)
DEAR = Zone.of(name="dear", price=3.0, spot=0.9)


def train(name="job", **options):
    return cloudai.train(torch.nn.Linear(4, 2), DATA, on="simulated", name=name, model_name="model", epochs=1, **options)


def test_a_run_takes_its_simulated_hour_at_the_cheapest_place_and_is_really_trained():
    with Simulation(World(zones=[DEAR, CHEAP])) as simulation:
        run = train().wait(progress=False)
        assert run.status.phase == "succeeded"
        assert run.status.place == "cheap"
        assert run.cost.amount == simulation.bill.total == 2.0
        assert run.cost.seconds == 3600.0
        assert simulation.now.isoformat() == "2026-01-01T01:01:00+00:00"
        assert run.model.predict(DATA[0]).shape == (60, 2)
        assert "as billed by the place" in run.cost.basis


def test_the_world_outside_is_as_it_was_afterwards(home):
    with Simulation():
        run = train()
        before = torch.get_rng_state()
        run.wait(progress=False)
        assert torch.equal(torch.get_rng_state(), before), "training in this process leaves its random states alone"
        assert len(cloudai.costs()) == 1
    assert len(cloudai.costs()) == 0
    assert cloudai.settings.current().home == home
    with pytest.raises(errors.PlacementError, match="no simulation runs in this process"):
        train("again")


def test_a_preempted_run_goes_on_from_its_checkpoint_and_no_failure_is_counted():
    world = World(zones=[CHEAP], preemptions=[Preemption(at="26m"), Preemption(at="50m")])
    with Simulation(world) as simulation:
        run = train(spot_policy="spot", max_failures=0).wait(progress=False)
        assert (run.status.phase, run.status.preemptions, run.status.attempt) == ("succeeded", 2, 3)
        # 1 min boot; 25 min of work, 20 kept; 1 min boot; 23 min of work, 20 kept; 1 min boot; the last 20 min
        assert simulation.now.minute + 60 * simulation.now.hour == 26 + 24 + 21
        assert run.cost.seconds == 60 * (25 + 23 + 20)
        assert run.cost.amount == pytest.approx(simulation.bill.total, abs=1e-12) == pytest.approx(68 / 60 * 0.5)
        assert [line.amount for line in simulation.bill.lines] == pytest.approx([25 / 120, 23 / 120, 20 / 120])


def test_it_waits_where_no_spot_machine_is_free_and_says_so():
    zone = Zone(name="only", price=2.0, spot=[("0m", 0.5), ("30m", None), ("90m", 0.7)])
    with Simulation(World(zones=[zone])) as simulation:
        run = train(spot_policy="spot")
        simulation.advance("45m")
        assert run.phase == "recovering"
        assert "no place is free now (only: no spot machine is free)" in run.status.reason
        run.wait(progress=False)
        assert run.cost.amount == pytest.approx(29 / 60 * 0.5 + 40 / 60 * 0.7)


def test_a_price_that_changes_is_billed_second_by_second():
    zone = Zone(name="only", price=2.0, spot=[("0m", 0.6), ("31m", 1.2)])
    with Simulation(World(zones=[zone])) as simulation:
        run = train(spot_policy="spot").wait(progress=False)
        assert run.cost.amount == pytest.approx(0.5 * 0.6 + 0.5 * 1.2) == pytest.approx(simulation.bill.total)


def test_a_crash_is_a_failure_and_counts():
    with Simulation(World(crashes=[Crash(job="job.*", after="15m")])):
        run = train(max_failures=1)
        with pytest.raises(errors.RunFailedError, match="out of memory, 2 times"):
            run.wait(progress=False)
    with Simulation(World(crashes=[Crash(job="job.1", after="15m")])):
        run = train(max_failures=1).wait(progress=False)
        assert run.status.attempt == 2
        assert run.status.resumed_from is not None


def test_lost_answers_and_outages_lose_and_double_nothing():
    acts = ("offers", "submit", "status")
    world = World(
        lost_answers=[LostAnswer(act=act, nth=nth) for act in acts for nth in (1, 2, 4)],
        outages=[Outage(start="20m", end="40m")],
    )
    with Simulation(world) as simulation:
        run = train("first")
        run.wait(progress=False)
        assert run.cost.amount == simulation.bill.total
        assert len(simulation.bill.lines) == 1
        assert simulation.now.minute + 60 * simulation.now.hour < 63


def test_a_driver_that_never_answers_ends_a_run_that_never_began():
    with Simulation(World(outages=[Outage(act="submit", start=0, end="9h")])) as simulation:
        run = train()
        with pytest.raises(errors.RunFailedError, match="does not answer"):
            run.wait(progress=False)
        assert run.phase == "rejected"
        assert simulation.now.minute == 15
        assert simulation.bill.total == 0


def test_what_was_started_and_cannot_be_seen_is_ended_when_its_run_is_given_up():
    world = World(lost_answers=[LostAnswer(act="submit")], outages=[Outage(act="status", start=0, end="9h")])
    with Simulation(world) as simulation:
        run = train()
        simulation.advance("2h")
        assert run.phase == "rejected"
        [line] = simulation.bill.lines
        assert line.end == pytest.approx(0.25, abs=0.02), "its machine was given back then"


def test_a_quota_makes_wait_and_what_can_never_be_had_is_refused_at_once():
    zone = Zone(name="small", price=1.0, quota=1, machine=Machine(gpus=1, gpu_type="T4"))
    with Simulation(World(zones=[zone])) as simulation:
        first, second = train("first"), train("second")
        simulation.advance("30m")
        assert (first.phase, second.phase) == ("running", "queued")
        assert "the quota of 1 machines leaves 0" in second.status.reason
        second.wait(progress=False)
        assert simulation.bill.total == pytest.approx(2.0)
        with pytest.raises(errors.PlacementError, match="needs 2 × GPU, a machine has 1 × T4"):
            train("third", resources=cloudai.Resources(gpus=2))


def test_cancelling_ends_the_bill():
    with Simulation() as simulation:
        run = train()
        simulation.advance("31m")
        run.cancel()
        simulation.advance("10m")
        assert run.phase == "cancelled"
        assert run.cost.amount == simulation.bill.total == 0.5


def test_waiting_for_what_will_never_happen_says_so():
    zone = Zone(name="only", price=2.0, spot=[("0m", None), ("1m", None)])
    with Simulation(World(zones=[zone])):
        run = train(spot_policy="spot", lease=None)
        with pytest.raises(errors.NotReadyError, match="nothing more will happen"):
            run.wait(progress=False)


def test_a_simulation_that_does_not_run_or_runs_twice_says_so():
    simulation = Simulation()
    with pytest.raises(errors.SpecError, match="does not run"):
        simulation.advance("1h")
    with simulation, pytest.raises(errors.SpecError, match="runs already"):
        simulation.start()


def test_an_error_in_the_users_code_is_told_with_its_frames():
    def broken(context):
        raise ValueError("my own mistake")

    with Simulation():
        run = cloudai.train(broken, on="simulated", name="broken")
        with pytest.raises(errors.RunFailedError, match="my own mistake") as caught:
            run.wait(progress=False)
        assert "raise ValueError" in caught.value.frames


def test_a_deployment_outlives_an_outage_and_waits_for_a_machine():
    world = World(
        zones=[Zone(name="only", price=1.0, quota=1)],
        outages=[Outage(start="3h", end="4h", act="inspect")],
        lost_answers=[LostAnswer(act="apply"), LostAnswer(act="route"), LostAnswer(act="delete")],
    )
    with Simulation(world) as simulation:
        run = train("first").wait(progress=False)
        other = train("other")
        simulation.advance("5m")
        deployment = cloudai.deploy(run, on="simulated", lease=None)
        simulation.advance("1m")
        assert deployment.phase == "queued"
        assert "the quota of 1 machines leaves 0" in str(deployment)
        other.wait(progress=False)
        deployment.wait(3600)
        for hours, phase in ((2.9, "ready"), (3.1, "failing"), (4.1, "ready")):  # it was there all the time
            simulation.advance(hours * 3600 - (simulation.now - START).total_seconds())
            assert deployment.phase == phase
            assert ("does not answer" in str(deployment)) == (phase == "failing")
        deployment.delete()
        simulation.advance("10m")
        assert deployment.phase == "deleted"
        assert deployment.cost.amount == pytest.approx(simulation.bill.total - run.cost.amount - other.cost.amount)


def test_the_same_world_gives_the_same_story():
    def once():
        world = World(zones=[CHEAP, DEAR], preemptions=[Preemption(at="33m")], lost_answers=[LostAnswer(act="status", nth=3)])
        with Simulation(world) as simulation:
            torch.manual_seed(0)
            run = train(spot_policy="spot").wait(progress=False)
            events = [(event.at, event.what) for event in cloudai.costs()._ledger.events("run", run.name)]
            return events, simulation.bill.lines, run.model.predict(DATA[0]).tobytes()

    assert once() == once()
