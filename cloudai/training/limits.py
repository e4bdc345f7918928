"""What ends a run before its work is done: a budget or a deadline.

The worker counts (`Countdown`), since it knows at each step what time it is and what that costs; the supervisor counts beside
it (`Limits`), for a worker that does not. Both are pure: the clock is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypedDict

from cloudai.display import duration, money, nearest
from cloudai.drivers.protocols import Offer
from cloudai.errors import SpecError
from cloudai.planning.estimate import Estimate
from cloudai.planning.spending import Span
from cloudai.specs.limits import Budget, LimitsSpec

__all__ = ["RESERVE", "Countdown", "LimitOptions", "Limits", "Pulse", "spans_of"]

RESERVE = 2.0
"""Seconds that are kept back for ending a worker, and for a checkpoint as long as none was measured."""
_WARN_AT = 0.8  # the share of the time up to a deadline after which a run warns
_REMEMBERED = 64
"""As many of the last pauses between two steps say how long the next one may take."""


def spans_of(attempts: Sequence[Mapping[str, Any]], over: float | None = None) -> list[Span]:
    """Return the times of a run's attempts; `over` is when those ended of which that was not seen."""
    return [Span(a.get("started"), a.get("ended") or over, a.get("price"), a.get("billed")) for a in attempts]


class LimitOptions(TypedDict, total=False):
    """The limits of a run; what is not given stays as it was, and None takes a limit away."""

    budget: Budget | None
    deadline: str | float | datetime | None


