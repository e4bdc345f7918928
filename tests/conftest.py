"""Every test has a home of its own, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cloudai import settings
from cloudai.state import handles
from tests.postgres import postgres  # noqa: F401  one server for all tests of a process
from tests.s3 import _moto, _proxy, bucket, s3  # noqa: F401  fixtures for every test

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home; what a test started in it is killed when the test ends."""
    folder = tmp_path / "home"
    for name in settings.NAMES:
        monkeypatch.delenv(f"CLOUDAI_{name.upper()}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.setenv("CLOUDAI_HOME", str(folder))
    monkeypatch.setenv("CLOUDAI_TRACKING", "none")
    monkeypatch.setenv("CLOUDAI_SUPERVISOR_IDLE", "5s")
    yield folder
    handles._handles.clear()  # a handle that is still alive would start a supervisor again
    clear_looks = 0
    while clear_looks < 2:
        left = processes_of(folder)
        clear_looks = 0 if left else clear_looks + 1
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the live processes that belong to a home, by their environment or command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            mine = process.environ().get("CLOUDAI_HOME") == str(folder) or any(
                str(folder) in word for word in process.cmdline()
            )
            if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until(condition, timeout: float = 30.0, what: str = "the condition"):
    """Poll until a condition holds, and return its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout} s"
        time.sleep(0.02)


def kill(pid: int) -> None:
    """Kill a process as a machine's failure would."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
