"""The meter: what it says is what happened, and it costs a loop next to nothing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai.training.meter import Flops, Meter

SECONDS = st.floats(0.001, 10)


class Hands:
    """A clock that is moved by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@given(steps=st.lists(st.tuples(SECONDS, SECONDS, SECONDS, st.integers(0, 64), st.integers(0, 4096)), min_size=1, max_size=40))
def test_every_second_of_training_is_counted_once(steps):
    clock = Hands()
    meter = Meter(clock)
    meter.begin()
    for work, wait, stall, rows, tokens in steps:
        clock.now += wait
        meter.waited(wait)
        clock.now += work
        meter.ended(rows, tokens)
        clock.now += stall
        meter.stalled(stall)
    figures = meter.figures()
    passed = clock.now - 100.0
    assert figures.steps == len(steps)
    assert figures.seconds == pytest.approx(passed)
    assert figures.waiting == pytest.approx(sum(step[1] for step in steps) / passed)
    assert figures.stalled == pytest.approx(sum(step[2] for step in steps) / passed)
    assert figures.rows_per_second == pytest.approx(sum(step[3] for step in steps) / passed)
    assert figures.tokens_per_second == pytest.approx(sum(step[4] for step in steps) / passed)


@given(times=st.lists(SECONDS, min_size=1, max_size=200))
def test_the_spread_of_steps_is_that_of_their_times(times):
    clock = Hands()
    meter = Meter(clock)
    meter.begin()
    for seconds in times:
        clock.now += seconds
        meter.ended(rows=1)
    figures = meter.figures()
    for share, said in ((0.5, figures.step_p50), (0.95, figures.step_p95)):
        assert sum(seconds <= said + 1e-9 for seconds in times) >= share * len(times)
        assert sum(seconds >= said - 1e-9 for seconds in times) >= (1 - share) * len(times)


def test_what_is_no_training_does_not_count():
    clock = Hands()
    meter = Meter(clock)
    for _ in range(3):
        meter.begin()
        clock.now += 1
        meter.ended(rows=10)
        clock.now += 100  # it measures
    figures = meter.figures()
    assert (figures.seconds, figures.rows_per_second, figures.step_p95) == (3.0, 10.0, 1.0)


def test_throughput_is_of_late_and_never_of_a_time_without_steps():
    clock = Hands()
    meter = Meter(clock)
    meter.begin()
    for look in range(40):
        clock.now += 1 if look < 20 else 4
        meter.ended(rows=8)
        figures = meter.figures()
        for _ in range(10):  # looks in between, at which nothing new has happened
            figures = meter.figures()
        assert figures.rows_per_second > 0
    assert figures.rows_per_second == 2.0


def test_a_meter_that_saw_nothing_says_nothing():
    figures = Meter().figures()
    assert (figures.steps, figures.rows_per_second, figures.step_p50, figures.waiting, figures.stalled) == (0, 0, 0, 0, 0)


def test_operations_are_those_of_the_rows():
    clock = Hands()
    meter = Meter(clock)
    meter.flops = Flops(per_row=1000.0, per_token=10.0, per_pair=1.0)
    meter.begin()
    clock.now += 2
    meter.ended(rows=4, tokens=32)  # of 8 each
    assert meter.figures().flops_per_second == (4 * 1000 + 32 * 10 + 32 * 8) / 2


def test_a_step_costs_less_than_a_hundredth_of_a_tenth_of_a_millisecond():
    meter = Meter()
    meter.begin()
    best = float("inf")
    for _ in range(20):  # the best of many: others use the machine too
        begin = time.perf_counter()
        for _ in range(1000):
            meter.ended(32, 512)
        best = min(best, (time.perf_counter() - begin) / 1000)
    assert best < 1e-6
