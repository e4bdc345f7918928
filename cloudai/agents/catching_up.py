"""The supervisor's part in trackers that were down: now and then it starts the process that tells them what they missed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cloudai.training.catch_up import start_catching_up
from cloudai.training.tracked import behind

__all__ = ["CatchingUp"]

_LOOK = 1.0  # seconds between two looks whether anything is behind
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 600.0  # seconds between two tries while a tracker stays down


class CatchingUp:
    """Starts one process at a time, with a longer pause after each that did not get through.

    Parameters
    ----------
    home : Path
        The home whose runs are looked after.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._next = float("-inf")
        self._pause = _FIRST_PAUSE

    def look(self, now: float) -> None:
        """Start a process where something is behind and it is time; `now` is monotonic."""
        if now < self._next or (self._process is not None and self._ended(self._process, now)):
            return
        self._next = now + _LOOK
        if self._process is None and behind(self._home):
            self._process = start_catching_up(self._home)

    def _ended(self, process: subprocess.Popen[bytes], now: float) -> bool:
        """Whether the process has ended just now without getting through, so that a pause begins."""
        code = process.poll()
        if code is None:
            return False
        self._process = None
        if code == 0:
            self._pause = _FIRST_PAUSE
            return False
        self._next, self._pause = now + self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return True
