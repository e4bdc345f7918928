"""News: how a process on this machine tells the supervisor at once that it should look at an object.

An empty file says it, under ``<home>/news``; the supervisor takes it away before it looks. What the news is, it finds out by
looking: nothing is lost or done twice when a file is made twice, or when nobody was there to see it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from cloudai.files import private_folder

__all__ = ["file", "take", "tell"]


def file(home: Path, kind: str, name: str) -> Path:
    """Return the file that tells of an object."""
    return home / "news" / f"{kind}.{name}"


def tell(path: Path) -> None:
    """Say that there is news; a full disk, or a home that is gone, is no reason to fail."""
    with contextlib.suppress(OSError):
        private_folder(path.parent)
        path.touch()


def take(home: Path) -> set[tuple[str, str]]:
    """Return (kind, name) of each object that there is news of, and take it as heard."""
    told = set()
    with contextlib.suppress(FileNotFoundError):
        for path in (home / "news").iterdir():
            path.unlink(missing_ok=True)
            kind, _, name = path.name.partition(".")
            told.add((kind, name))
    return told
