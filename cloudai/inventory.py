"""What there is, what it costs, who holds it; and how to end what nobody holds."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cloudai.display import Card, Shown, Table, duration, money
from cloudai.errors import NotReadyError
from cloudai.planning.spending import Spending
from cloudai.serving.scaling import price_now
from cloudai.state.leader import ensure_supervisor, supervisor_pid
from cloudai.state.ledger import Holder, Ledger, Record

__all__ = ["Cleanup", "Inventory", "Ledgered"]

_POLL = 0.05
_END_WORDS = {
    "run": {"cancel": True},
    "deployment": {"delete": True},
    "monitor": {"stop": True},
    "schedule": {"cancel": True},
}


@dataclass(frozen=True)
class Ledgered:
    """One object of the ledger with what belongs to it."""

    record: Record
    holders: Sequence[Holder]
    spending: Spending | None

    @property
    def held_elsewhere(self) -> bool:
        """Whether another live process holds it."""
        return any(not holder.is_this_process for holder in self.holders)

    @property
    def is_part(self) -> bool:
        """Whether it is a trial, whose costs are those of its search too."""
        return bool(self.record.desired.get("parent"))

    @property
    def phase(self) -> str:
        """Its phase, and when a schedule acts next."""
        at = self.record.status.get("next")
        if at is None or self.record.ended:
            return self.record.phase
        return f"{self.record.phase}, next {datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"

    @property
    def pids(self) -> list[int]:
        """Its processes on this machine, as last seen."""
        status = self.record.status
        revisions = [pid for row in status.get("revisions", []) for pid in row["pids"]]
        workers = [attempt["pid"] for attempt in status.get("attempts", [])[-1:] if "pid" in attempt]
        return [] if self.record.ended else [*status.get("router", []), *revisions, *workers]

    @property
    def per_day(self) -> str:
        """What it costs in a day while it goes on."""
        price = price_now(self.record.status)
        if price is None or self.record.ended:
            return "–"
        return money(price["per_hour"] * 24, price["currency"])


class Inventory(Shown):
    """A list of objects with their costs.

    Attributes
    ----------
    entries : list of Ledgered
        The objects, the newest first.
    """

    def __init__(self, ledger: Ledger, entries: list[Ledgered], title: str = "Alive") -> None:
        self.entries = entries
        self._ledger = ledger
        self._title = title

    def __repr__(self) -> str:
        return f"Inventory({[entry.record.ref for entry in self.entries]})"

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def totals(self) -> dict[str, float]:
        """What all of it has cost, for each currency."""
        sums: dict[str, float] = {}
        for entry in self.entries:
            if entry.spending is not None and entry.spending.currency and not entry.is_part:
                sums[entry.spending.currency] = sums.get(entry.spending.currency, 0.0) + entry.spending.amount
        return sums

    def card(self) -> Card:
        """Show one row for each object."""
        supervisor = supervisor_pid(self._ledger.home)
        alive = any(not entry.record.ended for entry in self.entries)
        notes = [
            f"supervisor: process {supervisor}" if supervisor else "supervisor: starting" if alive else "no supervisor runs"
        ]
        if self.totals:
            sums = " + ".join(money(amount, currency) for currency, amount in self.totals.items())
            notes.append(f"these have cost {sums}, at the prices named in each object's card")
        if not self.entries:
            return Card(f"{self._title}: nothing", notes=notes)
        columns: tuple[str, ...] = ("what", "phase", "since", "processes", "spent", "per day", "lease left", "held by")
        rows = [self._row(entry) for entry in self.entries]
        if not all(self._ledger.mine(entry.record) for entry in self.entries):
            columns = (*columns, "owner")
            rows = [(*row, entry.record.owner) for row, entry in zip(rows, self.entries, strict=True)]
        return Card(self._title, tables=[Table(columns, rows)], notes=notes)

    def _row(self, entry: Ledgered) -> tuple[str, ...]:
        record = entry.record
        spent = (
            f"{money(entry.spending.amount, entry.spending.currency)}" if entry.spending and entry.spending.currency else "–"
        )
        left = self._ledger.lease_left(record.kind, record.desired.get("parent") or record.name)
        return (
            record.ref,
            entry.phase,
            duration(max(0.0, self._ledger.clock.now() - record.created)),
            " ".join(map(str, entry.pids)) or "–",
            spent,
            entry.per_day,
            "–" if record.ended or left is None else duration(max(0.0, left)),
            ", ".join(map(str, entry.holders)) or "nobody",
        )


class Cleanup(Shown):
    """What would be ended; `apply` ends it.

    Attributes
    ----------
    entries : list of Ledgered
        The objects.
    """

    def __init__(self, ledger: Ledger, entries: list[Ledgered]) -> None:
        self.entries = entries
        self._ledger = ledger
        self._applied = False

    def __repr__(self) -> str:
        return f"Cleanup({[entry.record.ref for entry in self.entries]})"

    def card(self) -> Card:
        """Show what would be ended."""
        if not self.entries:
            return Card("Cleanup: nothing to end")
        rows = [(entry.record.ref, entry.record.phase, entry.per_day) for entry in self.entries]
        if self._applied:
            return Card("Cleanup has ended", tables=[Table(("what",), [(ref,) for ref, *_ in rows])])
        return Card("Cleanup would end", tables=[Table(("what", "phase", "per day"), rows)], notes=[".apply() ends it"])

    def apply(self, timeout: float = 60.0) -> Cleanup:
        """End all of it and wait until it has ended; then end the supervisor, if nothing else needs it.

        Raises
        ------
        NotReadyError
            If something has not ended in `timeout` seconds.
        """
        for entry in self.entries:
            self._ledger.want(entry.record.kind, entry.record.name, _END_WORDS[entry.record.kind])
        deadline = self._ledger.running() + timeout
        while left := self._left():
            ensure_supervisor(self._ledger.home)
            if self._ledger.running() > deadline:
                raise NotReadyError(f"{left[0]} has not ended after {timeout:g} s", fix="look at cloudai.ps(), and try again")
            self._ledger.clock.pause(_POLL)
        self._end_supervisor(time.monotonic() + timeout)
        self._applied = True
        return self

    def _left(self) -> list[str]:
        records = (self._ledger.get(entry.record.kind, entry.record.name) for entry in self.entries)
        return [record.ref for record in records if not record.ended]

    def _end_supervisor(self, deadline: float) -> None:
        home = self._ledger.home
        pid = supervisor_pid(home)
        if pid in (None, os.getpid()) or any(self._ledger.mine(record) for record in self._ledger.records(alive=True)):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        while supervisor_pid(home) == pid and time.monotonic() < deadline:
            time.sleep(_POLL)
