"""Files that other processes read while we write them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Put `content` at `path` so that a reader sees the old file or the new one, never a part.

    Parameters
    ----------
    durable : bool
        Whether the bytes must be on the disk, not only in the machine's memory, before the new name appears.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind then.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
