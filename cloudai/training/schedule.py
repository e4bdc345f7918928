"""A schedule: the handle of a training that is done again at set times, and what the supervisor does for it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cloudai.display import Card
from cloudai.display import Table as Rows
from cloudai.errors import CloudAIError, NotFoundError, SpecError, StoreError
from cloudai.planning.silence import Silence, asks_again
from cloudai.specs.confidential import redacted
from cloudai.specs.schedule import STAMP, ScheduleSpec, TableSpec, next_times, previous_time
from cloudai.specs.search import Search
from cloudai.specs.training import TrainSpec
from cloudai.state.handles import Handle
from cloudai.state.ledger import Ledger, Record
from cloudai.training.limits import Limits
from cloudai.training.tables import Table, survey

__all__ = ["Schedule", "ScheduledRun", "advance", "due", "schedule_spec"]

_STAMP_LENGTH = 14  # a dash, the date, a dash, the time
_KEPT = 100
_SHOWN = 5
_PATIENCE = 900.0  # seconds that a store may be away before the run of this time is left out


def schedule_spec(cron: str, timezone: str, data: Any, train: TrainSpec, search: Search | None) -> ScheduleSpec:
    """Return what is to be done when.

    Raises
    ------
    SpecError
        If the times cannot be understood, or every run would train on the same rows.
    """
    spec = ScheduleSpec.of(cron=cron, timezone=timezone, train=train, search=search)  # what is wrong with the times comes first
    if isinstance(train.deadline, datetime):
        raise SpecError(
            f"the deadline {train.deadline.isoformat()} is one time", fix="give how long a run may take, such as '2h'"
        )
    most = 63 - _STAMP_LENGTH - 4 * (search is not None)
    if len(train.name) > most:
        raise SpecError(f"the name {train.name!r} is too long for a schedule", fix=f"give name= up to {most} characters")
    table = None
    if isinstance(data, Table) and train.work.source is not None:
        full = data.absolute()
        features = None if full.features is None else tuple(full.features)
        table = TableSpec(source=full.source, target=full.target, features=features, text=full.text)
    elif train.work.kind != "function":
        fix = "write it to files and pass cloudai.Table(path, target=…), or pass a function that loads its data"
        raise SpecError("each run of the schedule would train on the same rows: they are given by value", fix=fix)
    return spec.model_copy(update={"table": table})


@dataclass(frozen=True)
class ScheduledRun:
    """What was done at one time of a schedule.

    Attributes
    ----------
    at : datetime
        The time of the schedule.
    name : str
        The run; empty where none was started.
    what : str
        Its phase, as last read, or why there is none.
    """

    at: datetime
    name: str
    what: str


class Schedule(Handle):
    """A training that is done again at set times, made by ``cloudai.train(…, schedule=…)``.

    The supervisor starts the runs while this machine and it are up. It goes on until it is cancelled.
    """

    def __init__(self, ledger: Ledger, record: Record) -> None:
        self.spec = ScheduleSpec.model_validate(record.spec)
        self._phases: dict[str, str] = {}
        super().__init__(ledger, record)

    def __repr__(self) -> str:
        return f"Schedule({self.name!r}, {self.spec.cron!r}, phase={self.phase!r})"

    def _read(self, record: Record) -> None:
        for entry in record.status.get("runs", [])[-_SHOWN:]:
            with suppress(NotFoundError):  # noted, and recorded in a moment
                self._phases[entry["name"]] = self._ledger.get("run", entry["name"]).phase if entry["name"] else ""

    def next_times(self, count: int = 3) -> list[datetime]:
        """Return the times of the next runs, in its time zone's UTC offsets; none where it has ended."""
        if self.ended:
            return []
        times = next_times(self.spec.cron, self.spec.timezone, self._ledger.clock.now())
        return [datetime.fromtimestamp(at, UTC) for at in itertools.islice(times, count)]

    @property
    def runs(self) -> list[ScheduledRun]:
        """What was done at its last times, the oldest first; ``cloudai.attach("run/" + name)`` brings one back."""
        return [self._run(entry) for entry in self._record.status.get("runs", [])]

    def _run(self, entry: Mapping[str, Any]) -> ScheduledRun:
        what = entry["what"] or self._phases.get(entry["name"], "started")
        return ScheduledRun(datetime.fromtimestamp(entry["at"], UTC), entry["name"], what)

    def cancel(self) -> None:
        """End it. A run that is under way goes on; nothing happens where the schedule has ended."""
        if not self.ended:
            self._want(cancel=True)

    def card(self) -> Card:
        """Show the next times and the last runs."""
        problem = self._record.status.get("problem", "")
        coming = ", ".join(f"{at:%Y-%m-%d %H:%M}" for at in self.next_times()) + " UTC"
        table = self.spec.table
        facts = [
            ("phase", self.phase + (f": {problem}" if problem else "")),
            ("times", f"{self.spec.cron} in {self.spec.timezone}"),
            ("next", "none" if self.ended else coming),
            ("data", "what the function loads" if table is None else f"{', '.join(table.source)}, as it is then"),
            ("makes", f"the next version of {self.spec.train.model_name}"),
        ]
        rows = [(f"{run.at:%Y-%m-%d %H:%M}", run.name or "–", run.what) for run in self.runs[-_SHOWN:]]
        note = f"as of {self.age}; cloudai.attach({self.ref!r}) brings it back"
        return Card(f"Schedule {self.name}", facts, tables=[Rows(("UTC", "run", "what"), rows)] if rows else [], notes=[note])


