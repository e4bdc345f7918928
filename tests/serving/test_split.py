"""The rollout's state machine: every state has traffic that sums to 100, and a way back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai.errors import SpecError
from cloudai.serving.split import Split

ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("start_canary"), st.sampled_from(["a", "b", "c"]), st.integers(0, 100)),
        st.tuples(st.just("promote")),
        st.tuples(st.just("rollback")),
    ),
    max_size=12,
)


@given(ACTS)
def test_after_any_acts_the_traffic_is_whole_and_what_has_traffic_is_kept(acts):
    state = Split("a")
    for name, *arguments in acts:
        try:
            state = getattr(state, name)(*arguments)
        except SpecError:
            continue
        assert sum(state.traffic.values()) == 100
        assert set(state.traffic) <= state.kept
        assert state.stable not in (state.canary, state.previous)
        assert Split.from_json(state.to_json()) == state


def test_the_way_of_a_good_version():
    state = Split("v1").start_canary("v2", 10)
    assert state.traffic == {"v1": 90, "v2": 10}
    assert state.start_canary("v2", 50).traffic == {"v1": 50, "v2": 50}
    promoted = state.promote()
    assert promoted.traffic == {"v2": 100}
    assert promoted.kept == {"v1", "v2"}, "the one before stays up to go back to"


def test_the_way_back():
    assert Split("v1").start_canary("v2", 10).rollback() == Split("v1")
    assert Split("v1").start_canary("v2", 10).promote().rollback() == Split("v1")


def test_a_new_canary_keeps_the_way_back_until_it_is_promoted():
    state = Split("v2", previous="v1").start_canary("v3", 5)
    assert state.kept == {"v1", "v2", "v3"}
    assert state.rollback().previous == "v1"
    assert state.promote() == Split("v3", previous="v2")


@pytest.mark.parametrize("percent", [-1, 101, 0.5, "10", True, None])
def test_a_share_is_a_whole_percentage(percent):
    with pytest.raises(SpecError, match="percent of the traffic"):
        Split("v1").start_canary("v2", percent)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Split("v1").promote(), "no canary to promote"),
        (lambda: Split("v1").rollback(), "nothing to roll back to"),
        (lambda: Split("v1").start_canary("v1", 10), "already the stable"),
        (lambda: Split("v1").start_canary("", 10), "no canary whose share"),
        (lambda: Split("v1").start_canary("v2", 10).start_canary("v3", 10), "'v2' is on trial already"),
    ],
)
def test_what_makes_no_sense_is_refused(act, message):
    with pytest.raises(SpecError, match=message):
        act()
