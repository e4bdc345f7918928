"""Leases: a clock that jumps ends nothing whose holder lives, and nothing whose holder is gone lives longer for it."""

from __future__ import annotations

import time

import pytest

from cloudai.state import lease
from cloudai.state.lease import GRACE, LeaseWatch
from cloudai.state.ledger import Ledger

HOUR = 3600.0


class Machine:
    """Two clocks, as a machine has them: one that can be set, one that stands still while it sleeps."""

    def __init__(self):
        self.wall, self.running = 1_000_000.0, 50.0

    def run(self, seconds, step=5.0):
        """Let time pass as a watcher sees it that looks every `step` seconds."""
        while seconds > 0:
            self.wall, self.running = self.wall + min(step, seconds), self.running + min(step, seconds)
            seconds -= step
            yield self.wall

    def watch(self):
        return LeaseWatch(lambda: self.wall, lambda: self.running, interval=5.0)


@pytest.fixture
def machine():
    return Machine()


def ends_after(machine, watch, until, at_most=2 * HOUR):
    """Return after how many seconds of running time the watch says that the lease has passed."""
    began = machine.running
    for _ in machine.run(at_most):
        if watch.passed(until):
            return machine.running - began
    return None


def test_without_a_jump_it_passes_at_its_time(machine):
    assert ends_after(machine, machine.watch(), machine.wall + 100) == 100


def test_for_ever_is_for_ever(machine):
    assert ends_after(machine, machine.watch(), None) is None


@pytest.mark.parametrize("jump", [61.0, HOUR, 24 * HOUR, 365 * 24 * HOUR])
def test_after_a_jump_forward_the_holder_has_a_minute_to_renew(machine, jump):
    watch, until = machine.watch(), machine.wall + 30
    assert not watch.passed(until)
    machine.wall += jump
    assert ends_after(machine, watch, until) == GRACE + 5, "counted from the look that noticed it"
    renewed = machine.wall + 300
    assert ends_after(machine, machine.watch(), renewed) == 300


def test_a_machine_that_slept_ends_nothing_that_is_renewed(machine):
    watch, until = machine.watch(), machine.wall + 30
    assert not watch.passed(until)
    machine.wall += 8 * HOUR  # the running clock stood still
    for at, _ in enumerate(machine.run(10 * 60)):
        until = machine.wall + 30 if at >= 4 else until  # the holder renews as soon as it has woken up
        assert not watch.passed(until)


def test_a_watcher_that_was_held_up_gives_time_too(machine):
    watch, until = machine.watch(), machine.wall + 30
    assert not watch.passed(until)
    machine.wall, machine.running = machine.wall + HOUR, machine.running + HOUR  # stopped, or its database was away
    assert ends_after(machine, watch, until) == GRACE + 5, "counted from the look that noticed it"


def test_a_clock_that_is_set_back_makes_no_lease_longer(machine):
    watch, until = machine.watch(), machine.wall + 600
    assert not watch.passed(until)
    machine.wall -= 24 * HOUR
    assert ends_after(machine, watch, until) == 600


def test_a_small_correction_is_no_jump(machine):
    watch, until = machine.watch(), machine.wall + 30
    assert not watch.passed(until)
    machine.wall += 40
    assert watch.passed(until)


def test_it_is_kept_in_the_ledger_and_in_a_file_for_local_processes(ledger):
    ledger.create("run", "one", {}, {})
    ledger.renew_lease("run", "one", 100)
    assert 99 < ledger.lease_left("run", "one") <= 100
    assert lease.read(ledger.lease_file("run", "one")) == ledger.leases()["run", "one"]
    lease.write(ledger.lease_file("run", "one"), 0.0)
    assert not ledger.lease_expired("run", "one"), "the row is the truth"
    ledger.renew_lease("run", "one", None)
    assert ledger.lease_left("run", "one") is None
    ledger.renew_lease("run", "one", -1)
    assert ledger.lease_expired("run", "one")


def test_a_new_object_does_not_inherit_the_lease_of_an_old_one(ledger):
    ledger.create("deployment", "one", {}, {})
    ledger.renew_lease("deployment", "one", -1)
    ledger.observe("deployment", "one", "deleted", {})
    lease.write(ledger.lease_file("deployment", "one"), 0.0)
    ledger.replace("deployment", "one", {}, {})
    assert not ledger.lease_expired("deployment", "one")


def test_what_lives_in_another_home_gets_no_file_here(ledger, url):
    ledger.create("run", "theirs", {}, {}, home="another-home")
    ledger.renew_lease("run", "theirs", 100)
    assert ledger.lease_file("run", "theirs").exists() is False
    assert ledger.lease_left("run", "theirs") is not None


def test_a_live_holder_has_a_minute_after_a_jump_and_nobody_else_has(path, url, monkeypatch):
    shift = [0.0]
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + shift[0])
    ledger = Ledger(path, url=url)
    for name in ("held", "left"):
        ledger.create("run", name, {}, {})
        ledger.renew_lease("run", name, 60)
    ledger.hold("run", "held")
    ledger.watch_clocks()
    shift[0] = HOUR
    assert not ledger.lease_expired("run", "held")
    assert ledger.lease_expired("run", "left")