def due(ledger: Ledger, record: Record) -> float | None:
    """Return when the next run is to be started, or the store asked again, in unix time."""
    return asks_again(record.status) or record.status.get("next")


def advance(ledger: Ledger, record: Record) -> None:
    """Take a schedule one step further."""
    schedule = _Advance(ledger, record)
    if record.desired.get("cancel"):
        schedule.observe("cancelled", {}, "")
    elif "next" not in record.status:
        schedule.observe("scheduled", {"next": schedule.after(ledger.clock.now())}, "")
    elif ledger.clock.now() < (asks_again(record.status) or 0.0):
        return
    elif record.status.get("making"):  # the store kept us, or the supervisor before us died between its note and its deed
        schedule.make(record.status["making"])
    elif ledger.clock.now() >= record.status["next"]:
        schedule.act()


class _Advance:
    def __init__(self, ledger: Ledger, record: Record) -> None:
        self.ledger, self.record = ledger, record
        self.spec = ScheduleSpec.model_validate(record.spec)
        self.runs: list[dict[str, Any]] = list(record.status.get("runs", []))

    def after(self, now: float) -> float:
        """Return the next time after this one."""
        return next(next_times(self.spec.cron, self.spec.timezone, now))

    def act(self) -> None:
        """Start the run that is due; of several times that were missed, the last one's."""
        now, first = self.ledger.clock.now(), self.record.status["next"]
        at = max(first, previous_time(self.spec.cron, self.spec.timezone, now))
        busy = self._under_way()
        if busy:
            self._leave_out(at, f"skipped: {busy} goes on")
            return
        late = "" if at == first else "; earlier times were missed"
        name = f"{self.record.name}-{datetime.fromtimestamp(at, UTC).strftime(STAMP)}"
        self._add(at, name, "", f"run {name} is due{late}", making=name)
        self.make(name)

    def make(self, name: str) -> None:
        """Record the run that was noted, on the data as it is now."""
        try:
            spec = self._run_spec(name)
        except StoreError as error:
            self._wait(error)
            return
        except CloudAIError as error:
            self._give_up(error)
            return
        search = None if self.spec.search is None else self.spec.search.model_dump(mode="json")
        folder = self.record.desired.get("folder", "")
        limits = Limits.of(spec.budget, spec.deadline, self.ledger.clock.now()).to_json()
        wanted = {"folder": folder, "offer": None, "schedule": self.record.name, "limits": limits, "search": search}
        try:
            dumped = spec.model_dump(mode="json")
            self.ledger.create("run", name, dumped, wanted, anywhere=self.record.anywhere, home=self.record.home)
        except SpecError as error:  # there is one of that name
            if self.ledger.get("run", name).desired.get("schedule") != self.record.name:
                self._give_up(error)
                return
        self.observe("scheduled", {"making": "", "problem": "", "waiting": None}, "")

    def _run_spec(self, name: str) -> TrainSpec:
        train, table = self.spec.train, self.spec.table
        if table is None or train.work.source is None:
            return train.model_copy(update={"name": name})
        files = Table(table.source, target=table.target, features=table.features, text=table.text)
        found = survey(files, integers=train.work.source.integers)
        work = train.work.model_copy(update={"source": found.source, "rows": found.rows})
        return train.model_copy(update={"name": name, "work": work})

    def _under_way(self) -> str:
        """Return the run of an earlier time that has not ended; empty where there is none."""
        name = next((run["name"] for run in reversed(self.runs) if run["name"]), "")
        with suppress(NotFoundError):
            if name and not self.ledger.get("run", name).ended:
                return str(name)
        return ""

    def _wait(self, error: StoreError) -> None:
        """Ask the store again, with growing pauses, and leave this time out where it stays away."""
        now = self.ledger.clock.now()
        waiting = Silence.after(self.record.status.get("waiting"), now)
        if waiting.lasts(now) > _PATIENCE or not error.temporary:
            self._give_up(error)
            return
        change = redacted({"problem": error.what})
        self.observe(
            "scheduled", {**change, "waiting": waiting.to_json()}, f"waiting: {change['problem']}" * (waiting.count == 1)
        )

    def _give_up(self, error: CloudAIError) -> None:
        """Leave a time out for an error; the next one tries again."""
        problem = redacted({"what": error.what})["what"]
        self.runs[-1].update(name="", what=f"no run: {problem}")
        change = {"runs": self.runs, "making": "", "problem": problem, "waiting": None}
        self.observe("scheduled", change, f"no run: {problem}")

    def _leave_out(self, at: float, why: str) -> None:
        self._add(at, "", why, why)

    def _add(self, at: float, name: str, what: str, event: str, *, making: str = "") -> None:
        self.runs = _last([*self.runs, {"at": at, "name": name, "what": what}])
        change = {"runs": self.runs, "next": self.after(self.ledger.clock.now()), "making": making}
        self.observe("scheduled", change, event)

    def observe(self, phase: str, change: Mapping[str, Any], event: str) -> None:
        """Write down what was seen."""
        self.ledger.observe("schedule", self.record.name, phase, change, event=event)


def _last(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last entries, and always the last run among them: it may go on while more times are left out than are kept."""
    kept, named = runs[-_KEPT:], [run for run in runs if run["name"]]
    lost = named and not any(run["name"] for run in kept)
    return [named[-1], *kept[1:]] if lost else kept
