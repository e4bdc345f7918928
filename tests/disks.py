"""A small disk of its own, which can be filled; skips where it cannot be mounted."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cloudai.state import ledger as ledger_module


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, with a home on it."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs the right to mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount a small disk: {done.stderr.strip()}")
    yield folder
    ledger_module._open.clear()
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    file = folder / "filler"
    with file.open("wb", buffering=0) as out:
        for size in (65536, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    out.write(b"x" * size)
    return file
