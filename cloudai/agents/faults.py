"""How the supervisor bears faults: ever slower, and with a log that stays readable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cloudai.errors import LedgerError

__all__ = ["Faults"]

_SHORTEST = 0.2  # seconds
_LONGEST = 5.0  # seconds
_SAY_AGAIN = 60.0  # seconds in which the same is said once


class Faults:
    """What went wrong lately, and how long to wait because of it.

    Parameters
    ----------
    give_up : float
        Seconds of nothing but faults after which there is no hope.
    running : callable
        Seconds that count up evenly.
    """

    def __init__(self, log: logging.Logger, *, give_up: float, running: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._give_up = give_up
        self._running = running
        self._since: float | None = None
        self._said: dict[str, float] = {}
        self.pause = 0.0
        """Seconds to wait before the next try."""

    @property
    def hopeless(self) -> bool:
        """Whether it has lasted too long."""
        return self._since is not None and self._running() - self._since > self._give_up

    def note(self, error: LedgerError) -> None:
        """Note a fault that may pass."""
        if self._since is None:
            self._since = self._running()
        self.pause = min(max(2 * self.pause, _SHORTEST), _LONGEST)
        if self._is_news(str(error)):
            self._log.warning("%s; trying again (fix: %s)", error.what, error.fix)

    def unexpected(self, what: str, error: Exception) -> None:
        """Note an error that should not be, with its frames."""
        if self._is_news(f"{what}: {type(error).__name__}: {error}"):
            self._log.error("%s", what, exc_info=error)

    def over(self) -> None:
        """Note that it works again."""
        if self._since is not None:
            self._log.info("the ledger answers again, after %.1f s", self._running() - self._since)
        self._since, self.pause = None, 0.0

    def _is_news(self, what: str) -> bool:
        now = self._running()
        news = now - self._said.get(what, float("-inf")) >= _SAY_AGAIN
        if news:
            self._said = {text: at for text, at in self._said.items() if now - at < _SAY_AGAIN} | {what: now}
        return news
