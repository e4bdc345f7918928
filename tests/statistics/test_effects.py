from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cloudai.statistics.effects import inner_range, share_of_shift, shift_of_share, total_variation, wasserstein


def test_inner_range_of_a_normal_sample_is_close_to_its_quantiles_and_deviation():
    values = np.sort(np.random.default_rng(0).normal(10, 2, 50_000))
    low, high, deviation = inner_range(values, np.ones(len(values), int))
    assert (low, high) == pytest.approx((10 - 2 * 2.576, 10 + 2 * 2.576), abs=0.1)
    assert deviation == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("rows", [5, 50, 1437])
def test_one_wild_row_hardly_moves_the_inner_range(rows):
    values = np.sort(np.random.default_rng(rows).normal(size=rows))
    wild = np.append(values[1:], 1e9)
    assert inner_range(wild, np.ones(rows, int))[2] < 2 * inner_range(values, np.ones(rows, int))[2]


def test_inner_range_of_a_single_row_is_its_place():
    assert inner_range(np.array([3.0]), np.array([1])) == (3.0, 3.0, 0.0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=20))
def test_wasserstein_agrees_with_scipy(pairs):
    one, other = np.array(pairs).T
    if not one.sum() or not other.sum():
        return
    positions = np.linspace(-3, 5, len(pairs)) ** 3
    expected = stats.wasserstein_distance(positions, positions, one, other)
    assert wasserstein(positions, one, other) == pytest.approx(expected)


@pytest.mark.parametrize("levels", [2, 20, 200])
def test_total_variation_of_equal_shares_stays_near_zero_however_few_the_rows(levels):
    rng = np.random.default_rng(levels)
    shares = rng.dirichlet(np.ones(levels))
    seen, naive = [], []
    for _ in range(100):
        one, other = rng.multinomial(3000, shares), rng.multinomial(300, shares)
        seen.append(total_variation(one, other))
        naive.append(np.abs(one / 3000 - other / 300).sum() / 2)
    assert np.mean(seen) < 0.55 * np.mean(naive)
    assert np.mean(seen) < 0.03


def test_total_variation_of_a_real_change_is_kept():
    assert total_variation(np.array([6000, 4000]), np.array([450, 550])) == pytest.approx(0.15, abs=0.005)


@given(st.floats(0, 7))
def test_a_share_and_its_shift_are_inverse(shift):
    assert shift_of_share(share_of_shift(shift)) == pytest.approx(shift, abs=1e-4)


def test_a_shift_moves_the_share_of_a_normal_that_the_ks_distance_says():
    normal = stats.norm()
    assert share_of_shift(0.3) == pytest.approx(normal.cdf(0.15) - normal.cdf(-0.15))
    assert shift_of_share(1.0) == pytest.approx(14.3, abs=0.2)
