"""How large a difference is, whatever the number of rows: a test only says how sure it is.

All effects are on one scale, standard deviations of the reference, so that one threshold serves numbers and
shares alike.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from cloudai.statistics.tests import merged_sparse

__all__ = ["inner_range", "share_of_shift", "shift_of_share", "total_variation", "wasserstein"]

_TAIL = 0.005
_NEARLY_ALL = 1 - 1e-12


def inner_range(positions: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """Return the range of the rows without the outer 0.5 %, at least one row, on either side, and their deviation.

    The standard deviation is winsorised: rows outside count as if they lay on the border, so that a few wild ones
    cannot move it far (Wilcox, Introduction to Robust Estimation and Hypothesis Testing, 4th ed. 2017, section 3.3).

    Parameters
    ----------
    positions : ndarray of float64, shape (k,)
        Increasing.
    counts : ndarray of int, shape (k,)
        Rows at each; at least one row.

    Examples
    --------
    >>> inner_range(np.array([0.0, 1.0, 3.0, 1e6]), np.array([1, 5, 5, 1]))
    (1.0, 3.0, 1.0)
    """
    rows = int(counts.sum())
    trimmed = min(math.ceil(_TAIL * rows), (rows - 1) // 2)
    below = np.cumsum(counts)
    low = float(positions[np.searchsorted(below, trimmed, side="right")])
    high = float(positions[np.searchsorted(below, rows - trimmed, side="left")])
    inner = np.clip(positions, low, high)
    mean = np.average(inner, weights=counts)
    return low, high, math.sqrt(np.average((inner - mean) ** 2, weights=counts))


def wasserstein(positions: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    """Return how far the average row must move to turn one sample into the other, in the unit of `positions`.

    The area between the two cumulative shares (Vallender, Theory Probab. Appl. 18, 1974).

    Parameters
    ----------
    positions : ndarray of float64, shape (k,)
        Not decreasing.
    one, other : ndarray of int, shape (k,)
        Rows at each; at least one row each.

    Examples
    --------
    >>> wasserstein(np.array([0.0, 1.0, 2.0]), np.array([1, 1, 0]), np.array([0, 1, 1]))
    1.0
    """
    gaps = np.abs(np.cumsum(one) / one.sum() - np.cumsum(other) / other.sum())
    return float(gaps[:-1] @ np.diff(positions))


def total_variation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of rows that changed category, less what chance alone would show.

    Half the sum of the differences of shares over cells that are not sparse; the expectation of that under equal
    shares is taken off in quadrature, so that the result does not grow as the samples shrink.

    Parameters
    ----------
    one, other : ndarray of int, shape (k,)
        Rows in each of the same categories; at least one row each.

    Examples
    --------
    >>> round(total_variation(np.array([900, 100]), np.array([700, 300])), 2)
    0.2
    """
    counts = merged_sparse(one, other)
    rows = counts.sum(1)
    seen = float(np.abs(counts[0] / rows[0] - counts[1] / rows[1]).sum()) / 2
    pooled = counts.sum(0) / rows.sum()
    by_chance = float(np.sqrt(2 / math.pi * pooled * (1 - pooled) * (1 / rows).sum()).sum()) / 2
    return math.sqrt(max(seen**2 - by_chance**2, 0.0))


def shift_of_share(share: float) -> float:
    """Return by how many standard deviations a normal distribution shifts when this share of its rows leaves its place.

    Two normals d apart overlap by 2Φ(−d/2) (Cohen, Statistical Power Analysis, 2nd ed. 1988, section 2.2), so their total
    variation and Kolmogorov–Smirnov distance are 2Φ(d/2) − 1. A share of 1 counts as 14 standard deviations.

    Examples
    --------
    >>> round(shift_of_share(0.12), 2)
    0.3
    """
    return 2 * NormalDist().inv_cdf((1 + min(share, _NEARLY_ALL)) / 2)


def share_of_shift(shift: float) -> float:
    """Return the inverse of `shift_of_share`.

    Examples
    --------
    >>> round(share_of_shift(0.3), 2)
    0.12
    """
    return math.erf(shift / (2 * math.sqrt(2)))
