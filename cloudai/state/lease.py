"""Leases: for how long something may go on without anybody renewing it, kept where it runs and enforced there.

A lease is a file with a unix time. A live handle renews it; the worker or server that it belongs to reads it every few
seconds and ends itself when the time has passed. A kernel that is gone renews nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from cloudai.files import private_folder, replace_file

__all__ = ["expired", "remaining", "renew"]


def renew(path: Path, seconds: float | None, now: float) -> None:
    """Let it go on for `seconds` from `now`, a unix time; None for ever."""
    private_folder(path.parent)
    replace_file(path, json.dumps({"until": None if seconds is None else now + seconds}).encode())


def remaining(path: Path, now: float) -> float | None:
    """Return the seconds left, negative when it has passed; None for ever, or where there is no lease that can be read."""
    try:
        until = json.loads(path.read_text())["until"]
        return None if until is None else float(until) - now
    except (OSError, ValueError, KeyError, TypeError):
        return None


def expired(path: Path, now: float) -> bool:
    """Whether the lease has passed."""
    left = remaining(path, now)
    return left is not None and left <= 0
