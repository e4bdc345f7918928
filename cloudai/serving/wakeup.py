"""Requests that wait for a replica: because their revision is asleep, or because its last replica has just died."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from cloudai.errors import CloudAIError
from cloudai.serving.asgi import AGAIN, HttpError
from cloudai.state import news
from cloudai.state.leader import ensure_supervisor

__all__ = ["WaitingRoom"]

_LOOK = 0.01  # seconds between two looks for a replica, while somebody waits
_TRY = 0.5  # seconds after which a port that nobody listened on is tried again
_UNHEARD = 0.5  # seconds after which news that nobody took means that no supervisor is there
_logger = logging.getLogger(__name__)


class WaitingRoom:
    """Lets requests wait, tells the supervisor, and measures how long a cold start took.

    Parameters
    ----------
    ports : callable
        Returns the ports of a revision's replicas now, or None where it has no traffic any more.
    news_file : Path or None
        What tells the supervisor; without one nobody would come, so that nobody waits.
    most : int
        How many may wait; more are refused.

    Attributes
    ----------
    waiting : Counter of str
        How many wait for each revision.
    on_cold_start : callable
        Called after each cold start with the revision and its seconds.
    """

    def __init__(self, ports: Callable[[str], tuple[int, ...] | None], news_file: Path | None, *, most: int) -> None:
        self._ports, self._news, self._most = ports, news_file, most
        self.on_cold_start: Callable[[str, float], None] = lambda revision, seconds: None
        self.waiting: Counter[str] = Counter()
        self._watches: dict[tuple[str, tuple[int, ...]], asyncio.Task[None]] = {}

    @property
    def open(self) -> bool:
        """Whether it is of use to wait."""
        return self._news is not None

    async def wait(self, revision: str, tried: Sequence[int], deadline: float) -> None:
        """Wait until the revision has other replicas than those that were tried, or they may be tried again.

        Raises
        ------
        HttpError
            429 if too many wait, 503 if there is none at the deadline, in the event loop's time.
        """
        if self.waiting.total() >= self._most:
            what = f"{self._most} requests wait for a replica already"
            raise HttpError(429, what, fix="send the request again a little later", headers=AGAIN)
        self.waiting[revision] += 1
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self._watch(revision, tuple(tried)))
        except TimeoutError:
            what = f"no replica of {revision} became ready in time"
            raise HttpError(503, what, fix="send the request again a little later", headers=AGAIN) from None
        finally:
            self.waiting[revision] -= 1

    def _watch(self, revision: str, tried: tuple[int, ...]) -> asyncio.Task[None]:
        """Return the one task that looks out for all who wait for the same."""
        key = revision, tried
        if key not in self._watches:
            work: Coroutine[None, None, None] = self._look_out(revision, tried)
            self._watches[key] = task = asyncio.get_running_loop().create_task(work)
            task.add_done_callback(lambda _: self._watches.pop(key))
        return self._watches[key]

    async def _look_out(self, revision: str, tried: tuple[int, ...]) -> None:
        begun, told = time.perf_counter(), float("-inf")
        while (ports := self._ports(revision)) == tried:
            now = time.perf_counter()
            if tried and now - begun >= _TRY:
                return  # another process may have come to listen there
            if not self.waiting[revision] and now - begun > _LOOK:
                return  # all have given up
            if now - told >= _UNHEARD:
                await asyncio.to_thread(self._tell)
                told = now
            await asyncio.sleep(_LOOK)
        if ports and not tried:
            seconds = time.perf_counter() - begun
            _logger.info("a replica of %s was ready after %.2f s", revision, seconds)
            self.on_cold_start(revision, seconds)

    def _tell(self) -> None:
        """Tell the supervisor; where the last news still lies there unheard, start one."""
        assert self._news is not None
        if self._news.exists():
            try:
                ensure_supervisor(self._news.parent.parent)
            except (CloudAIError, OSError) as error:
                _logger.warning("no supervisor can be started: %s", error)
        news.tell(self._news)
