"""What is drawn for the trials of a search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai import Search, choice, errors, integers, log_uniform, uniform

SPACE = {"lr": log_uniform(1e-5, 1e-1), "epochs": integers(1, 5), "wd": uniform(0.0, 1.0), "opt": choice("adam", "sgd")}


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_drawn_values_are_inside_their_bounds_each_different_and_the_same_for_the_same_seed(seed, trials):
    drawn = Search(SPACE, trials=trials).drawn(seed)
    assert drawn == Search(SPACE, trials=trials).drawn(seed)
    assert len({str(parameters) for parameters in drawn}) == len(drawn) == trials
    for parameters in drawn:
        assert 1e-5 <= parameters["lr"] <= 1e-1
        assert parameters["epochs"] in range(1, 6)
        assert 0 <= parameters["wd"] <= 1
        assert parameters["opt"] in ("adam", "sgd")


@given(st.integers(0, 1000), st.integers(1, 20), st.integers(1, 20))
def test_a_longer_search_begins_like_a_shorter_one(seed, some, more):
    assert Search(SPACE, trials=some + more).drawn(seed)[:some] == Search(SPACE, trials=some).drawn(seed)


@given(st.integers(0, 1000))
def test_a_small_space_is_tried_whole_and_no_more(seed):
    drawn = Search({"a": choice(1, 2, 2), "b": integers(0, 2)}, trials=100).drawn(seed)
    assert sorted((p["a"], p["b"]) for p in drawn) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_each_power_of_ten_is_as_likely():
    drawn = [p["lr"] for p in Search({"lr": log_uniform(1e-4, 1.0)}, trials=1000).drawn(0)]
    for power in (1e-4, 1e-3, 1e-2, 1e-1):
        assert 200 < sum(power <= value < 10 * power for value in drawn) < 300


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Search(), "None is no space to search"),
        (lambda: Search({}), "is no space to search"),
        (lambda: Search({"lr": 0.1}), r"'lr' is 0.1, which is nothing to draw from\n.*what is fixed is an option of train"),
        (lambda: Search({"lr": [0.1, 0.2]}), "nothing to draw from"),
        (lambda: uniform(2, 1), r"uniform\(2, 1\) is empty"),
        (lambda: log_uniform(0, 1), r"log_uniform\(0, 1\) reaches 0"),
        (lambda: integers(1, 2.5), "bounds that are no integers"),
        (lambda: uniform(0, float("inf")), "finite"),
        (lambda: choice(), "at least 1"),
        (lambda: choice(object()), "cannot be written down"),
        (lambda: Search({"lr": choice(1)}, trails=3), r"no field 'trails'\n.*did you mean 'trials'"),
        (lambda: Search({"lr": choice(1)}, trials=0), "trials=0"),
        (lambda: Search({"lr": choice(1)}, reduction=1), "reduction=1"),
        (lambda: Search({"lr": choice(1)}, mode="least"), "mode='least'"),
    ],
)
def test_what_is_wrong_is_said_with_its_fix(make, says):
    with pytest.raises(errors.SpecError, match=f"(?s){says}"):
        make()
