"""Processes that outlive their starter and are found again by whoever comes next.

Each process has a folder: ``started`` (a folder, the claim), ``pid``, ``log`` and, at the end, ``exit``. A shell, its
``keeper``, stands over the process to write the exit code, because whoever started it may be long gone by then.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from cloudai.errors import DriverError
from cloudai.files import append_to, private_folder, replace_file

__all__ = ["Process", "Processes", "locked"]

# "mkdir … started" makes sure that of two starters only one starts; the trap lets the shell outlive a SIGTERM to the
# whole group, so that it still writes the exit code of the worker. The last line ends what the worker has left behind, and the
# shell with it: all of its group.
_SHELL = """
mkdir -m 700 started 2>/dev/null || exit 0
trap : TERM INT HUP
echo $$ >keeper
"$@" >>log 2>&1 </dev/null 3>&- &
child=$!
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
echo $code >exit.tmp && mv exit.tmp exit
kill -s KILL 0
"""
# The process says its number itself, before it becomes the worker: until then it is a copy of the shell, and the trap above
# would swallow a SIGTERM that is meant for it.
_START = 'echo $$ >pid.tmp && mv pid.tmp pid && cd {folder} && exec "$@"'
_START_TIMEOUT = 10.0


@dataclass(frozen=True)
class Process:
    """What is known of a process: alive, ended with a code, or gone without a word."""

    pid: int | None
    alive: bool
    exit_code: int | None
    started_at: float | None
    ended_at: float | None


class Processes:
    """The processes under one folder, each in a folder of its own named by its key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: str) -> Path:
        """Return the folder of a process."""
        return self.root / key

    def keys(self) -> list[str]:
        """Return the keys of all processes, alive or not."""
        return sorted(path.name for path in self.root.iterdir() if path.is_dir()) if self.root.is_dir() else []

    def start(self, key: str, argv: Sequence[str], env: Mapping[str, str], cwd: str = "", *, again: bool = False) -> None:
        """Start ``python *argv`` detached from this process.

        Nothing happens where `key` was started before; with `again`, only where it is still alive.

        Raises
        ------
        DriverError
            If it could not be started.
        """
        folder = self.folder(key)
        private_folder(folder)
        with locked(folder / "lock"):
            if again:
                self._clear_ended(key)
            if (folder / "started").exists():
                return
            start = _START.format(folder=shlex.quote(cwd or str(folder)))
            command = ["/bin/sh", "-c", _SHELL, "cloudai", "/bin/sh", "-c", start, "cloudai", sys.executable, *argv]
            replace_file(folder / "command.json", json.dumps(list(argv)).encode())
            with append_to(folder / "log") as log:
                # the shell is not waited for: it outlives us, and the system takes it over
                subprocess.Popen(
                    command, cwd=folder, env={**os.environ, **env}, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
            self._wait_for_pid(folder)

    def _clear_ended(self, key: str) -> None:
        process = self.look(key)
        if process is not None and not process.alive:
            for name in ("exit", "pid", "keeper"):
                (self.folder(key) / name).unlink(missing_ok=True)
            (self.folder(key) / "started").rmdir()

    def _wait_for_pid(self, folder: Path) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not ((folder / "pid").exists() or (folder / "exit").exists()):
            if time.monotonic() > deadline:
                raise DriverError(f"the process of {folder.name} did not start", fix=f"see {folder / 'log'}")
            time.sleep(0.002)

    def look(self, key: str) -> Process | None:
        """Return what is known of a process, or None where there never was one."""
        folder = self.folder(key)
        pid, started = _read_int(folder / "pid"), _mtime(folder / "pid")
        if not (folder / "started").exists():
            return None
        code, ended = _read_int(folder / "exit"), _mtime(folder / "exit")
        # while its keeper lives, the exit code is still to come
        alive = code is None and any(n is not None and _is_alive(n, started) for n in (pid, _read_int(folder / "keeper")))
        return Process(pid, alive, code, started, ended)

    def signal(self, key: str, number: int) -> None:
        """Send a signal to the process and all that it started; nothing happens where it has ended."""
        process = self.look(key)
        if process is not None and process.alive and process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group(key, process.pid), number)

    def _group(self, key: str, pid: int) -> int:
        """Return the process group, which the keeper leads."""
        return _read_int(self.folder(key) / "keeper") or os.getpgid(pid)

    def stop(self, key: str, *, grace: float) -> None:
        """End the process: SIGTERM, and after `grace` seconds SIGKILL to all that is left of its group."""
        self.tell_to_end(key)
        self.see_end(key, grace=grace)

    def tell_to_end(self, key: str) -> None:
        """Send SIGTERM to the process and all that it started; nothing happens where it has ended."""
        self.signal(key, signal.SIGTERM)
        self.signal(key, signal.SIGCONT)  # one that was stopped would not hear the other

    def see_end(self, key: str, *, grace: float) -> None:
        """Wait for the end of a process that was told to, and after `grace` seconds kill all that is left of its group."""
        process = self.look(key)
        if process is None or not process.alive or process.pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            group = self._group(key, process.pid)
            deadline = time.monotonic() + grace
            while time.monotonic() < deadline and (now := self.look(key)) is not None and now.alive:
                time.sleep(0.02)
            if (now := self.look(key)) is not None and now.alive:
                with contextlib.suppress(PermissionError):
                    os.killpg(group, signal.SIGKILL)
            while (now := self.look(key)) is not None and now.alive:
                time.sleep(0.01)

    def log_lines(self, key: str, *, follow: bool) -> Iterator[str]:
        """Read the lines that the process wrote; with `follow`, until it ends."""
        path = self.folder(key) / "log"
        if not path.exists():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            rest = ""
            while True:
                process = self.look(key)
                text = file.read()
                *lines, rest = (rest + text).split("\n")
                yield from lines
                if not follow or process is None or not process.alive:
                    break
                time.sleep(0.1)
            if rest:
                yield rest


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that a file stands for, against other threads and processes of this machine."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_alive(pid: int, recorded: float | None) -> bool:
    """Whether `pid` still is the process that was recorded, and not a later one with the same number."""
    try:
        process = psutil.Process(pid)
        newer = recorded is not None and process.create_time() > recorded + 2.0  # the clock's tick and slow disks
        return not newer and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _mtime(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
