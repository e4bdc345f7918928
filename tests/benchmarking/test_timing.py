"""Times: how many steps a window has, and how sure the mean is."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from cloudai.benchmarking.timing import Latency, StepTimes, measure_latency, rate

CPU = torch.device("cpu")


def marks_until_enough(longest):
    begun = []
    times = StepTimes(CPU, longest, lambda: begun.append(True))
    count = 1
    while not times.mark(8 * count):
        count += 1
    assert begun == [True]
    return times, count


def test_a_short_window_still_has_two_steps():
    times, count = marks_until_enough(longest=1e-9)
    assert (times.steps, count) == (2, 3)
    assert times.rows().tolist() == [8, 8]
    assert (times.durations() > 0).all()


def test_the_warm_up_is_ten_steps_and_does_not_count():
    times, count = marks_until_enough(longest=0.2)
    assert count == times.steps + 10
    assert times.steps > 50
    assert 0.1 <= times.durations().sum() < 2


def test_the_interval_holds_the_mean_as_often_as_it_says():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        found = rate(np.full(100, 8), random.normal(0.5, 0.05, size=100))
        hits += found.low <= 16 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_steps_that_are_alike_make_the_interval_wider():
    random = np.random.default_rng(2)
    seconds = random.normal(0.5, 0.03, size=200)
    waves = 0.5 + 0.05 * np.sin(np.linspace(0, 3, 200))
    alone, together = (rate(np.full(200, 8), each) for each in (seconds, waves))
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_few_steps_have_no_interval():
    found = rate(np.full(9, 8), np.full(9, 1.0))
    assert (found.mean, found.low, found.high) == (8.0, None, None)


def test_latency_has_two_hundred_runs_or_as_many_as_there_is_time_for():
    assert measure_latency(lambda: None, longest=10).runs == 200
    between = []
    slow = measure_latency(lambda: time.sleep(0.01), longest=0.02, between=lambda: between.append(time.sleep(0.02)))
    assert (slow.runs, slow.p99) == (10, None)
    assert len(between) == 11
    assert slow.p50 < 20
    assert slow.p95 >= slow.p50 >= 10


def test_percentiles_are_in_milliseconds():
    found = Latency.of([milliseconds / 1e3 for milliseconds in range(1, 201)])
    assert (found.p50, found.p95, found.p99) == pytest.approx((100.5, 190.05, 198.01))
