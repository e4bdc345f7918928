"""The autoscaling policy: what holds of it whatever comes, and what it does in plain cases."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai.errors import SpecError
from cloudai.serving.autoscaling import Observation, Scale, due, initial, step
from cloudai.specs.serving import AutoscalingPolicy

policies = st.builds(
    lambda low, more, target, up, down, zero: AutoscalingPolicy(
        min_replicas=low,
        max_replicas=max(1, low + more),
        target_ongoing_requests=target,
        upscale_delay=up,
        downscale_delay=down,
        downscale_to_zero_delay=zero,
    ),
    st.integers(0, 5),
    st.integers(0, 20),
    st.floats(0.5, 50),
    st.floats(0, 30),
    st.floats(0, 300),
    st.none() | st.floats(0, 300),
)
loads = st.one_of(st.just(0.0), st.floats(0, 500), st.floats(0, 5))
looks = st.lists(st.tuples(st.floats(-5, 100), loads, st.integers(0, 20)), max_size=60)


def follow(policy, looks, scale=None):
    """Yield what is decided at each look: (seconds since the last one, ongoing, ready)."""
    scale, at = scale or initial(policy), 1000.0
    for passed, ongoing, ready in looks:
        at += passed
        scale = step(policy, scale, Observation(at, ongoing, ready))
        yield scale


def steady(policy, ongoing, seconds, *, every=1.0, scale=None, at=5000.0):
    """Follow the policy under a constant load, with all replicas ready at once."""
    scale = scale or initial(policy)
    for i in range(int(seconds / every) + 1):
        scale = step(policy, scale, Observation(at + i * every, ongoing, max(scale.replicas, 1)))
        yield scale


@settings(max_examples=150, deadline=None)
@given(policies, looks)
def test_it_stays_within_its_bounds_and_is_empty_only_after_silence(policy, looks):
    before = initial(policy)
    for scale, (_, ongoing, _ready) in zip(follow(policy, looks), looks, strict=True):
        assert max(policy.min_replicas, 0) <= scale.replicas <= policy.max_replicas
        if scale.replicas == 0 and before.replicas:
            assert (policy.min_replicas, ongoing, before.enough) == (0, 0, 0)
        before = scale


@settings(max_examples=150, deadline=None)
@given(policies, looks, st.tuples(loads, loads), st.floats(0, 400), st.integers(0, 20))
def test_more_load_never_means_fewer_replicas(policy, looks, two, passed, ready):
    *_, scale = [initial(policy), *follow(policy, looks)]
    at = 1000.0 + sum(look[0] for look in looks) + passed
    few, many = (step(policy, scale, Observation(at, ongoing, ready)).replicas for ongoing in sorted(two))
    assert few <= many


@settings(max_examples=60, deadline=None)
@given(policies, looks, loads)
def test_under_a_constant_load_it_comes_to_rest_and_stays_there(policy, looks, ongoing):
    *_, scale = [initial(policy), *follow(policy, looks)]
    counts = [s.replicas for s in steady(policy, ongoing, 1000, every=7.0, scale=scale)]
    changes = [(a, b) for a, b in itertools.pairwise(counts) if a != b]
    assert all(a > b for a, b in changes) or all(a < b for a, b in changes), "up and down again under one load"
    assert len(changes) <= 2
    ideal = ongoing / policy.target_ongoing_requests
    least = max(policy.min_replicas, int(ongoing > 0))
    assert counts[-1] == max(least, min(policy.max_replicas, counts[-1]))
    if least < counts[-1] < policy.max_replicas:
        assert ideal - 0.1 <= counts[-1] < ideal + 0.9


@settings(max_examples=60, deadline=None)
@given(policies, looks)
def test_after_silence_it_is_back_at_the_minimum(policy, looks):
    *_, scale = [initial(policy), *follow(policy, looks)]
    *_, last = steady(policy, 0.0, 700, every=7.0, scale=scale)
    assert last.replicas == policy.min_replicas


@settings(max_examples=60, deadline=None)
@given(policies, looks)
def test_time_alone_changes_something_at_the_time_that_was_told(policy, looks):
    *_, scale = [initial(policy), *follow(policy, looks)]
    at = due(policy, scale)
    if at is not None and scale.fewer_since is not None:
        ongoing = 0.0 if scale.enough == 0 else policy.target_ongoing_requests * scale.enough
        assert step(policy, scale, Observation(at + 1e-3, ongoing, 1)).replicas < scale.replicas
    if at is not None and scale.more_since is not None:
        assert step(policy, scale, Observation(at + 1e-3, 1e9, 1)).replicas > scale.replicas


def test_up_at_once_and_down_slowly():
    policy = AutoscalingPolicy(max_replicas=10, target_ongoing_requests=4, downscale_delay=60)
    scale = step(policy, initial(policy), Observation(0, 38, 1))
    assert scale.replicas == 10
    quiet = [s.replicas for s in steady(policy, 4.0, 61, scale=scale)]
    assert quiet[:60] == [10] * 60
    assert quiet[-1] == 1


def test_what_was_needed_in_the_meantime_is_kept():
    policy = AutoscalingPolicy(max_replicas=10, target_ongoing_requests=1, downscale_delay=60)
    scale, seen = Scale(10), []
    for second in range(62):
        scale = step(policy, scale, Observation(second, 6.0 if second == 30 else 2.0, 10))
        seen.append(scale.replicas)
    assert seen[-3:] == [10, 6, 6]


def test_a_load_around_a_bound_does_not_flap():
    policy = AutoscalingPolicy(max_replicas=3, target_ongoing_requests=8, downscale_delay=30)
    looks = [(1.0, 7.0 if i % 2 else 9.5, 1) for i in range(300)]
    counts = [scale.replicas for scale in follow(policy, looks)]
    assert set(counts[1:]) == {2}


def test_a_short_peak_is_passed_over_where_that_was_asked_for():
    policy = AutoscalingPolicy(max_replicas=3, target_ongoing_requests=1, upscale_delay=5)
    peak = [(1.0, 3.0 if 2 <= i < 6 else 1.0, 1) for i in range(20)]
    assert {scale.replicas for scale in follow(policy, peak)} == {1}
    assert [scale.replicas for scale in follow(policy, [(1.0, 3.0, 1)] * 7)] == [1] * 5 + [3] * 2


def test_who_waits_for_nobody_is_not_kept_waiting():
    policy = AutoscalingPolicy(min_replicas=0, max_replicas=3, upscale_delay=60)
    assert step(policy, Scale(0), Observation(0, 0.001, 0)).replicas == 1
    assert step(policy, Scale(0), Observation(0, 0.0, 0)).replicas == 0


def test_the_last_replica_has_a_delay_of_its_own():
    policy = AutoscalingPolicy(min_replicas=0, max_replicas=4, downscale_delay=10, downscale_to_zero_delay=100)
    counts = [scale.replicas for scale in steady(policy, 0.0, 110, scale=Scale(4))]
    assert (counts[9], counts[10], counts[99], counts[100]) == (4, 1, 1, 0)
    quick = replace(initial(policy), replicas=4)
    policy = AutoscalingPolicy(min_replicas=0, max_replicas=4, downscale_delay=100, downscale_to_zero_delay=10)
    assert [scale.replicas for scale in steady(policy, 0.0, 11, scale=quick)][-2:] == [0, 0]


def test_silence_counts_only_while_somebody_could_answer():
    policy = AutoscalingPolicy(min_replicas=0, downscale_to_zero_delay=5)
    counts = [scale.replicas for scale in follow(policy, [(1.0, 0.0, 0)] * 30 + [(1.0, 0.0, 1)] * 7)]
    assert counts == [1] * 35 + [0] * 2


def test_a_clock_that_was_set_back_begins_anew():
    policy = AutoscalingPolicy(max_replicas=2, downscale_delay=60)
    scale = step(policy, Scale(2), Observation(10_000, 1, 2))
    scale = step(policy, scale, Observation(50, 1, 2))
    assert scale.fewer_since == 50
    assert step(policy, scale, Observation(111, 1, 2)).replicas == 1


def test_another_policy_holds_at_once():
    assert step(AutoscalingPolicy(max_replicas=2), Scale(7), Observation(0, 100, 7)).replicas == 2
    assert step(AutoscalingPolicy.fixed(3), Scale(1, fewer_since=1.0), Observation(2, 0, 1)) == Scale(3)


@settings(max_examples=40, deadline=None)
@given(policies, looks)
def test_it_goes_through_the_ledger(policy, looks):
    for scale in follow(policy, looks):
        assert Scale.from_json(scale.to_json()) == scale


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2", 1025])
def test_a_fixed_number_is_a_number(count):
    with pytest.raises(SpecError, match="there cannot be"):
        AutoscalingPolicy.fixed(count)


def test_bounds_the_wrong_way_round_are_refused():
    with pytest.raises(SpecError, match="min_replicas=3 is above max_replicas=2"):
        AutoscalingPolicy(min_replicas=3, max_replicas=2)
