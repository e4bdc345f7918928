"""What a rollout reads of both versions since its last look, and up to where it has read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cloudai.drivers import registry
from cloudai.drivers.protocols import DeploymentStatus, Metric, Sample, TelemetryDriver
from cloudai.errors import CloudAIError
from cloudai.serving.counters import Counts, read_counts
from cloudai.serving.guards import Look
from cloudai.serving.outputs import first_rows
from cloudai.serving.rollout import Progress
from cloudai.serving.split import Split
from cloudai.state.ledger import Record

__all__ = ["Evidence"]

_MOST_ROWS = 100_000
"""Kept predictions that are looked at at once."""
_EVERY = 1.0
"""Seconds between two readings of them."""
_SLACK = 1.0
"""Seconds in which all servers will have written down what they answered before."""
_NONE = (0, 0)


@dataclass(frozen=True)
class Evidence:
    """Up to where the telemetry of both versions was read.

    Attributes
    ----------
    rows_until : float
        Unix time, for the kept predictions.
    counts : mapping of str to Counts
        What each revision's counters said.
    labelled : mapping of str to (int, int)
        How many predictions of each had a label, and how many of these were wrong.
    stable : tuple of int
        The stable version's processes, where requests were dealt as they should be. While it is down, its requests go to the
        new version: what is counted meanwhile compares nothing, as it was not dealt at random.
    """

    rows_until: float
    counts: Mapping[str, Counts] = field(default_factory=dict)
    labelled: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    stable: tuple[int, ...] | None = None

    def read(
        self, record: Record, progress: Progress, share: int, split: Split, found: DeploymentStatus, *, routed: bool, now: float
    ) -> tuple[Look | None, Evidence]:
        """Return what is new, and the place up to which it was read.

        No look, where the telemetry does not answer or requests were not dealt by `share` all the time.
        """
        driver = registry.telemetry_driver(record.spec["on"])
        steady, stable = self._steady(split, found, routed=routed)
        pair = split.canary, split.stable
        try:
            metrics = list(driver.metrics(record.name, since=_utc(record.created)))
            wants = steady and any(watch.guard.watch == "drift" for watch in progress.watches)
            rows, until = self._rows(driver, record, _thinned_to(metrics, pair), now) if wants else ({}, self.rows_until)
        except CloudAIError:
            return None, self
        counts = read_counts(metrics)
        labelled = {revision: _pair(record.desired.get("labelled", {}).get(revision, _NONE)) for revision in pair}
        read = {revision: counts.get(revision, Counts()) for revision in pair}
        if not steady:
            return None, Evidence(now, read, labelled, stable)
        (new, old), (new_rows, old_rows) = (map(self._since, (read, read), pair), (rows.get(each, {}) for each in pair))
        new_labelled, old_labelled = (_less(labelled[each], self.labelled.get(each, labelled[each])) for each in pair)
        look = Look(share / 100, new, old, new_rows, old_rows, new_labelled, old_labelled)
        if any(watch.learns and watch.seeing(look).learns for watch in progress.watches if watch.guard.watch == "drift"):
            until = self.rows_until  # too few to learn from: they are read again with those to come
        return look, Evidence(until, read, labelled, stable)

    def _steady(self, split: Split, found: DeploymentStatus, *, routed: bool) -> tuple[bool, tuple[int, ...] | None]:
        """Say whether requests were dealt as they should be since the last look, and by which processes they are now."""
        up = next((revision for revision in found.revisions if revision.id == split.stable), None)
        stable = up.pids if routed and up is not None and up.ready else None
        return stable is not None and self.stable == stable, stable

    def _since(self, read: Mapping[str, Counts], revision: str) -> Counts:
        """Return what came since the last look; nothing at the first, which only says where counting begins."""
        return read[revision].since(self.counts.get(revision, read[revision]))

    def _rows(
        self, driver: TelemetryDriver, record: Record, shares: Mapping[str, float], now: float
    ) -> tuple[dict[str, dict[str, np.ndarray]], float]:
        """Return the predictions of each revision that came since, of each its share, and until when all of them were read."""
        until = now - _SLACK
        if until - self.rows_until < _EVERY:
            return {}, self.rows_until
        samples = list(driver.samples(record.name, since=_utc(self.rows_until), limit=_MOST_ROWS))
        if sum(len(sample.times) for sample in samples) >= _MOST_ROWS:
            until = min(until, max(max(sample.times) for sample in samples))
        return _columns(samples, until, shares), until

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for the ledger."""
        return {
            "rows_until": self.rows_until,
            "counts": {revision: counts.to_json() for revision, counts in self.counts.items()},
            "labelled": {revision: list(counts) for revision, counts in self.labelled.items()},
            "stable": None if self.stable is None else list(self.stable),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evidence:
        """Read what `to_json` returned."""
        counts = {revision: Counts.from_json(each) for revision, each in data["counts"].items()}
        labelled = {revision: _pair(each) for revision, each in data["labelled"].items()}
        return cls(data["rows_until"], counts, labelled, None if data["stable"] is None else tuple(data["stable"]))


def _thinned_to(metrics: Iterable[Metric], pair: Sequence[str]) -> dict[str, float]:
    """Return which share of each revision's kept rows is to be used.

    A server with much to do keeps fewer of its rows. Then the kept rows of two are not in the proportion by which their
    requests were dealt, unless some of the other's are left aside.
    """
    kept: dict[str, list[float]] = {}
    for metric in metrics:
        if metric.name == "ml_samples_share":
            name = f"v{metric.labels['version']}"
            for revision in pair:
                if revision == name or revision.startswith(f"{name}-"):
                    kept.setdefault(revision, []).append(metric.value)
    shares = {revision: sum(each) / len(each) for revision, each in kept.items() if sum(each)}
    least = min(shares.values(), default=1.0)
    return {revision: least / share for revision, share in shares.items()} if len(shares) == len(pair) else {}


def _is_used(request_id: str, share: float) -> bool:
    """Draw a request by its id, so that whoever reads it again draws the same."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8, person=b"thinned").digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _columns(samples: Sequence[Sample], until: float, shares: Mapping[str, float]) -> dict[str, dict[str, np.ndarray]]:
    """Return the columns of each revision's outputs, of what it answered up to a time."""
    parts: dict[str, dict[str, list[np.ndarray]]] = {}
    for sample in samples:
        share = shares.get(sample.revision, 1.0)
        early = np.flatnonzero(np.asarray(sample.times) <= until)
        chosen = [n for n in early if share >= 1 or _is_used(sample.ids[n], share)]
        if not chosen:
            continue
        outputs = {name: np.asarray(array)[chosen] for name, array in sample.outputs.items()}
        for name, values in first_rows(outputs, [sample.ids[n] for n in chosen]).items():
            parts.setdefault(sample.revision, {}).setdefault(name, []).append(values)
    return {rev: {name: np.concatenate(arrays) for name, arrays in columns.items()} for rev, columns in parts.items()}


def _pair(counts: Sequence[int]) -> tuple[int, int]:
    return int(counts[0]), int(counts[1])


def _less(now: tuple[int, int], before: tuple[int, int]) -> tuple[int, int]:
    return now[0] - before[0], now[1] - before[1]


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
