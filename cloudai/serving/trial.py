"""Trial runs before a model gets its first request: they warm it up, and show whether and how far batches pay."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cloudai.artifacts.servable import Servable

__all__ = ["Trial", "run_trial"]

_BUDGET = 1.5
"""Seconds for all trial runs, beside the first: a model that takes longer shows less of itself."""
_RUNS = 3
"""Of so many runs of one size the quickest counts."""
_ABSOLUTE, _RELATIVE = 1e-4, 1e-2
"""What rounding may change, as a share of the largest value, and of the value itself: kernels differ by batch size."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """What the trial runs of a model showed.

    Attributes
    ----------
    independent : bool
        Whether each row's answer was the same alone and in company, so that requests may share a batch.
    seconds : mapping of int to float
        How long batches of 1, 2, 4, … rows took.
    """

    independent: bool = False
    seconds: Mapping[int, float] = field(default_factory=dict)


def run_trial(servable: Servable, example: Mapping[str, np.ndarray], *, most: int) -> Trial:
    """Run a model on rows like its example.

    Parameters
    ----------
    example : mapping of str to array
        A few rows of its inputs.
    most : int
        The largest batch that is tried; a power of two.
    """
    try:
        independent = _independent(servable, example)
        return Trial(independent, _times(servable, example, most=most if independent else 1))
    except Exception as error:  # noqa: BLE001  whatever a model raises: requests will show it to those who ask
        _logger.warning("the model fails on its own example, so that its requests are not batched: %r", error)
        return Trial()


def _independent(servable: Servable, example: Mapping[str, np.ndarray]) -> bool:
    """Compare the answers to three rows together with those to each alone."""
    rows = _rows(example, 3)
    together = servable.infer(_copy(rows))
    for place in range(3):
        alone = servable.infer({name: array[place : place + 1].copy() for name, array in rows.items()})
        for name, array in together.items():
            if len(array) != 3 or not _same(array[place : place + 1], alone[name]):
                _logger.info("rows of %s influence each other in %r: requests are not batched", servable.name, name)
                return False
    return True


def _times(servable: Servable, example: Mapping[str, np.ndarray], *, most: int) -> dict[int, float]:
    seconds: dict[int, float] = {}
    begun, size = time.perf_counter(), 1
    while size <= most:
        rows = _rows(example, size)
        taken = []
        for _ in range(_RUNS):
            inputs = _copy(rows)
            before = time.perf_counter()
            servable.infer(inputs)
            taken.append(time.perf_counter() - before)
            if time.perf_counter() - begun > _BUDGET:
                return seconds | {size: min(taken)}
        seconds[size] = min(taken)
        size *= 2
    return seconds


def _rows(example: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Return so many rows of the example, from its beginning again where it has fewer."""
    return {name: array[np.arange(count) % len(array)] for name, array in example.items()}


def _copy(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in rows.items()}  # a model may change its inputs


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    scale = float(np.abs(other[np.isfinite(other)]).max(initial=0.0))
    return bool(np.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE * scale, equal_nan=True))
