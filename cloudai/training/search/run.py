"""The handle of a search, and the table of its trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cloudai.display import Card, Shown, Table, duration, money
from cloudai.errors import CloudAIError, IntegrityError, NotFoundError, NotReadyError, StoreError
from cloudai.planning.spending import Spending, spending
from cloudai.specs.confidential import redact
from cloudai.specs.search import Search
from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import Ledger, Record
from cloudai.training.journal import Row
from cloudai.training.profiling import Trace
from cloudai.training.run import Run, RunStatus, run_spans, run_spending
from cloudai.training.search.trials import TrialState, reports_of, search_of, states_of

__all__ = ["SearchRun", "Trial", "Trials", "search_spending"]


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes
    ----------
    name : str
        The run that it is.
    parameters : Mapping
        What was drawn for it.
    value : float or None
        The metric, as last reported.
    phase : str
        ``waiting``, ``running``, ``succeeded``, ``stopped`` (early), ``limited`` (by the budget or deadline), ``failed``,
        ``cancelled`` or ``rejected``.
    step : int or None
        The step of that report.
    reason : str
        Why it ended, where it did not succeed.
    cost : Spending or None
        What it has cost so far; None before it was begun.
    """

    name: str
    parameters: Mapping[str, Any]
    value: float | None = None
    phase: str = "waiting"
    step: int | None = None
    reason: str = ""
    cost: Spending | None = None


