"""What the supervisor does for a rollout at each look: read the evidence, decide, write that down, and say how to route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cloudai.drivers.protocols import DeploymentStatus, RevisionId, RevisionStatus, ServeDriver
from cloudai.serving.evidence import Evidence
from cloudai.serving.guards import Look
from cloudai.serving.rollout import Progress, Seen
from cloudai.serving.split import Split
from cloudai.specs.rollout import RolloutOrder
from cloudai.state.ledger import Ledger, Record

__all__ = ["Routing", "due", "order_of", "progress_of", "routing_of", "steer"]

_LOOKS = 20
"""In which each step is looked at, at least, where time passes by itself."""


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
    now, written = ledger.clock.now(), progress_of(record)
    before = written or Progress.begun(order, now)
    if before.ended:
        return routing_of(record)
    routing = routing_of(record, before)
    read = Evidence(now) if written is None else Evidence.from_json(record.status["evidence"])
    share, routed = before.percent(order), routing.is_so(found)
    look, evidence = read.read(record, before, share, routing.split, found, routed=routed, now=now)
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
