"""Which trials go on: asynchronous successive halving (ASHA).

The rule is that of Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020; arXiv:1810.05934), in the
variant that stops trials instead of pausing them, which Ray Tune's ``AsyncHyperBandScheduler`` has too: a trial that comes to
a rung goes on if it is among the best share of those that came there before it. Pure functions of the reports; a test compares
each decision with Ray's.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

__all__ = ["goes_on", "is_rung"]


def is_rung(reports: int, grace: int, reduction: int) -> bool:
    """Whether a trial is judged after so many reports: ``grace × reduction^k`` for a k from 0.

    Examples
    --------
    >>> [reports for reports in range(1, 30) if is_rung(reports, grace=1, reduction=3)]
    [1, 3, 9, 27]
    """
    rung = grace
    while rung < reports:
        rung *= reduction
    return rung == reports


def goes_on(value: float, before: Collection[float], mode: str, reduction: int) -> bool:
    """Whether a trial's value at a rung is good enough.

    Parameters
    ----------
    value : float
        What it reported there.
    before : collection of float
        What other trials reported at this rung earlier.
    mode : {"min", "max"}
        Whether the smallest or the largest is best.
    reduction : int
        The best 1 / `reduction` go on; the border is interpolated between two values.

    Examples
    --------
    >>> goes_on(0.5, [], "min", 3), goes_on(0.5, [0.4], "min", 3), goes_on(0.3, [0.4, 0.9, 0.2, 0.8], "min", 3)
    (True, False, True)
    """
    if not before:
        return True
    sign = -1.0 if mode == "min" else 1.0
    border = np.percentile([sign * other for other in before], (1 - 1 / reduction) * 100)
    return bool(sign * value >= border)
