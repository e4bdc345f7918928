"""What the supervisor does for a rollout at each look: read the evidence, decide, write that down, and say how to route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cloudai.drivers import registry
from cloudai.drivers.protocols import DeploymentStatus, RevisionId, RevisionStatus, Sample, ServeDriver, TelemetryDriver
from cloudai.errors import CloudAIError
from cloudai.serving.counters import Counts, read_counts
from cloudai.serving.guards import Look
from cloudai.serving.outputs import first_rows
from cloudai.serving.rollout import Progress, Seen
from cloudai.serving.split import Split
from cloudai.specs.rollout import RolloutOrder
from cloudai.state.ledger import Ledger, Record

__all__ = ["Routing", "due", "order_of", "progress_of", "routing_of", "steer"]

_LOOKS = 20
"""In which each step is looked at, at least, where time passes by itself."""
_MOST_ROWS = 100_000
"""Kept predictions that are looked at at once."""
_EVERY = 1.0
"""Seconds between two readings of them."""
_SLACK = 1.0
"""Seconds in which all servers will have written down what they answered before."""


@dataclass(frozen=True)
class Routing:
    """How requests should be dealt."""

    split: Split
    sticky: str = ""
    shadow: int = 0
    """The percentage of the stable revision's requests that are mirrored to the canary."""
    rolling: bool = False
    """Whether a rollout still has something to do."""

    @property
    def traffic(self) -> dict[str, int]:
        """The percentage of each revision that has any."""
        return {revision: share for revision, share in self.split.traffic.items() if share}

    def is_so(self, found: DeploymentStatus) -> bool:
        """Whether a deployment routes like that."""
        traffic = {str(r.id): r.traffic for r in found.revisions if r.traffic}
        shadow = {str(r.id): r.shadow for r in found.revisions if r.shadow}
        return traffic == self.traffic and shadow == self._shadows and found.sticky == self.sticky

    @property
    def _shadows(self) -> dict[str, int]:
        return {self.split.canary: self.shadow} if self.shadow and self.split.canary else {}

    def apply(self, driver: ServeDriver, name: str) -> None:
        """Let a driver route like that; what it was not asked for before, an older driver is not told."""
        traffic = {RevisionId(revision): share for revision, share in self.traffic.items()}
        more: dict[str, Any] = {"sticky": self.sticky} if self.sticky else {}
        if shadows := self._shadows:
            more["shadow"] = {RevisionId(revision): share for revision, share in shadows.items()}
        driver.route(name, traffic, **more)


def order_of(record: Record) -> RolloutOrder | None:
    """Return the rollout that was asked for; None where the traffic is set by hand."""
    order = record.desired.get("order")
    return None if order is None else RolloutOrder.model_validate(order)


def progress_of(record: Record) -> Progress | None:
    """Return how far the rollout that is asked for has come; None where none is, or nobody has begun with it."""
    order, progress = order_of(record), record.status.get("progress")
    if order is None or progress is None or progress["order"] != order.id:
        return None
    return Progress.from_json(progress)


def routing_of(record: Record, progress: Progress | None = None) -> Routing:
    """Return how requests should be dealt, by what the ledger says."""
    split, order = Split.from_json(record.desired["rollout"]), order_of(record)
    progress = progress or progress_of(record)
    if order is None or progress is None:
        return Routing(split, rolling=order is not None)
    rollout = order.rollout
    now = progress.split(order, split)
    if progress.ended:
        return Routing(now)
    mirrors = rollout.shadow if progress.phase != "starting" and now.percent < 100 else 0
    return Routing(now, rollout.sticky, mirrors, rolling=True)


def due(record: Record, now: float) -> float | None:
    """Return when a rollout is to be looked at again, in unix time; None where none is under way."""
    order = order_of(record)
    if order is None or not routing_of(record).rolling:
        return None
    return now + max(1.0, order.rollout.bake / _LOOKS)


def steer(ledger: Ledger, record: Record, found: DeploymentStatus) -> Routing:
    """Take a rollout one look further and return how to route; the new state is in the ledger by then.

    Raises
    ------
    LedgerError
        If it cannot be written; nothing has happened then.
    """
    order = order_of(record)
    if order is None:
        return routing_of(record)
    now = ledger.clock.now()
    before = progress_of(record)
    if before is None:
        before = Progress.begun(order, now)
        written: Mapping[str, Any] = {}
    else:
        written = record.status.get("evidence") or {}
    if before.ended:
        return routing_of(record)
    routing = routing_of(record, before)
    evidence = _Evidence.from_json(written, since=now)
    look, evidence = evidence.read(record, order, before, routing.split, now)
    progress = before.after(order, _seen(routing, found, look), now)
    change = {"progress": progress.to_json(), "evidence": None if progress.ended else evidence.to_json()}
    if any(record.status.get(key) != value for key, value in change.items()):
        ledger.observe("deployment", record.name, record.phase, change, event=_event(before, progress, order))
    return routing_of(record, progress)