@dataclass(frozen=True)
class Limits:
    """What a run may cost and until when it may go on.

    Attributes
    ----------
    budget : Budget or None
        For all attempts together.
    until : float or None
        The deadline, in unix time.
    since : float
        When they were set, in unix time.
    spent : float
        What earlier attempts have cost.
    per_hour : float
        The price of the present one.
    """

    budget: Budget | None = None
    until: float | None = None
    since: float = 0.0
    spent: float = 0.0
    per_hour: float = 0.0

    @classmethod
    def of(cls, budget: Budget | None, deadline: float | datetime | None, now: float) -> Limits:
        """Set limits now, a unix time.

        Raises
        ------
        SpecError
            If the deadline has passed.
        """
        until = deadline.timestamp() if isinstance(deadline, datetime) else None if deadline is None else now + deadline
        if until is not None and until <= now:
            raise SpecError(f"the deadline {_time(until)} has passed", fix="give a later one, or leave it out")
        return cls(budget, until, now)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, for the ledger and for the worker."""
        return {**vars(self), "budget": None if self.budget is None else self.budget.model_dump(mode="json")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> Limits:
        """Read what `to_json` returned; no limits where there is nothing."""
        value = dict(value or {})
        budget = value.pop("budget", None)
        return cls(None if budget is None else Budget(**budget), **value)

    def at(self, *, spent: float, per_hour: float) -> Limits:
        """Return them for an attempt: what was spent before it, and what it costs per hour."""
        return replace(self, spent=spent, per_hour=per_hour)

    def renewed(self, options: LimitOptions, price: Mapping[str, Any], spent: float, now: float) -> Limits:
        """Return what a run goes on with that has spent so much, at a price as the ledger has it.

        Raises
        ------
        SpecError
            If there is no such option, or the new limits leave no room to go on.
        """
        names = list(LimitOptions.__annotations__)
        for name in options:
            if name not in names:
                raise SpecError(f"resume() has no option {name!r}", fix=nearest(name, names))
        if not options:
            raise SpecError(f"the limits are still the same: {self}", fix="give a larger budget= or a later deadline=")
        asked = LimitsSpec.of(**options)
        new = Limits.of(asked.budget if "budget" in options else self.budget, asked.deadline, now)
        if "deadline" not in options:
            new = replace(new, until=self.until)
        if new.budget is not None and price and price["currency"] != new.budget.currency:
            fix = f"give Budget(amount=…, currency={price['currency']!r})"
            raise SpecError(f"the run is paid in {price['currency']}", fix=fix)
        if reason := new.at(spent=spent, per_hour=price.get("per_hour", 0.0)).no_room(now):
            raise SpecError(reason, fix="give a larger budget=, which counts what was spent before, or a later deadline=")
        return new

    def refuse_uncounted(self, offer: Offer) -> None:
        """Raise `SpecError` where a budget cannot be counted at a place, so that it would never be reached."""
        budget = self.budget
        if budget is None:
            return
        if not offer.price_per_hour > 0 or math.isinf(offer.price_per_hour):
            fix = "set what it costs: cloudai.settings.configure(local_price_per_hour=0.30), or use deadline="
            fix = fix if offer.driver == "local" else "use a place with a price, or deadline="
            raise SpecError(f"a budget cannot be counted on {offer.place}, which has no price ({offer.source})", fix=fix)
        if budget.currency != offer.currency:
            what = f"the budget is in {budget.currency}, and {offer.place} is paid in {offer.currency}"
            raise SpecError(what, fix=f"give Budget(amount=…, currency={offer.currency!r})")

    def ends(self, started: float) -> float:
        """Return when the first of them is reached by an attempt that started at a unix time; infinity where none is."""
        return min(self._budget_ends(1.0, started), math.inf if self.until is None else self.until)

    def warns(self, started: float) -> float:
        """Return when an attempt that started at a unix time has come near to one of them."""
        share = 1.0 if self.budget is None else self.budget.warn_at
        soon = math.inf if self.until is None else self.since + _WARN_AT * (self.until - self.since)
        return min(self._budget_ends(share, started), soon)

    def moments(self, attempt: Mapping[str, Any], now: float) -> list[float]:
        """Return when an attempt, as it is noted, is to be warned and to be ended: what of that is to come."""
        started = attempt.get("started") or now
        both = [] if "ended" in attempt else [self.warns(started), self.ends(started)]
        return [at for at in both if now < at < math.inf]

    def _budget_ends(self, share: float, started: float) -> float:
        if self.budget is None or not self.per_hour:
            return math.inf
        return started + (share * self.budget.amount - self.spent) / self.per_hour * 3600

    def amount(self, started: float, now: float) -> float:
        """Return what has been spent by now."""
        return self.spent + self.per_hour * max(0.0, now - started) / 3600

    def is_billed(self, cost: float | None) -> bool:
        """Whether the place itself says that an attempt has cost what was left."""
        return self.budget is not None and cost is not None and self.spent + cost >= self.budget.amount

    def reason(self, started: float, now: float) -> str:
        """Say which of them ends an attempt now, and what was spent."""
        budget = self.budget
        if budget is None or self._budget_ends(1.0, started) > (math.inf if self.until is None else self.until):
            return f"the deadline {_time(self.until or now)} is reached but for the reserve"
        spent = money(self.amount(started, now), budget.currency)
        return f"the budget of {money(budget.amount, budget.currency)} is used up but for the reserve: spent {spent}"

    def warning(self, started: float, now: float) -> str:
        """Say which of them is near; empty where none is."""
        if now < self.warns(started):
            return ""
        budget = self.budget
        if budget is not None and now >= self._budget_ends(budget.warn_at, started):
            spent = money(self.amount(started, now), budget.currency)
            return f"{spent} of the budget of {money(budget.amount, budget.currency)} is spent"
        return f"{duration(max(0.0, (self.until or now) - now))} are left until the deadline {_time(self.until or now)}"

    def no_room(self, now: float) -> str:
        """Say why another attempt, started now, would come to nothing; empty where it would not."""
        return self.reason(now, now) if self.ends(now) - now <= RESERVE else ""

    def fix(self, name: str) -> str:
        """Say how a run that they ended goes on."""
        budget = self.budget
        handle = f"cloudai.attach('run/{name}').resume"
        if budget is None:
            return f"{handle}(deadline='2h') goes on from its checkpoint"
        more = f"Budget(usd={2 * budget.amount:g})"
        if budget.currency != "USD":
            more = f"Budget(amount={2 * budget.amount:g}, currency={budget.currency!r})"
        later = ", deadline='2h'" if self.until is not None else ""
        return f"{handle}(budget=cloudai.{more}{later}) goes on from its checkpoint"

    def forecast(self, estimate: Estimate, offer: Offer | None) -> str:
        """Say whether a run of that length at that place would come to one of them; empty where there are none."""
        if not str(self):
            return ""
        limits = self.at(spent=0.0, per_hour=0.0 if offer is None else offer.price_per_hour)
        left = limits.ends(self.since) - self.since - RESERVE
        if estimate.low is None or estimate.high is None:
            return f"{self}: whether that is enough is not known before the first run; it lasts {duration(left)}"
        if estimate.low > left:
            return f"{self}: NOT ENOUGH, it lasts {duration(left)}; the run would stop with a checkpoint"
        if estimate.high > left:
            return f"{self}: may not be enough, it lasts {duration(left)}; the run would stop with a checkpoint"
        return f"{self}: enough by the estimate, it lasts {duration(left)}"

    def __str__(self) -> str:
        texts = [] if self.budget is None else [f"at most {money(self.budget.amount, self.budget.currency)}"]
        return ", ".join([*texts, *([] if self.until is None else [f"until {_time(self.until)}"])])


class Pulse:
    """How a worker steps: each question whether it should end is a beat, and so is work that goes on between two of them.

    Parameters
    ----------
    now : callable
        Seconds that count up evenly.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.beats = 0
        """How many there were."""
        self.last = now()
        """When the last one was."""
        self.slowest = 0.0
        """The longest pause between two questions."""
        self._recent, self._before = 0.0, 0.0
        self._asked, self._questions = now(), 0

    @property
    def recent(self) -> float:
        """The longest of the last pauses: so long the next one may take. How long the first one takes says little."""
        return max(self._recent, self._before)

    def beat(self) -> float:
        """Note that the worker steps, and return the time."""
        now = self._now()
        if self._questions:
            pause = now - self._asked
            self.slowest = max(self.slowest, pause)
            self._recent = max(self._recent, pause)
        self.beats += 1
        self._questions += 1
        self.last = self._asked = now
        if self._questions % _REMEMBERED == 0:
            self._recent, self._before = 0.0, self._recent
        return now

    def alive(self) -> None:
        """Note that the worker works, though it does not step: it measures, or reads."""
        self.beats += 1
        self.last = self._now()


