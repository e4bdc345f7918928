"""How far a rollout has come, and what its next step is: a state, and one function from it to the next.

Nothing here reads a clock, a driver or a ledger. The whole state is in the ledger before anything is done about it; so
whoever reads it there goes on, and going back needs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cloudai.display import duration
from cloudai.serving.guards import DEAD, Look, Verdict, Watch, needed_evidence
from cloudai.serving.split import Split
from cloudai.specs.rollout import RolloutOrder

__all__ = ["Progress", "Seen"]

Phase = Literal["starting", "baking", "paused", "held", "promoted", "rolled back"]

_MOST_DEATHS = 3
"""A new version that ended so often is thrown out; one death may be the machine's fault."""


@dataclass(frozen=True)
class Seen:
    """What a look at the deployment showed.

    Attributes
    ----------
    ready : bool
        Whether the new version is.
    routed : bool
        Whether the traffic is split as the present step says.
    died : bool
        Whether the new version is found dead.
    why : str
        What is said about it not being ready.
    look : Look, optional
        What both versions answered; None where that cannot be read just now.
    """

    ready: bool
    routed: bool = False
    died: bool = False
    why: str = ""
    look: Look | None = None


@dataclass(frozen=True)
class Progress:
    """How far a rollout has come.

    Attributes
    ----------
    order : str
        The key of the order that it carries out.
    phase : str
        "starting" until the new version is ready, then "baking" on each step; "paused" by a person, "held" until a
        person says something; at the end "promoted" or "rolled back".
    step : int
        Which step of the rollout.
    entered, since : float
        Unix time: when the step began, and since when all has been as it should.
    requests : int
        Those of the new version in this step; at a share of 0 the mirrored ones.
    deaths : int
        How often it was found dead.
    resumed : int
        How many of the words to go on were heard.
    reason, numbers : str
        Why it is held or was rolled back, in words and in numbers.
    watches : tuple of Watch
        What each guard has seen.
    """

    order: str
    phase: Phase = "starting"
    step: int = 0
    entered: float = 0.0
    since: float = 0.0
    requests: int = 0
    deaths: int = 0
    resumed: int = 0
    reason: str = ""
    numbers: str = ""
    watches: tuple[Watch, ...] = ()

    @classmethod
    def begun(cls, order: RolloutOrder, now: float) -> Progress:
        """Begin to carry out an order."""
        return cls(order.id, entered=now, since=now, watches=tuple(map(Watch, (*order.guards, DEAD))))

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.phase in ("promoted", "rolled back")

    def percent(self, order: RolloutOrder) -> int:
        """Return the new version's share of the requests now."""
        return 0 if self.phase in ("starting", "rolled back") else order.rollout.steps[self.step]

    def split(self, order: RolloutOrder, asked: Split) -> Split:
        """Return what the traffic should be now, where `asked` has the new version as its canary."""
        if self.phase == "rolled back":
            return asked.rollback()
        split = asked.start_canary(asked.canary, self.percent(order))
        return split.promote() if self.phase == "promoted" else split

    def after(self, order: RolloutOrder, seen: Seen, now: float) -> Progress:
        """Return the next state."""
        if self.ended:
            return self
        return self.seeing(seen).decided(order, seen, now)

    def verdicts(self, order: RolloutOrder) -> list[Verdict]:
        """Return what each guard says now."""
        needed = needed_evidence(order.rollout.alarm_rate, len(self.watches))
        return [watch.verdict(needed, len(order.rollout.steps)) for watch in self.watches]

    def seeing(self, seen: Seen) -> Progress:
        """Return the state with what was seen, before anything is decided about it."""
        deaths = self.deaths + seen.died
        if seen.look is None:
            return replace(self, deaths=deaths)
        new = seen.look.new
        watches = tuple(watch.seeing(seen.look) for watch in self.watches)
        more = new.requests if seen.look.share else new.compared
        return replace(self, deaths=deaths, watches=watches, requests=self.requests + more)

    def decided(self, order: RolloutOrder, seen: Seen, now: float) -> Progress:
        """Return what follows from what was seen: back, onwards, or nothing."""
        why, numbers = self._bad(order, seen, now)
        if why:
            return replace(self, phase="rolled back", reason=why, numbers=numbers)
        return self._onwards(order, seen, now)

    def _bad(self, order: RolloutOrder, seen: Seen, now: float) -> tuple[str, str]:
        """Say why the new version is to be thrown out; nothing where it is not."""
        if self.deaths >= _MOST_DEATHS:
            return f"its process ended {self.deaths} times", seen.why
        if self.phase == "starting" and not seen.ready and now - self.since >= order.rollout.ready_within:
            return f"it was not ready within {duration(order.rollout.ready_within)}", seen.why
        needed, steps = needed_evidence(order.rollout.alarm_rate, len(self.watches)), len(order.rollout.steps)
        worst = max(self.watches, key=lambda watch: watch.evidence(steps))
        if worst.evidence(steps) < needed:
            return "", ""
        verdict = worst.verdict(needed, steps)
        return verdict.effect, verdict.numbers

    def _onwards(self, order: RolloutOrder, seen: Seen, now: float) -> Progress:
        match self.phase:
            case "starting":
                return self._entering(0, now) if seen.ready else self
            case "paused":
                return self if order.paused else replace(self, phase="baking", since=now, entered=now)
            case _ if order.paused:
                return replace(self, phase="paused")
            case "held":
                again = order.resumed > self.resumed
                return replace(self._entering(self.step, now), resumed=order.resumed) if again else self
            case _:
                return self._baking(order, seen, now)

    def _baking(self, order: RolloutOrder, seen: Seen, now: float) -> Progress:
        rollout, share = order.rollout, order.rollout.steps[self.step]
        fine = seen.ready and seen.routed and seen.look is not None
        since = self.since if fine else now
        asked = share > 0 or rollout.shadow > 0
        enough = not asked or self.requests >= rollout.min_requests
        if fine and now - since >= rollout.bake and enough:
            return self._passed(order, now)
        if now - self.entered >= rollout.max_time:
            return self._out_of_time(order, seen, now)
        return self if since == self.since else replace(self, since=since)

    def _passed(self, order: RolloutOrder, now: float) -> Progress:
        steps = order.rollout.steps
        if self.step + 1 < len(steps):
            return self._entering(self.step + 1, now)
        if steps[-1] == 100:
            return replace(self, phase="promoted", since=now)
        reason = f"its last step, {steps[-1]} %, is done: promote() or rollback()"
        return replace(self, phase="held", reason=reason, resumed=order.resumed)

    def _out_of_time(self, order: RolloutOrder, seen: Seen, now: float) -> Progress:
        rollout = order.rollout
        if not seen.ready:
            missing = f"it is not ready: {seen.why}" if seen.why else "it is not ready"
        elif self.requests < rollout.min_requests:
            missing = f"it has seen {self.requests} of {rollout.min_requests} requests"
        else:
            missing = "the traffic did not stay as it should"
        reason = f"step {self.step + 1} of {len(rollout.steps)} has taken {duration(rollout.max_time)}, and {missing}"
        if rollout.on_max_time == "proceed" and seen.ready:
            return self._passed(order, now)
        if rollout.on_max_time == "rollback":
            return replace(self, phase="rolled back", reason=reason)
        return replace(self, phase="held", reason=f"{reason}: resume(), promote() or rollback()", resumed=order.resumed)

    def _entering(self, step: int, now: float) -> Progress:
        return replace(self, phase="baking", step=step, entered=now, since=now, requests=0, reason="")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for the ledger."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "watches"}
        return {**plain, "watches": [watch.to_json() for watch in self.watches]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Progress:
        """Read what `to_json` returned."""
        return cls(**{**data, "watches": tuple(map(Watch.from_json, data["watches"]))})
