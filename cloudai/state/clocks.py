"""What the ledger does about a clock that cannot be right."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from cloudai.clock import SYSTEM, Clock
from cloudai.display import duration
from cloudai.errors import LedgerError
from cloudai.state.database import Database

__all__ = ["refuse_clock", "trust"]

_TOLERANCE = 300.0  # seconds


def refuse_clock(database: Database, clock: Clock) -> None:
    """Refuse to write new objects by a clock that was set back, or that differs from the server's.

    Raises
    ------
    LedgerError
        If the newest entry lies more than five minutes in the future, or the server's clock is as far away.
    """
    now = clock.now()
    newest = database.query("SELECT max(updated) FROM objects")[0][0]
    server = database.time() if clock is SYSTEM else None
    if server is not None and abs(server - now) > _TOLERANCE:
        where = "ahead of" if now > server else "behind"
        what = f"this machine's clock says {_utc(now)}, {duration(abs(server - now))} {where} that of the ledger's server"
        raise LedgerError(what, fix="set the clock of this machine, or of the server")
    if newest is not None and newest - now > _TOLERANCE:
        what = f"this machine's clock says {_utc(now)}, the ledger was last written at {_utc(newest)}"
        raise LedgerError(what, fix="set the clock; where it is right, run: cloudai doctor --trust-clock")


def trust(database: Database, now: float) -> int:
    """Bring back every time that lies after `now`; returns how many objects were changed."""
    with database.transaction() as tx:
        found = tx.locked("SELECT kind, name, spec, status FROM objects WHERE created>? OR updated>?", (now, now))
        for kind, name, _, status in found:
            sql = "UPDATE objects SET status=?, version=version+1 WHERE kind=? AND name=?"
            tx.execute(sql, (json.dumps(_clamped(json.loads(status), now)), kind, name))
        for table, column in (("objects", "created"), ("objects", "updated"), ("events", "at"), ("models", "at")):
            tx.execute(f"UPDATE {table} SET {column}=? WHERE {column}>?", (now, now))  # noqa: S608
        tx.execute("UPDATE holders SET seen=? WHERE seen>?", (now, now))
        for kind, name, spec, until in tx.query(
            "SELECT l.kind, l.name, spec, until FROM leases l JOIN objects o ON o.kind=l.kind AND o.name=l.name"
        ):
            seconds = json.loads(spec).get("lease")
            if seconds is not None and until is not None and until > now + seconds:
                tx.execute("UPDATE leases SET until=? WHERE kind=? AND name=?", (now + seconds, kind, name))
    return len(found)


_TIMES = frozenset({"started", "ended", "until", "at", "since", "again", "billed_at"})


def _clamped(value: object, now: float) -> object:
    """Bring back the times in what the supervisor saw, wherever they stand."""
    if isinstance(value, list):
        return [_clamped(item, now) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: min(item, now) if key in _TIMES and isinstance(item, float | int) else _clamped(item, now)
        for key, item in value.items()
    }


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