class Countdown:
    """Says to a worker at each of its steps whether a limit would be passed with the next one.

    Kept back are the time that a last checkpoint takes and as much again for saving the model, both by the slowest checkpoint
    that was measured so far, what others take to end, where they take the steps, and `RESERVE`.

    Parameters
    ----------
    limits : Limits
        For this attempt.
    started : float
        When the attempt has started, by the clock of `pulse`.
    pulse : Pulse
        How the worker steps.
    skew : float
        What is to be added to that clock for unix time.
    """

    def __init__(self, limits: Limits, started: float, pulse: Pulse, skew: float = 0.0) -> None:
        self._limits, self._started, self._pulse, self._skew = limits, started + skew, pulse, skew
        self._ends, self._warns = limits.ends(self._started), limits.warns(self._started)
        self._checkpoint = self._others = 0.0

    @property
    def reserve(self) -> float:
        """The seconds that are kept back."""
        return RESERVE + 2 * self._checkpoint + self._others

    def checkpoint_took(self, seconds: float) -> None:
        """Learn what a checkpoint takes."""
        self._checkpoint = max(self._checkpoint, seconds)

    def others_take(self, seconds: float) -> None:
        """Learn how long others need to end, where they take the steps and `pulse` is that of who tells them to."""
        self._others = seconds

    def __call__(self) -> str:
        """Return why the worker should end now; empty while there is time for another step."""
        now = self._pulse.last + self._skew
        if now + self._pulse.recent + self.reserve < self._ends:
            return ""
        return self._limits.reason(self._started, now)

    def warning(self) -> str:
        """Return once what limit is near; empty before and after."""
        now = self._pulse.last + self._skew
        if now < self._warns:
            return ""
        self._warns = math.inf
        return self._limits.warning(self._started, now)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
