"""Tests of whether two samples come from one distribution, on counts in the same cells; and control of many such tests.

Every test decides by the pooled sample alone which cells it looks at, so that its error rate holds whatever the
data: that rules out bins or levels chosen by the reference's own counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloudai.statistics.tails import chi_squared_tail, kolmogorov_tail, normal_tail

__all__ = [
    "Test",
    "benjamini_hochberg",
    "chi_squared",
    "holm",
    "kolmogorov_smirnov",
    "merged_sparse",
    "only_in_second",
    "rank_sum",
    "two_proportions",
]

_LEAST_EXPECTED = 10.0
_LEAST_RANKED = 100.0


@dataclass(frozen=True)
class Test:
    """The outcome of one test: its statistic and its p-value."""

    __test__ = False  # for pytest, which collects classes of this name

    statistic: float
    p_value: float


def kolmogorov_smirnov(one: np.ndarray, other: np.ndarray) -> Test:
    """Compare two samples by the largest gap between their cumulative shares.

    The p-value is the asymptotic one at the effective sample size n·m/(n + m): conservative where values are tied.

    Parameters
    ----------
    one, other : ndarray of int, shape (k,)
        Rows in each of the same cells, in the order of their values; at least one row each.

    Examples
    --------
    >>> kolmogorov_smirnov(np.array([50, 50, 0]), np.array([0, 50, 50])).statistic
    0.5
    """
    n, m = int(one.sum()), int(other.sum())
    gap = float(np.abs(np.cumsum(one) / n - np.cumsum(other) / m).max())
    return Test(gap, kolmogorov_tail(gap * math.sqrt(n * m / (n + m))))


def rank_sum(one: np.ndarray, other: np.ndarray) -> Test | None:
    """Compare two samples by the mean rank of their rows (Wilcoxon, Mann and Whitney), normal with correction for ties.

    Against a shift it needs far fewer rows than Kolmogorov and Smirnov's test. ``None`` where so few rows differ from
    the commonest value that the normal approximation, skewed by samples of unequal size, would not hold.

    Parameters
    ----------
    one, other : ndarray of int, shape (k,)
        Rows in each of the same cells, in the order of their values; at least one row each.
    """
    pooled = (one + other).astype(np.float64)
    n, m = float(one.sum()), float(other.sum())
    total = n + m
    if (total - pooled.max()) * min(n, m) / total < _LEAST_RANKED:
        return None
    ranks = np.cumsum(pooled) - (pooled - 1) / 2
    ties = float((pooled**3 - pooled).sum())
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    z = (float(ranks @ other) - m * (total + 1) / 2) / math.sqrt(variance)
    return Test(z, normal_tail(z))


def chi_squared(one: np.ndarray, other: np.ndarray) -> Test | None:
    """Compare the shares of categories in two samples: Pearson's 2 × K test with pooled expectations.

    Cells with fewer than 10 expected rows in the smaller sample are counted as one. ``None`` if a single one remains.

    Parameters
    ----------
    one, other : ndarray of int, shape (k,)
        Rows in each of the same categories; at least one row each.

    Examples
    --------
    >>> round(chi_squared(np.array([30, 70]), np.array([50, 50])).statistic, 3)
    8.333
    """
    counts = merged_sparse(one, other)
    if counts.shape[1] < 2:
        return None
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return Test(statistic, chi_squared_tail(statistic, counts.shape[1] - 1))


def merged_sparse(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return both counts with the cells merged in which the smaller sample expects fewer than 10 rows.

    Cochran's rule asks for 5, which is enough at 5 % but doubles the false alarms at the 0.1 % that many tests at once
    come down to. If the merged cell still expects fewer, it takes the next smallest in.

    Returns
    -------
    ndarray of float64, shape (2, cells)
    """
    counts = np.stack([one, other]).astype(np.float64)
    counts = counts[:, np.argsort(counts.sum(0), kind="stable")]
    expected = counts.sum(0) * counts.sum(1).min() / counts.sum()
    sparse = int((expected < _LEAST_EXPECTED).sum())
    if not sparse:
        return counts
    if expected[:sparse].sum() < _LEAST_EXPECTED:
        sparse += 1
    return np.concatenate([counts[:, :sparse].sum(1, keepdims=True), counts[:, sparse:]], axis=1)


def two_proportions(successes: tuple[int, int], rows: tuple[int, int]) -> Test:
    """Compare two shares: Fisher's exact test, with twice the smaller tail as p-value.

    Exact at any size and any rarity, which the normal approximation is not. The statistic is the second share minus
    the first.

    Examples
    --------
    >>> test = two_proportions((0, 30), (1000, 1000))
    >>> test.statistic, test.p_value < 1e-8
    (0.03, True)
    """
    (k, _), (n, m) = successes, rows
    drawn = sum(successes)
    low, high = max(0, drawn - m), min(drawn, n)
    i = np.arange(low, high, dtype=np.float64)  # the hypergeometric mass, from each value's ratio to the one before
    steps = np.log(drawn - i) + np.log(n - i) - np.log(i + 1) - np.log(m - drawn + i + 1)
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    mass = np.exp(logs - logs.max())
    tail = min(mass[: k - low + 1].sum(), mass[k - low :].sum()) / mass.sum()
    return Test(successes[1] / m - successes[0] / n, min(1.0, 2 * float(tail)))


def only_in_second(one: np.ndarray, other: np.ndarray) -> Test:
    """Test whether categories that only the second sample has are new, or were only rare enough to be missed by the first.

    All k rows of a category fall into the second sample with the probability C(m, k)/C(n + m, k) ≤ (m/(n + m))ᵏ; the
    p-value is the smallest of these, times the number of categories. The statistic is the share of the second sample's
    rows in such categories.

    Examples
    --------
    >>> only_in_second(np.array([50, 50, 0]), np.array([45, 45, 10]))
    Test(statistic=0.1, p_value=0.0029...)
    """
    n, m = int(one.sum()), int(other.sum())
    new = other[one == 0]
    if not new.size:
        return Test(0.0, 1.0)
    p_value = len(one) * (m / (n + m)) ** int(new.max())
    return Test(float(new.sum() / m), min(1.0, p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that "any below α" has a false-alarm rate of at most α, however they depend on each other.

    Holm, Scand. J. Statist. 6 (1979).

    Examples
    --------
    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    order = np.argsort(p_values, kind="stable")
    sizes = np.arange(len(order), 0, -1)
    return _unsorted(np.maximum.accumulate(np.asarray(p_values)[order] * sizes), order)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that of those below α a share of at most α is false, in expectation.

    Benjamini and Hochberg, J. R. Statist. Soc. B 57 (1995); for independent or positively dependent tests.

    Examples
    --------
    >>> benjamini_hochberg([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.03]
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * len(order) / np.arange(1, len(order) + 1)
    return _unsorted(np.minimum.accumulate(scaled[::-1])[::-1], order)


def _unsorted(adjusted: np.ndarray, order: np.ndarray) -> list[float]:
    result = np.empty(len(order))
    result[order] = np.minimum(adjusted, 1.0)
    return [float(value) for value in result]
