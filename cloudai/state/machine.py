"""Who and where we are: this machine, this process, this user, this home."""

from __future__ import annotations

import functools
import getpass
import os
import secrets
import socket
from pathlib import Path

import psutil

from cloudai.errors import LedgerError

__all__ = ["HOLD", "host", "is_process", "me", "owner", "this_home"]

HOLD = 90.0
"""Seconds after which a holder on another machine that did not say so again counts as gone."""


@functools.cache
def host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def owner() -> str:
    """Return who we are, as user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = str(os.getuid())
    return f"{user}@{host()}"


def me() -> tuple[int, float]:
    """Return this process's id and when it was started, which together name it for ever on this machine."""
    process = psutil.Process()
    return process.pid, process.create_time()


def is_process(pid: int, started: float) -> bool:
    """Whether that process lives; another one may have got its id since."""
    try:
        return bool(abs(psutil.Process(pid).create_time() - started) < 1.0)
    except psutil.NoSuchProcess:
        return False


def this_home(home: Path) -> str:
    """Return what names a home in a shared ledger: made up once, whatever becomes of the names of folder and machine."""
    file = home / "home-id"
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists():
            draft = home / f".home-id.{secrets.token_hex(4)}"
            draft.write_text(f"{host()}-{secrets.token_hex(4)}")
            try:
                file.hardlink_to(draft)  # of several, one is first
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return file.read_text().strip()
    except OSError as error:
        raise LedgerError(
            f"the home {home} cannot be written: {error.strerror}", fix="set CLOUDAI_HOME to a writable folder"
        ) from None