class Trials(Shown, Sequence[Trial]):
    """The trials of a search, in the order in which they are begun.

    Attributes
    ----------
    best : Trial or None
        The one with the best value so far, among those that were not stopped and have not failed.
    """

    def __init__(self, search: Search, trials: Sequence[Trial]) -> None:
        self._search, self._trials = search, list(trials)
        sign = -1.0 if search.mode == "max" else 1.0
        able = [trial for trial in trials if trial.value is not None and trial.phase in ("running", "succeeded")]
        self.best = min(able, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def __repr__(self) -> str:
        return f"Trials({len(self)}, best={self.best.name if self.best else None!r})"

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, index: Any) -> Any:
        return self._trials[index]

    def card(self) -> Card:
        """Show one row for each trial."""
        return Card("Trials", tables=[self.table()])

    def table(self) -> Table:
        """Return the trials as a table."""
        keys = list(self._search.space)
        rows = [self._row(trial, keys) for trial in self]
        return Table(("", "trial", *keys, self._search.metric, "phase", "step", "cost"), rows)

    def _row(self, trial: Trial, keys: Sequence[str]) -> tuple[str, ...]:
        drawn = [_short(trial.parameters[key]) for key in keys]
        spent = trial.cost
        cost = (
            "–" if spent is None or not spent.currency else f"{money(spent.amount, spent.currency)}, {duration(spent.seconds)}"
        )
        value = "–" if trial.value is None else f"{trial.value:.4g}"
        phase = trial.phase + (f": {trial.reason}" if trial.phase in ("failed", "rejected") else "")
        step = "–" if trial.step is None else str(trial.step)
        return "✓" if trial is self.best else "", trial.name, *drawn, value, phase, step, cost


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class SearchRun(Run):
    """A run whose children are trials, made by ``cloudai.train(…, search=…)``; its model is that of the best.

    Attributes
    ----------
    search : Search
        What is searched.
    """

    def __init__(self, ledger: Ledger, record: Record) -> None:
        self.search = search_of(record)
        self._drawn = self.search.drawn(TrainSpec.model_validate(record.spec).seed)
        self._children: dict[str, Record] = {}
        self._reports: dict[str, list[Row]] = {}
        self._behind: set[str] = set()  # trials whose reports could not be read
        super().__init__(ledger, record)

    def __repr__(self) -> str:
        return f"SearchRun({self.name!r}, phase={self.phase!r}, trials={len(self._drawn)})"

    def _read(self, record: Record) -> None:
        """Read the trials; where that fails, what was read of one before stays, and the card says why it is old."""
        unread = ""
        for state in states_of(record):
            known = self._children.get(state.name)
            if known is None or not known.ended or known.phase == "stopped" or state.name in self._behind:  # it may go on
                unread = self._read_trial(state) or unread
        self._unread = unread

    def _read_trial(self, state: TrialState) -> str:
        """Read a trial; returns why its reports could not be, and empty where they were."""
        try:
            child = self._ledger.get("run", state.name)
        except NotFoundError:  # noted, and recorded in a moment
            return ""
        self._children[state.name] = child
        spec = TrainSpec.model_validate(child.spec)
        try:
            self._reports[state.name] = reports_of(spec, self.search.metric, ended=child.ended, since=child.created)
        except (StoreError, IntegrityError) as error:
            self._behind.add(state.name)
            return redact(error.what)
        self._behind.discard(state.name)
        return ""

    @property
    def trials(self) -> Trials:
        """All trials: parameters, metric, phase, steps and cost, as last read."""
        begun = [self._trial(state) for state in states_of(self._record)]
        later = [Trial("–", drawn) for drawn in self._drawn[len(begun) :]] if not self.ended else []
        return Trials(self.search, [*begun, *later])

    def _trial(self, state: TrialState) -> Trial:
        child, reports = self._children.get(state.name), self._reports.get(state.name, [])
        cost = run_spending(child, self._ledger.clock.now()) if child is not None else None
        trial = Trial(state.name, state.parameters, state.value, state.phase, state.step, state.reason, cost)
        if state.under_way and reports:
            return replace(trial, value=reports[-1].metrics[self.search.metric], step=reports[-1].step)
        return trial

    @property
    def status(self) -> RunStatus:
        """Where it is; its steps are those of the best trial so far."""
        best, status = self.trials.best, self._record.status
        reason = status.get("store", "") or status.get("reason", "")
        return RunStatus(self.phase, best.step if best else None, None, 0, None, None, None, reason)

    @property
    def _best_rows(self) -> Sequence[Row]:
        best = self.trials.best
        return self._reports.get(best.name, []) if best is not None else []

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of each metric of the best trial so far."""
        latest: dict[str, float] = {}
        for row in self._best_rows:
            latest.update(row.metrics)
        return latest

    def history(self, metric: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of a metric of the best trial so far."""
        rows = [row for row in self._best_rows if metric in row.metrics]
        return [row.step for row in rows], [row.metrics[metric] for row in rows]

    @property
    def cost(self) -> Spending:
        """What all trials have cost together."""
        return _sum(self._children.values(), self._ledger.clock.now())

    @property
    def why_not_exact(self) -> str:
        """Why the result may depend on interruptions; empty where it does not."""
        return str(self._record.status.get("why_not_exact", ""))

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Read what the trials' workers wrote, trial by trial; with `follow` until the last one ends."""
        seen = 0
        while True:
            states = states_of(self._record)
            for state in states[seen:]:
                try:
                    trial = Run(self._ledger, self._child(state.name))
                except NotFoundError:  # noted, and recorded in a moment
                    break
                yield from (f"{state.name}: {line}" for line in trial.logs(follow=follow))
                seen += 1
            if not follow or self.ended:
                return
            self._ledger.clock.pause(0.1)
            self.refresh()

    def _child(self, name: str) -> Record:
        return self._ledger.get("run", name)

    def profile(self, steps: int = 20) -> Trace:
        """Refuse: a profile is of one trial.

        Raises
        ------
        NotReadyError
            Always.
        """
        raise NotReadyError(f"{self.name!r} is a search", fix="profile one of its trials: cloudai.attach('run/…').profile()")

    def track(self, *, wait: bool = False) -> Run:
        """Tell the tracker everything once more of each trial that has ended; see `Run.track`."""
        for name, child in self._children.items():
            if child.ended:
                Run(self._ledger, self._child(name)).track(wait=wait)
        return self

    def card(self) -> Card:
        """Show where it is, the best so far, each trial, and what all of them have cost."""
        trials, reason = self.trials, self.status.reason
        counts = [f"{sum(t.phase == phase for t in trials)} {phase}" for phase in dict.fromkeys(t.phase for t in trials)]
        best = trials.best
        drawn = "" if best is None else ", ".join(f"{key} {_short(value)}" for key, value in best.parameters.items())
        early = "never" if self.search.grace is None else f"from {self.search.grace} on, to the best 1/{self.search.reduction}"
        facts = [
            ("phase", self.phase + (f": {reason}" if reason not in ("", self.phase) else "")),
            ("best so far", "none yet" if best is None else f"{self.search.metric} {best.value:.4g} with {drawn}"),
            ("trials", f"{', '.join(counts)}; {self.search.parallel} at once"),
            ("stopped early", f"by reports of {self.search.metric}: {early}"),
            ("spent", str(self.cost)),
            *self._limits_shown(),
            ("exact", "yes, bit for bit" if self.exact else f"not promised: {self.why_not_exact}"),
        ]
        notes = [f"as of {self.age}; cloudai.attach({self.ref!r}) brings it back"]
        if self._unread:
            notes.append(f"its progress may be old: {self._unread}")
        return Card(f"Search {self.name}", facts, curves=self._curves(), tables=[trials.table()], notes=notes)


def search_spending(ledger: Ledger, record: Record, now: float) -> Spending:
    """Return what the trials of a search have cost up to `now`, a unix time."""
    children = []
    for state in states_of(record):
        try:
            children.append(ledger.get("run", state.name))
        except CloudAIError:  # noted, and recorded in a moment
            continue
    return _sum(children, now)


def _sum(children: Any, now: float) -> Spending:
    return spending([span for child in children for span in run_spans(child)], now)
