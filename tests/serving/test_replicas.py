"""Which replica is asked, and how busy a revision is."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai.serving.replicas import Load, Replicas


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_the_least_busy_one_is_asked_first():
    replicas = Replicas()
    with replicas.asked(1), replicas.asked(1), replicas.asked(2):
        assert list(replicas.in_order([1, 2, 3])) == [3, 2, 1]
    assert list(replicas.in_order([7])) == [7]
    assert list(replicas.in_order([])) == []


def test_ties_are_broken_by_chance():
    replicas = Replicas()
    first = Counter(next(replicas.in_order([1, 2, 3])) for _ in range(600))
    assert all(100 < count < 300 for count in first.values())


def test_one_that_is_silent_is_asked_last_for_a_while():
    clock = Clock()
    replicas = Replicas(clock)
    assert replicas.silent(1)
    assert not replicas.silent(1), "that is known"
    with replicas.asked(2):
        assert list(replicas.in_order([1, 2])) == [2, 1]
        clock.now += 1.5
        assert list(replicas.in_order([1, 2])) == [1, 2]


def test_a_failed_request_is_counted_no_more():
    replicas = Replicas()
    with pytest.raises(ValueError, match="broken"), replicas.asked(1):
        raise ValueError("broken")
    assert not replicas._busy


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.5), st.booleans()), max_size=80))
def test_the_mean_is_that_of_the_last_two_seconds(steps):
    """Against a sum over fine slices of time."""
    clock = Clock()
    load = Load(clock)
    history = []
    for pause, comes in steps:
        history.append((clock.now, clock.now + pause, load.count))
        clock.now += pause
        if comes or load.count:
            load.change(+1 if comes else -1)
    exact = sum(count * max(0.0, end - max(begun, clock.now - 2.0)) for begun, end, count in history) / 2.0
    most = max((count for *_, count in history), default=0) + 1
    assert load.mean() == pytest.approx(exact, abs=0.1 / 2.0 * most + 1e-9)


def test_a_short_request_between_two_looks_is_seen_and_then_forgotten():
    clock = Clock()
    load = Load(clock)
    assert load.mean() == 0.0
    clock.now += 0.3
    load.change(+1)
    clock.now += 0.001
    load.change(-1)
    clock.now += 1.0  # the supervisor's longest pause
    assert 0 < load.mean() < 0.001
    clock.now += 1.2
    assert load.mean() == 0.0
