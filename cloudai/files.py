"""Files that other processes read while we write them, and folders that nobody else looks into."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

__all__ = ["append_to", "identity", "private_folder", "replace_file"]

_NEVER_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def replace_file(path: Path, content: bytes | Sequence[bytes | memoryview], *, durable: bool = False) -> None:
    """Put `content` at `path` so that a reader sees the old file or the new one, never a part.

    The file is the user's alone (mode 600), whatever the umask; in a folder that is shared with a group (mode 2770) the
    group has its share. A link at `path` is replaced, not followed.

    Parameters
    ----------
    content : bytes or sequence of bytes or memoryview
        The bytes, in one piece or several.
    durable : bool
        Whether the bytes must be on the disk, not only in the machine's memory, before the new name appears.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind then.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with _new_file(draft) as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _new_file(path: Path) -> BinaryIO:
    rights = _rights(path.parent, 0o600)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NEVER_FOLLOW, 0o600)
    if rights != 0o600:
        os.fchmod(handle, rights)  # a umask takes nothing from a team that was given a folder
    return os.fdopen(handle, "wb")


def identity(path: Path) -> tuple[int, ...] | None:
    """Return numbers that are others once the file was written or replaced; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 (asked for every request, and twice as fast)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def append_to(path: Path) -> BinaryIO:
    """Open a file, such as a log, to write at its end; it is the user's alone, and a link is not followed."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NEVER_FOLLOW, 0o600)
    return os.fdopen(handle, "ab")


def private_folder(path: Path) -> None:
    """Make a folder and its missing parents for the user alone (mode 700), whatever the umask.

    Inside of a folder that is shared with a group (mode 2770) the group has its share.

    Raises
    ------
    OSError
        If it cannot be made, or is there already and another user's.
    """
    missing = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing.append(folder)
    for folder in reversed(missing):
        rights = _rights(folder.parent, 0o700)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
            if rights != 0o700:
                folder.chmod(rights | stat.S_ISGID)
    if not missing:
        _require_own(path)


def _require_own(path: Path) -> None:
    """Refuse a folder that another user has put where we would write, as one can in /tmp."""
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(20, "it is not a folder", str(path))
    stranger = status.st_uid not in (os.geteuid(), 0)
    if stranger and not status.st_mode & stat.S_ISGID:
        raise PermissionError(13, "it belongs to another user", str(path))


def _rights(folder: Path, own: int) -> int:
    """Return the rights of what is made in a folder: one's own, and the group's where the folder was given to it."""
    mode = folder.stat().st_mode
    return own | (own >> 3 & mode) if mode & stat.S_ISGID else own
