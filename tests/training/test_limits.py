"""Budgets and deadlines: counted step by step with a clock that is handed in, and by the supervisor of a simulated cloud."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cloudai
from cloudai import Budget, errors, settings
from cloudai.drivers.protocols import Offer
from cloudai.drivers.simulated.world import Preemption, World, Zone
from cloudai.testing.simulation import Simulation
from cloudai.training.limits import RESERVE, Countdown, Limits, Pulse
from tests.flow.work import weights

DATA = np.zeros((400, 4), dtype="float32"), np.arange(400) % 2
STEPS = 36 * 12  # nine tenths of 400 rows in batches of 10 are 36 steps


def train(name="first", **options):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
    return cloudai.train(module, DATA, on="simulated", name=name, epochs=12, batch_size=10, lease=None, **options)


def events(run):
    return [event.what for event in run._ledger.events("run", run.name)]


@given(
    steps=st.lists(st.floats(0.01, 5.0), min_size=300, max_size=300),
    checkpoint=st.floats(0, 20),
    per_hour=st.floats(1, 1000),
    spent=st.floats(0, 10),
)
def test_a_worker_stops_within_one_step_of_its_budget_and_never_after_it(steps, checkpoint, per_hour, spent):
    budget = spent + per_hour / 3600 * 200
    now = 1000.0
    pulse = Pulse(lambda: now)
    countdown = Countdown(Limits(Budget(usd=budget)).at(spent=spent, per_hour=per_hour), now, pulse)
    countdown.checkpoint_took(checkpoint)
    for step in steps:
        pulse.beat()
        if reason := countdown():
            break
        now += step
    if sum(steps) < 200 - countdown.reserve - 5.0:
        assert not reason
        return
    assert "budget" in reason
    left = 200 - (now - 1000.0) - countdown.reserve
    assert left <= pulse.recent + 1e-6, "not sooner than one step of the slowest kind"
    assert left >= -max(step - pulse.recent for step in steps) - 1e-6, (
        "later by no more than a step was slower than those before"
    )


def test_equal_steps_use_the_time_to_the_last_step_and_leave_what_the_checkpoint_takes():
    now = 0.0
    pulse = Pulse(lambda: now)
    countdown = Countdown(Limits(until=100.0), 0.0, pulse)
    countdown.checkpoint_took(3.0)
    while not countdown():
        now += 0.5
        pulse.beat()
    assert 100.0 - 0.5 - countdown.reserve <= now <= 100.0 - countdown.reserve
    assert countdown.reserve == RESERVE + 6.0


def test_a_first_step_that_was_slow_is_forgotten():
    now = 0.0
    pulse = Pulse(lambda: now)
    for seconds in [60.0] + [0.1] * 200:
        pulse.beat()
        now += seconds
    assert (pulse.slowest, pulse.recent) == (pytest.approx(60.0), pytest.approx(0.1))


def test_a_budget_is_asked_for_in_words_that_can_be_wrong():
    assert Budget(usd=5) == Budget(amount=5, currency="USD")
    for wrong in (
        {},
        {"usd": 0},
        {"usd": float("inf")},
        {"usd": 1, "amount": 2},
        {"amount": 1, "currency": "euro"},
        {"eur": 3},
    ):
        with pytest.raises(errors.SpecError):
            Budget(**wrong)


def test_limits_come_back_from_json():
    limits = Limits.of(Budget(usd=5), datetime(2030, 1, 1, tzinfo=UTC), 1000.0).at(spent=1.5, per_hour=2.0)
    assert Limits.from_json(limits.to_json()) == limits
    assert Limits.from_json(None) == Limits()


def test_what_cannot_be_counted_is_refused_with_the_fix(home):
    work = torch.nn.Linear(4, 2), DATA
    with pytest.raises(errors.SpecError, match="no price") as caught:
        cloudai.train(*work, budget=Budget(usd=1))
    assert "local_price_per_hour" in caught.value.fix
    with pytest.raises(errors.SpecError, match="no price"):
        cloudai.plan(*work, budget=Budget(usd=1))
    settings.configure(local_price_per_hour=1.0, currency="EUR")
    try:
        with pytest.raises(errors.SpecError, match="is in USD") as caught:
            cloudai.train(*work, budget=Budget(usd=1))
        assert "currency='EUR'" in caught.value.fix
    finally:
        settings.configure(local_price_per_hour=None, currency=None)
    assert not cloudai.ps().entries
    assert not (home / "store").exists(), "nothing was written"


@pytest.mark.parametrize(
    ("deadline", "what"),
    [
        (datetime(2020, 1, 1, tzinfo=UTC), "has passed"),
        (datetime(2099, 1, 1), "no time zone"),
        ("0s", "over before"),
        ("soon", "not a duration"),
    ],
)
def test_a_deadline_that_means_nothing_is_refused(home, deadline, what):
    with pytest.raises(errors.SpecError, match=what):
        cloudai.train(torch.nn.Linear(4, 2), DATA, deadline=deadline)
    assert not cloudai.ps().entries


def test_a_budget_is_given_as_a_budget(home):
    with pytest.raises(errors.SpecError, match="5 is no budget") as caught:
        cloudai.train(torch.nn.Linear(4, 2), DATA, budget=5)
    assert "Budget(usd=5)" in caught.value.fix


def test_a_plan_says_before_anything_is_spent_whether_the_limits_are_enough(home):
    settings.configure(local_price_per_hour=3600.0)
    try:
        small = cloudai.plan(torch.nn.Linear(4, 2), DATA, epochs=1000, budget=Budget(usd=3))
        large = cloudai.plan(torch.nn.Linear(4, 2), DATA, epochs=1000, budget=Budget(usd=10**6), deadline="30d")
    finally:
        settings.configure(local_price_per_hour=None)
    assert "NOT ENOUGH" in small.explain()
    assert "enough by the estimate" in large.explain()


def test_a_run_on_a_simulated_cloud_stops_at_its_budget_and_goes_on_as_the_same_run(home):
    world = World(zones=[Zone(name="a", price=3.6, boot=0)])
    with Simulation(world, durations={"*": "1h"}, checkpoint_every="10m") as simulation:
        run = train(budget=Budget(usd=1.8))
        with pytest.raises(errors.RunFailedError, match=r"the budget of 1\.80 USD is used up") as caught:
            run.wait(progress=False)
        assert run.phase == "stopped"
        step = 3600 / STEPS * 3.6 / 3600
        assert 1.8 - step - (step + RESERVE / 1000) - 1e-9 <= run.cost.amount <= 1.8, "what one step and the reserve cost"
        assert run.cost.amount == pytest.approx(simulation.bill.total)
        assert f"step {run.status.step} of {STEPS}" in run.status.reason
        assert STEPS / 2 - 2 <= run.status.step <= STEPS / 2, "half of the money, half of the work"
        stopped = run.status.step
        assert run.status.checkpoint == stopped
        assert "resume(budget=cloudai.Budget(usd=3.6))" in caught.value.fix
        assert any("warning: 1.44 USD of the budget" in event for event in events(run))
        assert "at most 1.80 USD" in run.card().text()
        assert not cloudai.ps().entries

        with pytest.raises(errors.SpecError, match="still the same"):
            run.resume()
        with pytest.raises(errors.SpecError, match="used up"):
            run.resume(budget=Budget(usd=1.79))
        with pytest.raises(errors.SpecError, match="paid in USD"):
            run.resume(budget=Budget(amount=9, currency="EUR"))
        with pytest.raises(errors.SpecError, match="no option 'budgets'"):
            run.resume(budgets=Budget(usd=9))
        run.resume(budget=Budget(usd=10)).wait(progress=False)
        assert (run.phase, run.status.attempt, run.status.resumed_from) == ("succeeded", 2, stopped)
        assert run.cost.amount == pytest.approx(simulation.bill.total)
        assert run.cost.amount == pytest.approx(3.6, abs=0.01), "nothing was done twice"
        with pytest.raises(errors.SpecError, match="has not stopped"):
            run.resume(budget=Budget(usd=20))
        assert weights(run) == weights(train("second").wait(progress=False))


def test_a_deadline_counts_from_when_the_run_was_asked_for_and_anew_when_it_is_resumed(home):
    with Simulation(durations={"*": "1h"}) as simulation:
        begin = simulation.now
        run = train(deadline="30m")
        with pytest.raises(errors.RunFailedError, match="the deadline 2026-01-01 00:30:00 UTC is reached"):
            run.wait(progress=False)
        assert timedelta(minutes=29) < simulation.now - begin <= timedelta(minutes=30)
        assert any("are left until the deadline" in event for event in events(run))
        with pytest.raises(errors.SpecError, match="has passed"):
            run.resume(deadline=begin)
        simulation.advance("1d")
        run = cloudai.attach("run/first").resume(deadline="40m")
        run.wait(progress=False)
        assert run.phase == "succeeded"


def test_what_was_spent_before_a_preemption_counts(home):
    world = World(zones=[Zone(name="a", price=9.0, spot=3.6, boot=0)], preemptions=[Preemption(at="25m")])
    with Simulation(world, durations={"*": "1h"}, checkpoint_every="10m"):
        run = train(budget=Budget(usd=1.8), spot_policy="spot")
        with pytest.raises(errors.RunFailedError, match=r"spent 1\.7"):
            run.wait(progress=False)
        assert run.status.preemptions == 1
        assert 1.75 < run.cost.amount <= 1.8


def test_no_attempt_is_started_that_would_come_to_nothing(home):
    world = World(zones=[Zone(name="a", price=9.0, spot=3.6, boot=0)], preemptions=[Preemption(at=1799)])
    with Simulation(world, durations={"*": "1h"}) as simulation:
        run = train(deadline=1800.0, spot_policy="spot")
        with pytest.raises(errors.RunFailedError, match="the deadline"):
            run.wait(progress=False)
        assert len(simulation.bill.lines) == 1


def test_a_deadline_passes_also_while_the_run_waits_for_a_place(home):
    world = World(zones=[Zone(name="a", price=1.0, quota=1)])
    with Simulation(world, durations={"*": "3h"}) as simulation:
        train("first")
        second = train("second", deadline="1h")
        simulation.advance("70m")
        assert (second.phase, second.status.attempt) == ("stopped", 0)
        assert "the deadline" in second.status.reason
        assert len(simulation.bill.lines) == 1


def test_the_supervisor_ends_a_worker_that_does_not_count(home, monkeypatch):
    monkeypatch.setattr("cloudai.testing.workload.TrainingWorkload._stop", lambda *_: None)
    with Simulation(World(zones=[Zone(name="a", price=3.6, boot=0)]), durations={"*": "1h"}) as simulation:
        run = train(budget=Budget(usd=1.8))
        with pytest.raises(errors.RunFailedError, match="the budget of"):
            run.wait(progress=False)
        assert run.phase == "stopped"
        assert simulation.bill.total == pytest.approx(1.8, abs=0.01)
        assert run.status.checkpoint is not None


def test_the_supervisor_ends_a_worker_at_its_limit_also_while_the_store_is_away(home, monkeypatch):
    def away(self):
        raise errors.StoreError("the store is away", fix="wait")

    monkeypatch.setattr("cloudai.testing.workload.TrainingWorkload._stop", lambda *_: None)
    monkeypatch.setattr("cloudai.training.advance._Advance._reports", away)
    with Simulation(World(zones=[Zone(name="a", price=3.6, boot=0)]), durations={"*": "1h"}) as simulation:
        run = train(budget=Budget(usd=1.8))
        simulation.advance("50m")
        assert simulation.bill.total == pytest.approx(1.8, abs=0.01)
        assert (run.phase, run.status.reason.startswith("the budget of")) == ("stopped", True)


def test_a_budget_at_a_place_without_a_price_rejects_the_run(home, monkeypatch):
    monkeypatch.setattr("cloudai._api._offer_at_once", lambda *_, **__: None)  # as of a driver that must be asked
    with Simulation(World(zones=[Zone(name="free", price=0.0)])):
        run = train(budget=Budget(usd=1))
        with pytest.raises(errors.RunFailedError, match="has no price"):
            run.wait(progress=False)
        assert run.phase == "rejected"


def test_an_offer_whose_price_is_unknown_is_refused():
    offer = Offer("x", "there", float("nan"), "USD", "nobody", "")
    with pytest.raises(errors.SpecError, match="no price"):
        Limits(Budget(usd=1)).refuse_uncounted(offer)
