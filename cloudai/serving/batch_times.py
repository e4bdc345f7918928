"""How long a model takes for a batch, learnt from the batches that it ran, and how large a batch is worth while."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["BatchTimes"]

_GOOD_ENOUGH = 0.95
"""The share of the best throughput at which a batch is large enough: more only makes requests wait."""
_TRUST = 0.1
"""How much one batch moves what is known of its size; 22 batches make nine tenths of a lasting change known."""
_SPREAD = 0.25
"""How much of that moves the other sizes too: what slows one batch, such as a busy machine, mostly slows all."""
_OUTLIER = 4.0
"""A batch that took more than so many times what was expected, or less by it, counts as just that many times."""
_REVIEW = 16
"""Batches between two looks at which size is the best one."""


class BatchTimes:
    """The time of a batch by its number of rows, at powers of two and in straight lines between them.

    It begins with what a few trial runs took, and follows the machine from there. Nothing is assumed about the shape of
    the curve: models on processors often gain little from a batch, and lose again where it leaves the cache.

    Parameters
    ----------
    measured : mapping of int to float
        Seconds by number of rows, from trial runs; the sizes are 1, 2, 4, … up to the largest batch.

    Examples
    --------
    >>> times = BatchTimes({1: 0.010, 2: 0.011, 4: 0.013, 8: 0.026})
    >>> times.best, times.seconds(3), times.seconds(16)
    (4, 0.012, 0.052)
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        self._sizes = sorted(measured)
        self._seconds = [max(measured[size], 1e-9) for size in self._sizes]
        self._until_review = _REVIEW
        self.best, self.rate = self._find_best()
        """The smallest number of rows whose throughput is within 5 % of the best one, and its rows per second."""

    def seconds(self, rows: int) -> float:
        """Return how long a batch of so many rows should take."""
        place = min(max(rows, 1).bit_length() - 1, len(self._sizes) - 1)
        below, at = self._sizes[place], self._seconds[place]
        if rows <= below:
            return at
        if place + 1 == len(self._sizes):
            return at * rows / below
        return at + (self._seconds[place + 1] - at) * (rows - below) / below

    def learn(self, rows: int, seconds: float) -> None:
        """Note that a batch of so many rows took so many seconds."""
        ratio = min(max(seconds / self.seconds(rows), 1 / _OUTLIER), _OUTLIER)
        nearest = min((rows * 4 // 3).bit_length() - 1, len(self._sizes) - 1)
        self._seconds[nearest] *= ratio ** (_TRUST * (1 - _SPREAD))
        common = ratio ** (_TRUST * _SPREAD)
        self._seconds = [known * common for known in self._seconds]
        self._until_review -= 1
        if not self._until_review:
            self._until_review = _REVIEW
            self.best, self.rate = self._find_best()

    def _find_best(self) -> tuple[int, float]:
        rates = [size / seconds for size, seconds in zip(self._sizes, self._seconds, strict=True)]
        enough = _GOOD_ENOUGH * max(rates)
        return next((size, rate) for size, rate in zip(self._sizes, rates, strict=True) if rate >= enough)
