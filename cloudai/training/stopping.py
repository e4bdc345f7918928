"""What ends a worker before its work is done: a signal, a lease that has passed, a limit, a machine that is taken away."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil

from cloudai.state import lease
from cloudai.training import notices
from cloudai.training.job import LIMITED, LOST, PREEMPTED, STOPPED
from cloudai.training.limits import Countdown, Limits, Pulse

__all__ = ["Stop", "StopSignal"]

log = logging.getLogger(__name__)

_LEASE_CHECK = 2.0  # seconds between two looks at the lease


class Stop:
    """Says why a worker should end, and counts how often it was asked: a worker asks at each of its steps.

    Parameters
    ----------
    asked : callable
        Says why; empty while it should not.

    Attributes
    ----------
    pulse : Pulse
        How the worker steps.
    notice : str
        What its machine's cloud says last.
    """

    notice = ""

    def __init__(self, asked: Callable[[], str] = lambda: "") -> None:
        self._asked = asked
        self.pulse = Pulse(time.monotonic)

    def __call__(self) -> str:
        """Return why the worker should end; empty while it should not."""
        self.pulse.beat()
        return self._asked()

    def checkpoint_took(self, seconds: float) -> None:
        """Learn how long a checkpoint was on its way."""

    def others_take(self, seconds: float) -> None:
        """Learn how long those who take the steps need from being told until they have ended, but for a checkpoint."""

    def hurries(self) -> bool:
        """Whether a checkpoint is wanted at once, though the worker goes on; says so once."""
        return False


class StopSignal(Stop):
    """Ends a worker that was told to by a signal, whose lease has passed, whose machine is taken, or that comes to a limit.

    Parameters
    ----------
    lease_path : Path or None
        Where its lease is.
    limits : Limits
        Those of this attempt, which began with this process.
    cloud : Source or None
        Who may say that this machine will be taken away.
    note : callable
        Called with each thing that it says.
    """

    def __init__(
        self,
        lease_path: Path | None,
        limits: Limits,
        cloud: notices.Source | None = None,
        note: Callable[[notices.Notice], None] = lambda notice: None,
    ) -> None:
        super().__init__(self._look)
        self._note = note
        self._reason, self._code = "", STOPPED
        self._hurries = False
        skew = time.time() - time.monotonic()
        self._countdown = Countdown(limits, psutil.Process().create_time() - skew, self.pulse, skew)
        signal.signal(signal.SIGTERM, self._told)
        if lease_path is not None:
            threading.Thread(target=self._watch, args=(lease_path,), name="cloudai-lease", daemon=True).start()
        if cloud is not None:
            threading.Thread(target=notices.watch, args=(cloud, self._noticed), name="cloudai-notices", daemon=True).start()

    def end(self, code: int, reason: str) -> None:
        """Let the worker end at its next step; the first reason counts."""
        if not self._reason:
            self._code, self._reason = code, reason

    def code(self, code: int) -> int:
        """Return the exit code of a worker whose work ended with `code`: what it was told to end for says more."""
        return self._code if self._reason and code in (STOPPED, LOST) else code

    def checkpoint_took(self, seconds: float) -> None:
        """Learn how long a checkpoint was on its way: so much is kept back for the last one."""
        self._countdown.checkpoint_took(seconds)

    def others_take(self, seconds: float) -> None:
        """Learn how long those who take the steps need from being told until they have ended, but for a checkpoint."""
        self._countdown.others_take(seconds)

    def hurries(self) -> bool:
        """Whether a checkpoint is wanted at once, though the worker goes on; says so once."""
        hurries, self._hurries = self._hurries, False
        return hurries

    def _noticed(self, notice: notices.Notice) -> None:
        log.warning("%s", notice.text)
        self.notice = notice.text
        if notice.final:
            self.end(PREEMPTED, notice.text)
        else:
            self._hurries = True
        self._note(notice)

    def _look(self) -> str:
        if not self._reason:
            warning = self._countdown.warning()
            if warning:
                log.warning("%s", warning)
            reason = self._countdown()
            if reason:
                self.end(LIMITED, reason)
        return self._reason

    def _told(self, number: int, frame: FrameType | None) -> None:
        self.end(STOPPED, f"told by {signal.Signals(number).name}")

    def _watch(self, path: Path) -> None:
        wait: Callable[[float], bool] = threading.Event().wait
        watch = lease.LeaseWatch(time.time, time.monotonic, interval=_LEASE_CHECK)
        while not watch.passed(lease.read(path)):
            wait(_LEASE_CHECK)
        self.end(STOPPED, "its lease has passed and nobody renewed it")
