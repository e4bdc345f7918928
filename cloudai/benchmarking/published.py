"""What others have published of the same work: each with its source and date, and none of it checked by us."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources
from typing import Literal

__all__ = ["Published", "published"]


@dataclass(frozen=True)
class Published:
    """One row of ``published.csv``; None, or an empty text, is what was not said.

    Attributes
    ----------
    workload : str
        Whose definition it meets: the same model, length, data and one device.
    per_second : float or None
        Sequences.
    latency_ms : float or None
        Of one sequence.
    hours, cost : float or None
        Of a whole training of `epochs`.
    """

    workload: str
    platform: str
    hardware: str
    software: str
    dtype: str
    batch: int | None
    per_second: float | None
    latency_ms: float | None
    hours: float | None
    epochs: str
    price_per_hour: float | None
    cost: float | None
    kind: Literal["published", "claimed-unverified"]
    source: str
    date: str
    note: str


_NUMBERS = ("per_second", "latency_ms", "hours", "price_per_hour", "cost")


@functools.cache
def _all() -> tuple[Published, ...]:
    text = resources.files("cloudai.benchmarking").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(_row(row) for row in csv.DictReader(text.splitlines()))


def _row(texts: dict[str, str]) -> Published:
    numbers = {name: float(texts[name]) if texts[name] else None for name in _NUMBERS}
    return Published(**{**texts, **numbers, "batch": int(texts["batch"]) if texts["batch"] else None})  # type: ignore[arg-type]


def published(workload: str) -> list[Published]:
    """Return what was published of a workload, the fastest first and what is only claimed last.

    Examples
    --------
    >>> [(row.hardware, row.per_second) for row in published("bert-large-squad@1")[:2]]
    [('1 × A100 80 GB', 134.22), ('1 × A100 80 GB', 110.5)]
    """
    rows = [row for row in _all() if row.workload == workload]
    return sorted(rows, key=lambda row: (row.kind != "published", -(row.per_second or 0.0), row.hours or 0.0))
