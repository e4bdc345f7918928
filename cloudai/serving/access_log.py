"""A line for each request, without a word of what was asked or answered, written off the requests' path."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from cloudai.serving.asgi import Account

__all__ = ["AccessLog"]

_SECONDS = 1.0
"""How long a line may wait in memory."""
_MOST_WAITING = 100_000
"""Lines in memory; more are dropped, and that is said."""
_logger = logging.getLogger(__name__)


class AccessLog:
    """Writes JSON lines to a file, and begins anew where it has grown too long.

    Each has ``time`` (of the answer, UTC), ``id``, ``method``, ``path``, ``status``, ``seconds``, ``sent`` (bytes of the
    answer's body) and ``client`` (its address, where that is known).

    Parameters
    ----------
    path : Path
        The file; only the user can read it. The one before it is kept as ``NAME.1``.
    max_bytes : int
        How long a file may become.

    Raises
    ------
    OSError
        If it cannot be written.
    """

    def __init__(self, path: Path, *, max_bytes: int = 64 * 2**20) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._waiting: deque[tuple[datetime, Account]] = deque()
        self._dropped = 0
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._file = self._open()
        self._writer = threading.Thread(target=self._write_on, name="access-log", daemon=True)
        self._writer.start()

    def __call__(self, account: Account) -> None:
        """Note a request; called in the event loop, and over at once."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append((datetime.now(UTC), account))
        else:
            self._dropped += 1

    def flush(self) -> None:
        """Return when all lines so far are in the file."""
        with self._writing:
            if taken := [self._waiting.popleft() for _ in range(len(self._waiting))]:
                self._file.writelines(_line(time, account) for time, account in taken)
                self._file.flush()
            if self._dropped:
                _logger.warning("%d lines of the access log were dropped: too many requests for this disk", self._dropped)
                self._dropped = 0
            if self._file.tell() > self._max_bytes:
                self._file.close()
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                self._file = self._open()

    def close(self) -> None:
        """Write what waits, and end."""
        self._ended.set()
        self._writer.join()
        self._file.close()

    def _open(self) -> IO[str]:
        return open(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8")  # noqa: PTH123

    def _write_on(self) -> None:
        over = False
        while not over:
            over = self._ended.wait(_SECONDS)
            try:
                self.flush()
            except OSError as error:
                _logger.warning("the access log cannot be written: %s", error)


def _line(time: datetime, account: Account) -> str:
    line = {
        "time": time.isoformat(timespec="milliseconds"),
        "id": account.id,
        "method": account.method,
        "path": account.path[:500],
        "status": account.status,
        "seconds": round(account.seconds, 6),
        "sent": account.sent,
        "client": account.client,
    }
    return json.dumps(line, separators=(",", ":")) + "\n"
