"""Which replica of a revision gets a request, and how busy each revision is."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

__all__ = ["Load", "Replicas"]

_SHUNNED = 1.0  # seconds for which a replica that did not listen is asked last
_WINDOW = 2.0  # seconds over which the load is averaged; longer than the supervisor lets pass between two looks
_MARK = 0.1  # seconds between two notes of the sum


class Load:
    """The mean number of ongoing requests over the last two seconds: exact, whatever comes and goes between two looks.

    Parameters
    ----------
    clock : callable
        Seconds that count up evenly.

    Examples
    --------
    >>> now = [0.0]
    >>> load = Load(lambda: now[0])
    >>> load.change(+4)
    >>> now[0] = 1.0
    >>> load.change(-4)
    >>> now[0] = 2.0
    >>> load.mean(), load.count
    (2.0, 0)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self._clock = clock
        self._sum, self._at = 0.0, clock()
        self._marks: deque[tuple[float, float, int]] = deque()

    def change(self, by: int) -> None:
        """Count so many more."""
        self._advance()
        self.count += by

    def mean(self) -> float:
        """Return the mean of the last two seconds."""
        self._advance()
        at, total, count = self._marks[0] if self._marks else (self._at, self._sum, self.count)
        before = total - count * (at - (self._at - _WINDOW))  # the sum at the window's start
        return max(0.0, self._sum - before) / _WINDOW

    def _advance(self) -> None:
        """Bring the sum up to now, and note it with the count that led there, now and then."""
        now = self._clock()
        self._sum += self.count * (now - self._at)
        self._at = now
        if not self._marks or now - self._marks[-1][0] >= _MARK:
            self._marks.append((now, self._sum, self.count))
        while self._marks and self._marks[0][0] < now - _WINDOW:
            self._marks.popleft()


class Replicas:
    """Counts the requests at each replica, and names the least busy one first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy: Counter[int] = Counter()
        self._silent: dict[int, float] = {}

    def in_order(self, ports: Sequence[int]) -> Iterator[int]:
        """Yield the replicas in the order in which to ask them: by ongoing requests, ties by chance, the silent ones last."""
        if len(ports) == 1:
            yield ports[0]
            return
        left = list(ports)
        while left:
            port = min(left, key=lambda port: (self._is_silent(port), self._busy[port], random.random()))  # noqa: S311  no secret
            left.remove(port)
            yield port

    def _is_silent(self, port: int) -> bool:
        return self._clock() - self._silent.get(port, float("-inf")) < _SHUNNED

    @contextlib.contextmanager
    def asked(self, port: int) -> Iterator[None]:
        """Count a request at a replica for the length of the block."""
        self.begin(port)
        try:
            yield
        finally:
            self.end(port)

    def begin(self, port: int) -> None:
        """Count a request at a replica."""
        self._busy[port] += 1

    def end(self, port: int) -> None:
        """Count it no more."""
        self._busy[port] -= 1
        if not self._busy[port]:
            del self._busy[port]

    def silent(self, port: int) -> bool:
        """Note that nobody listens there; returns whether that is news."""
        now, known = self._clock(), self._is_silent(port)
        self._silent = {other: at for other, at in self._silent.items() if now - at < _SHUNNED} | {port: now}
        return not known
