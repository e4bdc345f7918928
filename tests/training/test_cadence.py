"""The time between checkpoints: the best by a simulation of failures, learnt from what happens."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai.training.cadence import Cadence, best_interval


def time_lost(interval, cost, mtbf, work=200_000.0):
    """Simulate a run with failures at random; return the share of its time that was lost."""
    chance, done, passed, kept = random.Random(1), 0.0, 0.0, 0.0
    failure = chance.expovariate(1 / mtbf)
    while done < work:
        end = passed + interval + cost
        if end < failure:
            passed, done = end, done + interval
            kept = done
        else:
            passed, done = failure, kept
            failure += chance.expovariate(1 / mtbf)
    return 1 - work / passed


@pytest.mark.parametrize(("cost", "mtbf"), [(1, 600), (5, 600), (30, 3600)])
def test_no_other_interval_loses_much_less(cost, mtbf):
    best = time_lost(best_interval(cost, mtbf), cost, mtbf)
    for factor in (0.25, 0.5, 2, 4):
        assert best < time_lost(factor * best_interval(cost, mtbf), cost, mtbf) + 0.005


@given(st.floats(1e-4, 1e3), st.floats(1, 1e6))
def test_the_interval_is_positive_and_grows_with_reliability(cost, mtbf):
    assert 0 < best_interval(cost, mtbf) <= max(mtbf, 2 * (2 * cost * mtbf) ** 0.5)
    assert best_interval(cost, mtbf) <= best_interval(cost, 4 * mtbf)


def cadence(**options):
    return Cadence(**{"longest": None, "mtbf": None, "spot": False, "failures": 0, "worked": 0.0, **options})


def test_failures_bring_checkpoints_closer():
    often, seldom = cadence(failures=29, worked=600.0), cadence()
    for each in (often, seldom):
        each.learn(stall=1.0, writing=1.0)
    assert often.interval(0) < seldom.interval(0)
    assert cadence(spot=True).mtbf(0) < cadence().mtbf(0)
    assert often.mtbf(0) < often.mtbf(3600), "an hour without a failure is good news"


def test_cheap_checkpoints_come_often_and_never_too_often():
    each = cadence()
    assert each.interval(0) == 0.5
    each.learn(stall=0.01, writing=0.02)
    assert each.interval(0) == pytest.approx(1.6), "a hundredth of the time, what is slower beside the writing counted in"


def test_a_slow_store_is_not_kept_busy():
    each = cadence(mtbf=60)
    each.learn(stall=0.001, writing=20.0)
    assert each.interval(0) == 200.0


def test_what_the_user_says_holds():
    each = cadence(longest=3.0, mtbf=3600)
    each.learn(stall=10.0, writing=20.0)
    assert each.interval(0) == 3.0
    assert each.mtbf(1e9) == 3600
