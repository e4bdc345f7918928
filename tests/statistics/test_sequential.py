"""The tests of a rollout: they rarely raise a false alarm however often one looks, and find what is worse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai.statistics.sequential import (
    Tally,
    bound_evidence,
    gap_at_least,
    gap_evidence,
    mean_evidence,
    share_at_least,
)

ALPHA = 0.05
NEEDED = math.log(1 / ALPHA)
STEPS = (0.05, 0.25, 0.5)


def rollout(rng, new, old, *, requests=1500, look=25, margin=0.01):
    """Deal requests by growing shares and look again and again; return after how many of the new version's it was rejected."""
    tallies, seen = [], 0
    for share in STEPS:
        dealt = rng.random(requests) < share
        bad = rng.random(requests) < np.where(dealt, new, old(np.arange(requests)) if callable(old) else old)
        for end in range(look, requests + 1, look):
            counts = [(int(side[:end].sum()), int((bad & side)[:end].sum())) for side in (dealt, ~dealt)]
            if gap_evidence([*tallies, Tally(share, *counts)], margin, steps=len(STEPS)) >= NEEDED:
                return seen + counts[0][0]
        tallies.append(Tally(share, *counts))
        seen += counts[0][0]
    return None


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.3])
def test_a_version_that_is_just_good_enough_is_rarely_rejected(rate):
    rng = np.random.default_rng(1)
    rejected = sum(rollout(rng, rate + 0.01, rate) is not None for _ in range(120))
    assert rejected <= 12, "12 of 120 come to pass with a chance below 1 % at a rate of 5 %"


def test_errors_that_come_in_waves_are_no_evidence_as_both_versions_have_them():
    rng = np.random.default_rng(2)

    def waves(n):
        return 0.3 * (n % 500 < 100)

    def both(rng):
        tally = []
        for share in STEPS:
            dealt = rng.random(1500) < share
            bad = rng.random(1500) < waves(np.arange(1500))
            tally.append(Tally(share, *[(int(side.sum()), int((bad & side).sum())) for side in (dealt, ~dealt)]))
        return gap_evidence(tally, 0.0, steps=3)

    assert sum(both(rng) >= NEEDED for _ in range(200)) <= 18


@pytest.mark.parametrize(("new", "old", "within"), [(1.0, 0.0, 12), (0.5, 0.0, 25), (0.1, 0.0, 160), (0.1, 0.02, 300)])
def test_a_bad_version_is_found_after_few_of_its_requests(new, old, within):
    rng = np.random.default_rng(3)
    found = [rollout(rng, new, old, requests=3000) for _ in range(20)]
    assert all(found)
    assert np.median(found) <= within


def test_a_version_that_fails_only_under_more_load_is_found_too():
    calm = [Tally(0.05, (1000, 0), (19000, 0))]
    assert gap_evidence(calm, 0.01, steps=3) < 0
    assert gap_evidence([*calm, Tally(0.25, (60, 15), (180, 0))], 0.01, steps=3) > NEEDED


def test_a_bound_needs_no_other_version():
    rng = np.random.default_rng(4)
    false = 0
    for _ in range(200):
        bad = np.cumsum(rng.random(600) < 0.05)
        false += any(bound_evidence([Tally(1.0, (n, int(bad[n - 1])))], 0.05) >= NEEDED for n in range(20, 601, 20))
    assert false <= 18
    assert bound_evidence([Tally(1.0, (10, 10))], 0.5) > NEEDED


COUNTS = st.integers(0, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
TALLIES = st.lists(st.builds(Tally, st.floats(0.01, 1.0), COUNTS, COUNTS), min_size=1, max_size=4)


@given(TALLIES, st.floats(0, 0.5), st.integers(1, 5))
def test_evidence_is_a_number_and_grows_with_bad_outcomes_of_the_new_version(tallies, margin, steps):
    evidence = gap_evidence(tallies, margin, steps=steps)
    assert math.isfinite(evidence)
    *rest, last = tallies
    worse = Tally(last.share, (last.new[0], last.new[0]), last.old)
    better = Tally(last.share, last.new, (last.old[0], last.old[0]))
    assert gap_evidence([*rest, better], margin, steps=steps) <= evidence + 1e-9
    assert gap_evidence([*rest, worse], margin, steps=steps) >= evidence - 1e-9


@given(TALLIES, st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_the_more_is_allowed_the_less_evidence_there_is(tallies, one, other):
    low, high = sorted((one, other))
    assert gap_evidence(tallies, high) <= gap_evidence(tallies, low) + 1e-9
    assert bound_evidence(tallies, high) <= bound_evidence(tallies, low) + 1e-9


def test_the_bets_are_fair_where_the_gap_is_just_the_margin():
    """The mean of what a request does to the wealth is exactly 1, by summing over all that can happen."""
    share, old, margin = 0.2, 0.3, 0.1
    new = old + margin
    mean = sum(
        chance * math.exp(gap_evidence([Tally(share, n, m)], margin))
        for chance, n, m in [
            (share * new, (1, 1), (0, 0)),
            (share * (1 - new), (1, 0), (0, 0)),
            ((1 - share) * old, (0, 0), (1, 1)),
            ((1 - share) * (1 - old), (0, 0), (1, 0)),
        ]
    )
    assert mean == pytest.approx(1.0)


def test_what_is_known_for_sure_about_the_gap():
    tallies = [Tally(0.5, (1000, 200), (1000, 50))]
    least = gap_at_least(tallies, NEEDED)
    assert 0.1 < least < 0.15, "the gap seen is 15 %"
    assert gap_evidence(tallies, least + 1e-6) < NEEDED <= gap_evidence(tallies, least - 1e-6)
    assert 0.15 < share_at_least(tallies, NEEDED) < 0.2
    assert gap_at_least([Tally(0.5, (10, 0), (10, 0))], NEEDED) < 1e-9


def test_the_mean_of_evidence():
    assert mean_evidence([math.log(4), math.log(2)]) == pytest.approx(math.log(3))
