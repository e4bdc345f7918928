"""Leases: for how long something may go on without anybody renewing it, kept where it runs and enforced there.

A live handle renews a lease; a kernel that is gone renews nothing. The row in the ledger is what the supervisor goes by. A
file beside it is for the worker or server that the lease belongs to, which reads it every few seconds and ends itself when
the time has passed.

A lease is a unix time, so a clock that jumps, or a laptop that slept, can make it pass before its holder could renew it.
`LeaseWatch` notices that by a second clock, which no setting moves and which stands still while the machine sleeps.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cloudai.files import private_folder, replace_file

__all__ = ["GRACE", "LeaseWatch", "read", "write"]

GRACE = 60.0
"""Seconds of running time in which a holder may renew after a jump, before anything is ended."""

_JUMP = 60.0  # seconds by which two clocks must differ, or a look be late, to count as a jump


def write(path: Path, until: float | None) -> None:
    """Let it go on until a unix time; None for ever."""
    private_folder(path.parent)
    replace_file(path, json.dumps({"until": until}).encode())


def read(path: Path) -> float | None:
    """Return the unix time until which it may go on; None for ever, or where there is no lease that can be read."""
    try:
        until = json.loads(path.read_text())["until"]
        return None if until is None else float(until)
    except (OSError, ValueError, KeyError, TypeError):
        return None


class LeaseWatch:
    """Says whether a lease has passed, to one who looks again and again.

    Parameters
    ----------
    now : callable
        The unix time, which may be set.
    running : callable
        Seconds that count up evenly, such as `time.monotonic`.
    interval : float
        Seconds between two looks, when nothing holds them up.

    Examples
    --------
    >>> wall, running = [1000.0], [0.0]
    >>> watch = LeaseWatch(lambda: wall[0], lambda: running[0], interval=5)
    >>> watch.passed(1100.0)
    False
    >>> wall[0] += 7200  # the machine slept for two hours
    >>> watch.passed(1100.0)
    False
    >>> wall[0] += GRACE; running[0] += GRACE
    >>> watch.passed(1100.0)
    True
    """

    def __init__(self, now: Callable[[], float], running: Callable[[], float], *, interval: float) -> None:
        self._now = now
        self._running = running
        self._late = interval + _JUMP
        self._wall, self._ran = now(), running()
        self._grace_ends = float("-inf")
        self._lease: float | None = None
        self._lease_ends = float("inf")

    def in_grace(self) -> bool:
        """Look at both clocks; whether one has jumped so lately that holders still have time to renew."""
        wall, running = self._now(), self._running()
        passed, ran = wall - self._wall, running - self._ran
        if abs(passed - ran) > _JUMP or ran > self._late:
            self._grace_ends = running + GRACE
        self._wall, self._ran = wall, running
        return running < self._grace_ends

    def passed(self, until: float | None) -> bool:
        """Whether the lease has passed and its holder has had time to renew it.

        A clock that is set back does not make a lease longer: that goes by the running time since it was first seen.
        """
        grace = self.in_grace()
        if until is None:
            return False
        if until != self._lease:
            self._lease, self._lease_ends = until, self._ran + until - self._wall
        return (until <= self._wall or self._ran >= self._lease_ends) and not grace
