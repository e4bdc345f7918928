"""Keeps as many replicas of each revision up as the policy says, on a driver that is told how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from cloudai.drivers.protocols import DeploymentStatus, RevisionId, RevisionStatus, ScaleDriver, ServeDriver
from cloudai.serving.autoscaling import Observation, Scale, due, initial, step
from cloudai.serving.split import Split
from cloudai.specs.serving import AutoscalingPolicy

__all__ = ["Upkeep", "next_change"]

_AT_ONCE = 2  # so many deaths in a row are mended at once, those after them more and more slowly
_LONGEST_PAUSE = 60.0  # seconds
_AWAKE = 1e-6  # the share of all requests that is enough not to fall asleep


@dataclass(frozen=True)
class _Tended:
    """What is remembered of a revision from one look to the next."""

    scale: Scale
    deaths: int = 0
    """How often in a row some of its replicas were found dead, before all were ready again."""
    again: float | None = None
    """Unix time before which the dead are not replaced; None where none are to be."""

    def to_json(self) -> dict[str, Any]:
        return {"scale": self.scale.to_json(), "deaths": self.deaths, "again": self.again}

    @classmethod
    def of(cls, data: Mapping[str, Any] | None, policy: AutoscalingPolicy) -> _Tended:
        if data is None:
            return cls(initial(policy))
        return cls(Scale.from_json(data["scale"]), data["deaths"], data["again"])

    def looked_at(self, found: RevisionStatus, now: float) -> _Tended:
        """Count what has died since."""
        if found.ready_replicas >= self.scale.replicas:
            return _Tended(self.scale)
        if found.replicas >= self.scale.replicas:
            return replace(self, again=None)
        if self.again is not None:
            return self
        deaths = self.deaths + 1
        pause = 0.0 if deaths <= _AT_ONCE else min(_LONGEST_PAUSE, 2.0 ** (deaths - _AT_ONCE))
        return _Tended(self.scale, deaths, now + pause)


class Upkeep:
    """What should be up of a deployment, and what is done about it.

    Parameters
    ----------
    driver : ServeDriver
        Only one whose ``autoscaling`` is "asked" is told anything.
    policy : AutoscalingPolicy
        The one in force.
    known : Mapping
        What `to_json` returned at the last look.
    """

    def __init__(self, driver: ServeDriver, policy: AutoscalingPolicy, known: Mapping[str, Any]) -> None:
        self._driver, self._policy = cast(ScaleDriver, driver), policy
        self._asked = driver.capabilities.autoscaling == "asked"
        self._known = {revision: _Tended.of(data, policy) for revision, data in known.items()}

    def is_asleep(self, revision: str) -> bool:
        """Whether it is as it should be that the revision has no replica."""
        return revision in self._known and self._known[revision].scale.replicas == 0

    def trouble(self, found: DeploymentStatus) -> str:
        """Say which revision lacks replicas because they die again and again; empty where none does."""
        for revision in found.revisions:
            wanted = self._known[revision.id].scale.replicas if revision.id in self._known else 0
            if self.deaths(revision.id) > _AT_ONCE and revision.ready_replicas < wanted:
                return f"{revision.id} has {revision.ready_replicas} of {wanted} replicas: the others end by themselves"
        return ""

    def deaths(self, revision: str) -> int:
        """Return how often in a row some of its replicas were found dead."""
        return self._known[revision].deaths if revision in self._known else 0

    def is_done(self, found: DeploymentStatus, split: Split) -> bool:
        """Whether each revision has as many replicas as it should have, and all of them take requests."""
        return not self._asked or all(
            revision.replicas == revision.ready_replicas == self._known[revision.id].scale.replicas
            for revision in found.revisions
            if revision.id in split.kept and revision.id in self._known
        )

    def tend(self, name: str, found: DeploymentStatus, split: Split, now: float) -> None:
        """Decide for each revision how many replicas it should have, and tell the driver where that is not so."""
        if not self._asked:
            return
        total = sum(revision.ongoing for revision in found.revisions)
        kept = [revision for revision in found.revisions if revision.id in split.kept]
        # its share counts before it gets it: it is to be ready then; and what is kept to go back to sleeps only when all do
        due = {revision.id: total * max(_AWAKE, split.traffic.get(revision.id, 0) / 100) for revision in kept}
        self._known = {revision.id: self._tend(name, revision, due[revision.id], now) for revision in kept}

    def _tend(self, name: str, found: RevisionStatus, due: float, now: float) -> _Tended:
        """Take one revision further, to which so many ongoing requests are due."""
        before = self._known.get(found.id, _Tended.of(None, self._policy)).looked_at(found, now)
        seen = Observation(now, max(found.ongoing, due), found.ready_replicas)
        scale = step(self._policy, before.scale, seen)
        if found.replicas == found.ready_replicas == scale.replicas:
            return replace(before, scale=scale)
        if before.again is not None and now < before.again and scale.replicas == before.scale.replicas:
            # the dead are not replaced yet; the living are wanted as they are
            self._driver.scale(name, RevisionId(found.id), min(scale.replicas, max(1, found.replicas)))
            return before
        self._driver.scale(name, RevisionId(found.id), scale.replicas)
        return replace(before, scale=scale, again=None)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for the ledger."""
        return {revision: tended.to_json() for revision, tended in self._known.items()}


def next_change(policy: AutoscalingPolicy, known: Mapping[str, Any]) -> float | None:
    """Return the unix time at which time alone changes how many replicas there should be; None where it does not."""
    moments = [due(policy, Scale.from_json(data["scale"])) for data in known.values()]
    return min((moment for moment in moments if moment is not None), default=None)
