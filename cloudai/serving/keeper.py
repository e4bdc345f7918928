"""A port that stays open when the process that answers on it dies.

The keeper binds the port and forks: the child answers, the keeper waits. When the child is killed, the keeper forks the next
one at once, for which all modules are loaded already. Meanwhile connections are not refused: they wait in the backlog of
the socket, which all of them share. Only what the dead process was working on is lost.

``SIGTERM`` and ``SIGINT`` to the keeper, or to the group of both, end the child in its own way, and the keeper after it;
a ``SIGINT`` after that ends both at once.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

__all__ = ["keep"]

_LET_END = signal.SIGUSR1
"""How the keeper tells the child to end. The child ignores what the group is sent: it would hear it twice."""
_QUICK = 1.0  # seconds; a child that ends sooner has hardly served
_MOST_QUICK = 5  # so many in a row, and it will not get better by itself
_logger = logging.getLogger(__name__)


def keep() -> tuple[signal.Signals, ...]:
    """Stay as the keeper of this process' sockets; return in each child the signals that end it.

    The process must have no other thread. The signals are blocked until the child unblocks them.
    """
    keeper = _Keeper()
    gc.freeze()  # what is there now stays shared: the collector would touch, and so copy, all of it
    while keeper.fork():
        keeper.wait()
    return (_LET_END,)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Leave it to the keeper, who hears it too and says so."""


class _Keeper:
    def __init__(self) -> None:
        self._child = 0
        self._told = 0
        self._quick = 0
        self._begun = 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell)

    def fork(self) -> bool:
        """Make a child; returns whether this is the keeper."""
        both = {_LET_END, signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, both)  # until it is known who is who
        self._begun, self._child = time.monotonic(), os.fork()
        if not self._child:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _ignore)  # not SIG_IGN, which all that the child starts would inherit
        elif self._told:
            os.kill(self._child, _LET_END)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both - {_LET_END} if not self._child else both)
        return bool(self._child)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        hurry = self._told and number == signal.SIGINT
        self._told = number
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self._child, signal.SIGKILL if hurry else _LET_END)

    def wait(self) -> None:
        """Wait for the child's end; it is the keeper's too if that was its own will."""
        _, status = os.waitpid(self._child, 0)
        code = os.waitstatus_to_exitcode(status)
        if self._told or code == 0:
            self._end(code)
        lasted = time.monotonic() - self._begun
        self._quick = self._quick + 1 if lasted < _QUICK else 0
        if self._quick >= _MOST_QUICK:
            self._end(code)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        _logger.warning("the process %d ended after %.1f s by %s: the next one takes over", self._child, lasted, how)

    def _end(self, code: int) -> NoReturn:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if code >= 0 else 128 - code)
