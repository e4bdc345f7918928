"""A run: the handle of a training that goes on by itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Unpack

from cloudai.artifacts.model import Model
from cloudai.artifacts.store import Store
from cloudai.clock import Clock
from cloudai.display import Card, Curve
from cloudai.drivers import registry
from cloudai.errors import IntegrityError, NotFoundError, NotReadyError, RunFailedError, SpecError, StoreError
from cloudai.planning.spending import Span, Spending, spending
from cloudai.specs.confidential import redact
from cloudai.specs.training import TrainSpec
from cloudai.state.handles import Handle
from cloudai.state.ledger import Ledger, Record
from cloudai.tracking import Row
from cloudai.tracking.registry import NONE
from cloudai.training.anomalies import Anomaly
from cloudai.training.catch_up import start_catching_up
from cloudai.training.job import NOT_EXACT, RunFiles
from cloudai.training.journal import JournalReader
from cloudai.training.limits import LimitOptions, Limits, spans_of
from cloudai.training.logs import lines_of
from cloudai.training.performance import Performance
from cloudai.training.profiling import Trace
from cloudai.training.progress import LOSSES, ProgressLine, steps_of
from cloudai.training.tracked import read_note

__all__ = ["Run", "RunStatus", "run_spans", "run_spending"]

_POLL = 0.1  # seconds between two looks while waiting
_POLL_REMOTE = 0.5  # where a look is a request that costs money


@dataclass(frozen=True)
class RunStatus:
    """Where a run is.

    Attributes
    ----------
    phase : str
        queued, starting, running, recovering; or succeeded, failed, cancelled, rejected, stopped (by a limit).
    step, total_steps : int or None
        Steps done, and to do where that is known.
    attempt : int
        How often it was started.
    checkpoint : int or None
        The step of the last checkpoint.
    pid : int or None
        The worker's process on this machine.
    reason : str
        Why it ended, why it came back, or what it waits for.
    place : str
        Where it runs, or ran last.
    preemptions : int
        How often its machine was taken away.
    workers : int or None
        Over how many workers it goes; an elastic run may change that.
    """

    phase: str
    step: int | None
    total_steps: int | None
    attempt: int
    checkpoint: int | None
    resumed_from: int | None
    pid: int | None
    reason: str
    place: str = ""
    preemptions: int = 0
    workers: int | None = None


class Run(Handle):
    """A training run, made by `cloudai.train` and found again with `cloudai.attach`.

    It goes on when this process ends. Nothing but `wait` blocks.
    """

    def __init__(self, ledger: Ledger, record: Record) -> None:
        self.spec = TrainSpec.model_validate(record.spec)
        self.lease_seconds = self.spec.lease
        self._journal = JournalReader(RunFiles(self.spec).folder)
        self._rows: list[Row] = []
        self._worker: Mapping[str, Any] = {}
        self._untracked = ""
        self._unread = ""
        super().__init__(ledger, record)

    def __repr__(self) -> str:
        return f"Run({self.name!r}, phase={self.phase!r})"

    def _read(self, record: Record) -> None:
        """Read the run's folder; where that fails, what was read before stays, and the card says why it is old."""
        try:
            worker = dict(self._journal.status())
            rows = self._journal.rows(after_status=not record.ended)
            untracked = self._read_untracked(record, worker)
        except (StoreError, IntegrityError) as error:
            self._unread = redact(error.what)
            return
        self._worker, self._rows, self._untracked, self._unread = worker, rows, untracked, ""

    def _read_untracked(self, record: Record, worker: Mapping[str, Any]) -> str:
        """Return why the tracker is behind; empty where it is not, or nothing has been reported yet."""
        if self.spec.tracking == NONE or not worker:
            return ""
        if not record.ended:
            return str(worker.get("tracking", ""))
        note = read_note(self._journal.store)
        if note is None or note.attempt != worker.get("attempt"):
            return "it was not told how the run ended"
        return "" if note.complete else note.problem or "it was not told everything"

    @property
    def status(self) -> RunStatus:
        """Where it is, as last read (at most half a second ago while it is alive)."""
        worker, status = self._worker, self._record.status
        return RunStatus(
            phase=self.phase,
            step=worker.get("step"),
            total_steps=worker.get("total_steps"),
            attempt=len(status.get("attempts", [])),
            checkpoint=worker.get("checkpoint"),
            resumed_from=worker.get("resumed_from"),
            pid=worker.get("pid") if self.phase in ("running", "recovering") else None,
            place=status.get("place", ""),
            workers=worker.get("workers"),
            preemptions=sum(a.get("failure") is False for a in status.get("attempts", [])),
            reason=status.get("store", "") or status.get("reason", "") or self._doing,
        )

    @property
    def _doing(self) -> str:
        """What it does before it takes steps, or after them; empty where nothing is known, or it has ended."""
        if self.phase == "starting" and self.spec.scaling.largest > 1:
            return "its workers and Ray are started"
        return "" if self.ended else str(self._worker.get("doing", ""))

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of each metric."""
        latest: dict[str, float] = {}
        for row in self._rows:
            latest.update(row.metrics)
        return latest

    def history(self, metric: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of a metric so far."""
        rows = [row for row in self._rows if metric in row.metrics]
        return [row.step for row in rows], [row.metrics[metric] for row in rows]

    @property
    def performance(self) -> Performance | None:
        """How fast it goes and what keeps it, at most some seconds old while it is alive; None before its first look."""
        seen = self._worker.get("performance")
        return None if seen is None else Performance.parse(seen)

    @property
    def anomalies(self) -> tuple[Anomaly, ...]:
        """What is wrong with it as last seen, in words; nothing where all is well."""
        return tuple(Anomaly.parse(value) for value in self._worker.get("anomalies") or ())

    def profile(self, steps: int = 20) -> Trace:
        """Ask the worker to record its next steps, and return at once; ``.wait()`` waits for the profile.

        Parameters
        ----------
        steps : int
            How many steps, 1 to 1000; while they are recorded they are slower.

        Raises
        ------
        SpecError
            If `steps` is no such number.
        NotReadyError
            If it has ended, or a profile of it is being made.
        """
        return Trace.ask(self, steps)

    @property
    def folder(self) -> Store:
        """Its folder in the store."""
        return self._journal.store

    @property
    def clock(self) -> Clock:
        """The clock that it goes by."""
        return self._ledger.clock

    @property
    def cost(self) -> Spending:
        """What it has cost up to now: the time of all attempts at the price of the place."""
        return run_spending(self._record, self._ledger.clock.now())

    @property
    def exact(self) -> bool:
        """Whether the result is the same, bit for bit, as without interruptions."""
        return not self.why_not_exact

    @property
    def why_not_exact(self) -> str:
        """Why the result may depend on interruptions; empty where it does not."""
        return str(self._record.status.get("why_not_exact", "")) or NOT_EXACT.get(self.spec.work.kind, "")

    @property
    def model(self) -> Model:
        """The model that it made.

        Raises
        ------
        NotReadyError
            If the run has not succeeded yet, or made none.
        RunFailedError
            If it ended without success.
        """
        if not self.ended:
            self.refresh()
        if not self.ended:
            raise NotReadyError(f"the run {self.name!r} is {self.phase}: it has no model yet", fix="run.wait() first")
        if self.phase != "succeeded":
            raise self._failure()
        entry, parent = self._record.status.get("model"), self._record.desired.get("parent")
        if entry is not None and parent:
            raise NotReadyError(
                f"{self.name!r} is a trial, and its search keeps one model",
                fix=f"cloudai.attach('run/{parent}').model is the best",
            )
        if entry is None:
            raise NotReadyError(f"the run {self.name!r} made no model", fix="return a torch.nn.Module from your function")
        return Model.open(entry["uri"], entry["digest"])

    def wait(self, timeout: float | None = None, *, progress: bool = True) -> Run:
        """Wait until it ends; Ctrl-C stops the waiting, not the run.

        Parameters
        ----------
        timeout : float, optional
            Seconds after which to give up waiting.
        progress : bool
            Whether to write where it is to stderr.

        Raises
        ------
        RunFailedError
            If it ends without success: with the reason, and the frames of your own code where it failed there.
        NotReadyError
            If the time is over first.
        """
        clock = self._ledger.clock
        deadline = None if timeout is None else clock.now() + timeout
        line = ProgressLine(enabled=progress)
        poll = _POLL if self._journal.store.is_local else _POLL_REMOTE
        try:
            while not self.ended:
                if deadline is not None and clock.now() > deadline:
                    raise NotReadyError(
                        f"the run {self.name!r} is still {self.phase}", fix="wait longer, or look at run.logs()"
                    )
                clock.pause(poll)
                self.refresh()
                line.show(self)
        except KeyboardInterrupt:
            line.close()
            sys.stderr.write(
                f"Stopped waiting; {self.name} goes on. Come back: cloudai.attach({self.ref!r}); end it: .cancel()\n"
            )
            return self
        line.close()
        if self.phase != "succeeded":
            raise self._failure()
        return self

    def cancel(self) -> None:
        """End it; its last checkpoint stays. Nothing happens where it has ended."""
        if not self.ended:
            self._want(cancel=True)

    def resume(self, **limits: Unpack[LimitOptions]) -> Run:
        """Let a run that its budget or deadline has stopped go on from its checkpoint, as the same run.

        Parameters
        ----------
        budget : Budget, optional
            The new one, for everything that the run costs, what it has cost already included; None for none.
        deadline : str, float or datetime, optional
            The new one, counted from now; None for none.

        Raises
        ------
        SpecError
            If the run has not stopped, or the limits leave no room to go on.
        """
        self.refresh()
        if self.phase != "stopped":
            raise SpecError(f"the run {self.name!r} is {self.phase}, it has not stopped", fix="only a stopped run is resumed")
        price, now = self._record.status.get("price", {}), self._ledger.clock.now()
        wanted = self._limits.renewed(limits, price, self.cost.amount, now)
        if self.lease_seconds is not None:
            self._ledger.renew_lease("run", self.name, self.lease_seconds)  # before it lives: the old one has passed
        event = f"resumed: {wanted or 'no limits'}"
        self._record = self._ledger.revive("run", self.name, {"limits": wanted.to_json(), "cancel": False}, event=event)
        self._want()
        return self

    @property
    def _limits(self) -> Limits:
        return Limits.from_json(self._record.desired.get("limits"))

    def track(self, *, wait: bool = False) -> Run:
        """Tell the tracker everything once more, such as after it was down for longer than the supervisor ran.

        It happens in a process of its own, and by itself now and then; what the tracker has already stays as it is.

        Parameters
        ----------
        wait : bool
            Whether to wait until the tracker has everything.

        Raises
        ------
        NotReadyError
            If the run goes on, and so is recorded by its worker; or if the tracker is still behind after the wait.
        SpecError
            If the run was started with ``tracking="none"``.
        """
        if self.spec.tracking == NONE:
            raise SpecError(f"the run {self.name!r} is tracked in nothing", fix="set tracking= before the next run")
        self.refresh()
        if not self.ended:
            raise NotReadyError(f"the run {self.name!r} is {self.phase}: its worker records it", fix="run.wait() first")
        process = start_catching_up(self._ledger.home, [self.name])
        if wait:
            process.wait()
            self.refresh()
            if self._untracked:
                fix = f"see that it runs, then cloudai.attach({self.ref!r}).track()"
                raise NotReadyError(f"{self.spec.tracking} is behind: {self._untracked}", fix=fix)
        return self

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Read what its workers wrote, attempt by attempt and without secrets; with `follow` until it ends."""
        seen = shown = 0
        while True:
            attempts = self._record.status.get("attempts", [])
            for attempt in attempts[seen:]:
                lines = lines_of(registry.train_driver(self.spec.on), attempt, self.folder, follow=follow)
                try:
                    for line in islice(lines, shown, None):
                        shown += 1
                        yield line
                except NotFoundError:
                    if follow and "ended" not in attempt:
                        break  # it is noted before it is submitted, or its cluster was started anew
                seen, shown = seen + 1, 0
            if not follow or self.ended:
                return
            self._ledger.clock.pause(_POLL)
            self.refresh()

    def card(self) -> Card:
        """Show where it is, its curve, what it has cost, and what happened to it."""
        status = self.status
        restarts = max(0, status.attempt - 1)
        facts = [
            ("phase", status.phase + (f": {status.reason}" if status.reason not in ("", status.phase) else "")),
            ("step", steps_of(status.step, status.total_steps)),
            ("metrics", ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items()) or "none yet"),
            ("last checkpoint", "none yet" if status.checkpoint is None else f"step {status.checkpoint}"),
            (
                "restarts",
                f"{restarts}" + (f", the last from step {status.resumed_from}" if restarts and status.resumed_from else ""),
            ),
            ("place", status.place or "none yet"),
            *([("workers", str(status.workers))] if self.spec.scaling.largest > 1 and status.workers else []),
            *(self.performance.facts() if self.performance is not None else []),
            *((f"anomaly: {anomaly.kind}", f"{anomaly.what}; {anomaly.fix}") for anomaly in self.anomalies),
            ("spent", str(self.cost)),
            *self._limits_shown(),
            ("tracked in", self._tracked_in()),
            ("exact", "yes, bit for bit" if self.exact else f"not promised: {self.why_not_exact}"),
        ]
        notes = [f"as of {self.age}; cloudai.attach({self.ref!r}) brings it back"]
        if self._unread:
            notes.append(f"its progress may be old: {self._unread}")
        return Card(f"Run {self.name}", facts, curves=self._curves(), notes=notes)

    def _limits_shown(self) -> list[tuple[str, str]]:
        """Return what the card says of budget and deadline: nothing where there are none."""
        limits, attempts = self._limits, self._record.status.get("attempts", [])
        if not str(limits):
            return []
        last = attempts[-1] if attempts else {}
        warned = "ended" not in last and last.get("warned")
        return [("limits", f"{limits}" + ("; near its limit" if warned and not self.ended else ""))]

    def _tracked_in(self) -> str:
        if self.spec.tracking == NONE:
            return "nothing"
        return self.spec.tracking + (f", which is behind: {self._untracked}" if self._untracked else "")

    def _curves(self) -> list[Curve]:
        return [Curve(name, *self.history(name)) for name in LOSSES if len(self.history(name)[0]) > 1][:2]

    def _failure(self) -> RunFailedError:
        status = self._record.status
        reason = status.get("reason") or self.phase
        fix = status.get("fix") or f"look at cloudai.attach({self.ref!r}).logs()"
        why = "" if reason == self.phase else f": {reason}"
        what = f"the run {self.name!r} {'was ' * (self.phase in ('cancelled', 'rejected', 'stopped'))}{self.phase}{why}"
        return RunFailedError(what, fix=fix, frames=status.get("frames", ""))


def run_spending(record: Record, now: float) -> Spending:
    """Return what a run's record says that it has cost up to `now`, a unix time."""
    return spending(run_spans(record), now)


def run_spans(record: Record) -> list[Span]:
    """Return when and at which price each attempt of a run was somewhere."""
    attempts: Sequence[Mapping[str, Any]] = record.status.get("attempts", [])
    over = record.updated if record.ended else None
    return spans_of(attempts, over)
