from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cloudai.statistics.tests import (
    benjamini_hochberg,
    chi_squared,
    holm,
    kolmogorov_smirnov,
    merged_sparse,
    only_in_second,
    rank_sum,
    two_proportions,
)


def counted(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.union1d(one, other)
    return tuple(np.array([(sample == value).sum() for value in values]) for sample in (one, other))


@pytest.mark.parametrize(("n", "m"), [(2000, 2000), (1437, 1000), (5000, 400)])
def test_kolmogorov_smirnov_agrees_with_scipy(n, m):
    rng = np.random.default_rng(n)
    one, other = rng.integers(0, 500, n), rng.integers(0, 500, m) + 12
    ours, scipy = kolmogorov_smirnov(*counted(one, other)), stats.ks_2samp(one, other, method="asymp")
    assert ours.statistic == pytest.approx(scipy.statistic, abs=1e-12)
    assert ours.p_value == pytest.approx(scipy.pvalue, rel=0.15)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (100, 100), (150, 60), (300, 40)])
def test_where_it_decides_kolmogorov_smirnov_errs_to_the_safe_side_in_small_samples(n, m):
    rng = np.random.default_rng(m)
    deciding = 0
    for shift in np.linspace(0.3, 1.5, 25):
        one, other = rng.normal(size=n), rng.normal(shift, size=m)
        exact = stats.ks_2samp(one, other, method="exact").pvalue
        if exact < 0.01:
            deciding += 1
            assert kolmogorov_smirnov(*counted(one, other)).p_value >= exact
    assert deciding >= 5


@pytest.mark.parametrize("levels", [3, 17, 5000])
def test_rank_sum_agrees_with_scipy_also_with_ties(levels):
    rng = np.random.default_rng(levels)
    one, other = rng.integers(0, levels, 800), rng.integers(0, levels, 500) * rng.integers(0, 2, 500)
    scipy = stats.mannwhitneyu(other, one, use_continuity=False, method="asymptotic")
    assert rank_sum(*counted(one, other)).p_value == pytest.approx(scipy.pvalue, rel=1e-9)


def test_rank_sum_declines_where_its_approximation_would_not_hold():
    assert rank_sum(np.array([99_999, 1]), np.array([99, 1])) is None


@pytest.mark.parametrize("levels", [2, 3, 30])
def test_chi_squared_agrees_with_scipy(levels):
    rng = np.random.default_rng(levels)
    one, other = rng.multinomial(3000, np.ones(levels) / levels), rng.multinomial(1000, np.ones(levels) / levels)
    ours, scipy = chi_squared(one, other), stats.chi2_contingency([one, other], correction=False)
    assert ours.statistic == pytest.approx(scipy.statistic)
    assert ours.p_value == pytest.approx(scipy.pvalue)


def test_chi_squared_needs_two_categories():
    assert chi_squared(np.array([500]), np.array([300])) is None
    assert chi_squared(np.array([500, 1]), np.array([300, 2])) is None


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 40)), min_size=1, max_size=30))
def test_merging_sparse_cells_keeps_all_rows_and_leaves_no_sparse_cell(pairs):
    one, other = np.array(pairs).T
    if not one.sum() or not other.sum():
        return
    counts = merged_sparse(one, other)
    assert counts.sum(1).tolist() == [one.sum(), other.sum()]
    expected = counts.sum(0) * counts.sum(1).min() / counts.sum()
    assert counts.shape[1] == 1 or expected.min() >= 10 - 1e-9


@settings(max_examples=60)
@given(n=st.integers(1, 3000), m=st.integers(1, 3000), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_two_proportions_is_twice_the_smaller_exact_tail(n, m, shares):
    k, j = round(shares[0] * n), round(shares[1] * m)
    drawn = stats.hypergeom(n + m, k + j, n)
    expected = min(1.0, 2 * min(drawn.cdf(k), drawn.sf(k - 1)))
    assert two_proportions((k, j), (n, m)).p_value == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_two_proportions_is_not_alarmed_by_a_single_rare_row():
    test = two_proportions((0, 1), (100_000, 100))  # the normal approximation says p < 1e-200
    assert test.p_value == pytest.approx(2 * 100 / 100_100)


def test_categories_missed_by_chance_are_not_called_new():
    rng = np.random.default_rng(5)
    false = 0
    for _ in range(200):
        one, other = rng.multinomial(100, np.ones(80) / 80), rng.multinomial(100, np.ones(80) / 80)
        seen = one + other > 0
        false += only_in_second(one[seen], other[seen]).p_value < 0.05
    assert false <= 18  # of 200 at 5 %: binomial, 99 %


def test_a_frequent_new_category_is_found():
    test = only_in_second(np.array([700, 737, 0]), np.array([450, 500, 50]))
    assert test.statistic == 0.05
    assert test.p_value < 1e-12


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_holm_and_benjamini_hochberg_agree_with_their_definitions(p_values):
    ours = holm(p_values)
    for i, p in enumerate(p_values):
        worse = [(len(p_values) - sum(q < r for q in p_values)) * r for r in p_values if r <= p]
        assert ours[i] == pytest.approx(min(1.0, max(worse)))
    assert benjamini_hochberg(p_values) == pytest.approx(list(stats.false_discovery_control(p_values)))


def test_adjusting_nothing_gives_nothing():
    assert holm([]) == benjamini_hochberg([]) == []
