"""One supervisor leads; whoever needs one makes sure that it runs.

The lead is a lock on a file, which the operating system gives back the moment its holder dies, however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cloudai import settings
from cloudai.errors import LedgerError
from cloudai.files import append_to, private_folder

__all__ = ["ensure_supervisor", "leading", "supervisor_pid"]

_START_AGAIN = 3.0  # seconds in which a supervisor that was just started is not started once more
_started: dict[Path, float] = {}


@contextmanager
def leading(home: Path) -> Iterator[bool]:
    """Hold the lead of `home` for the length of the block; yields False where somebody else has it.

    Raises
    ------
    LedgerError
        If the home cannot be written.
    """
    with _lock_file(home) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        os.ftruncate(file.fileno(), 0)
        with contextlib.suppress(OSError):  # a full disk: the lock is what counts
            os.write(file.fileno(), str(os.getpid()).encode())
        yield True
        os.ftruncate(file.fileno(), 0)


def _lock_file(home: Path) -> IO[bytes]:
    try:
        private_folder(home)
        return append_to(home / "supervisor.lock")
    except OSError as error:
        raise LedgerError(
            f"the home {home} cannot be written: {error.strerror}", fix="set CLOUDAI_HOME to a writable folder"
        ) from None


def supervisor_pid(home: Path) -> int | None:
    """Return the process id of the leading supervisor, or None where nobody leads."""
    path = home / "supervisor.lock"
    if not path.exists():
        return None
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = path.read_text()
            return int(text) if text else 0
    return None


def ensure_supervisor(home: Path) -> None:
    """Start a supervisor for a home, detached from this process, unless one leads there already."""
    if supervisor_pid(home) is not None or time.monotonic() - _started.get(home, -_START_AGAIN) < _START_AGAIN:
        return
    _started[home] = time.monotonic()
    with _log_file(home) as log:
        subprocess.Popen(
            [sys.executable, "-m", "cloudai.agents.supervisor"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=home,
            env=os.environ | _environment(home),
        )


def _log_file(home: Path) -> IO[bytes]:
    """Open the supervisor's log; nothing is written down where that cannot be, as on a full disk."""
    try:
        return append_to(home / "supervisor.log")
    except OSError:
        return Path(os.devnull).open("ab")


def _environment(home: Path) -> dict[str, str]:
    """Return the settings in force as environment variables, so that the supervisor sees the same."""
    now = settings.current()
    values = {f"CLOUDAI_{name.upper()}": str(getattr(now, name)) for name in settings.NAMES}
    return values | {"CLOUDAI_HOME": str(home)}