def _seen(routing: Routing, found: DeploymentStatus, look: Look | None) -> Seen:
    canary = routing.split.canary
    up = next((revision for revision in found.revisions if revision.id == canary), None)
    missing = RevisionStatus(RevisionId(canary), ready=False, replicas=0, traffic=0)
    new = up or missing
    return Seen(new.ready, routing.is_so(found), up is not None and not up.replicas, new.reason, look)


def _event(before: Progress, after: Progress, order: RolloutOrder) -> str:
    if (before.phase, before.step) == (after.phase, after.step):
        return ""
    step = f"step {after.step + 1} of {len(order.rollout.steps)}, {order.rollout.steps[after.step]} %"
    return f"rollout {after.phase}: {after.reason}" if after.reason else f"rollout {after.phase}: {step}"


@dataclass(frozen=True)
class _Evidence:
    """Up to where the telemetry of both versions was read."""

    counts: Mapping[str, Counts]
    rows_until: float

    def read(
        self, record: Record, order: RolloutOrder, progress: Progress, split: Split, now: float
    ) -> tuple[Look | None, _Evidence]:
        """Return what is new, and the place up to which it was read; no look where the telemetry does not answer."""
        driver = registry.telemetry_driver(record.spec["on"])
        try:
            counts = read_counts(driver.metrics(record.name, since=_utc(record.created)))
            rows, until = self._rows(driver, record, now) if _wants_rows(progress) else ({}, self.rows_until)
        except CloudAIError:
            return None, self
        pair = split.canary, split.stable
        new, old = (self._since(counts, revision) for revision in pair)
        new_rows, old_rows = (rows.get(revision, {}) for revision in pair)
        look = Look(progress.percent(order) / 100, new, old, new_rows, old_rows)
        if any(watch.learns and watch.seeing(look).learns for watch in progress.watches if watch.guard.watch == "drift"):
            until = self.rows_until  # too few to learn from: they are read again with those to come
        return look, _Evidence({revision: counts.get(revision, Counts()) for revision in pair}, until)

    def _since(self, counts: Mapping[str, Counts], revision: str) -> Counts:
        """Return what came since the last look; nothing at the first, which only says where counting begins."""
        now = counts.get(revision, Counts())
        return now.since(self.counts.get(revision, now))

    def _rows(self, driver: TelemetryDriver, record: Record, now: float) -> tuple[dict[str, dict[str, np.ndarray]], float]:
        """Return the predictions of each revision that came since, and until when all of them were read."""
        until = now - _SLACK
        if until - self.rows_until < _EVERY:
            return {}, self.rows_until
        samples = list(driver.samples(record.name, since=_utc(self.rows_until), limit=_MOST_ROWS))
        if sum(len(sample.times) for sample in samples) >= _MOST_ROWS:
            until = min(until, max(max(sample.times) for sample in samples))
        return _columns(samples, until), until

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for the ledger."""
        return {"counts": {rev: counts.to_json() for rev, counts in self.counts.items()}, "rows_until": self.rows_until}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, since: float) -> _Evidence:
        """Read what `to_json` returned; nothing was read yet where nothing is written."""
        counts = {revision: Counts.from_json(each) for revision, each in data.get("counts", {}).items()}
        return cls(counts, data.get("rows_until", since))


def _wants_rows(progress: Progress) -> bool:
    return any(watch.guard.watch in ("drift", "accuracy") for watch in progress.watches)


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _columns(samples: Sequence[Sample], until: float) -> dict[str, dict[str, np.ndarray]]:
    """Return the columns of each revision's outputs, of what it answered up to a time."""
    parts: dict[str, dict[str, list[np.ndarray]]] = {}
    for sample in samples:
        chosen = np.flatnonzero(np.asarray(sample.times) <= until)
        if not len(chosen):
            continue
        outputs = {name: np.asarray(array)[chosen] for name, array in sample.outputs.items()}
        for name, values in first_rows(outputs, [sample.ids[n] for n in chosen]).items():
            parts.setdefault(sample.revision, {}).setdefault(name, []).append(values)
    return {rev: {name: np.concatenate(arrays) for name, arrays in columns.items()} for rev, columns in parts.items()}
