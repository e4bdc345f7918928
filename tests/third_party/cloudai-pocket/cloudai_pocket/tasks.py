"""Processes that outlive their starter: each has a folder with its number, its lines and, at the end, its exit code."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Task:
    """What is known of a process now."""

    pid: int
    alive: bool
    code: int | None
    started: float
    ended: float | None


class Tasks:
    """The processes under one folder."""

    def __init__(self, root):
        self.root = root

    def start(self, key, argv, env, cwd=None):
        """Start ``python *argv``, unless the key was started before."""
        folder = self.root / key
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of many starters, one starts
            if self.look(key) is not None:
                return
            shutil.rmtree(folder, ignore_errors=True)  # its starter died before it did anything
            folder.mkdir(mode=0o700)
            command = [sys.executable, "-m", "cloudai_pocket.keeper", str(folder), str(cwd or folder), *argv]
            with (folder / "log").open("ab") as log:
                keeper = subprocess.Popen(
                    command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            (folder / "keeper").write_text(str(keeper.pid))
            while not (folder / "pid").exists() and keeper.poll() is None:
                time.sleep(0.005)

    def look(self, key):
        """Return what is known of a process, or None where there never was one."""
        folder = self.root / key
        pid, keeper = _number(folder / "pid"), _number(folder / "keeper")
        if pid is None:
            return None
        alive = _running(pid) or _running(keeper)  # before the code: the keeper writes it, and then ends
        code = _number(folder / "exit")
        ended = (folder / "exit").stat().st_mtime if code is not None else None
        return Task(pid, alive and code is None, code, (folder / "pid").stat().st_mtime, ended)

    def stop(self, key, patience=15.0):
        """End a process and all that it started: SIGTERM, and after a while SIGKILL."""
        deadline = time.monotonic() + patience
        for number in (signal.SIGTERM, signal.SIGKILL):
            task = self.look(key)
            if task is None or not task.alive:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(_number(self.root / key / "keeper"), number)
            while self.look(key).alive and (time.monotonic() < deadline or number == signal.SIGKILL):
                time.sleep(0.02)

    def clear(self, key):
        """Forget a process that has ended."""
        shutil.rmtree(self.root / key, ignore_errors=True)

    def keys(self):
        """Return the keys of all processes, alive or not."""
        return sorted(path.name for path in self.root.glob("*/")) if self.root.is_dir() else []

    def lines(self, key, *, follow=False):
        """Read what a process wrote; with `follow` until it ends."""
        rest = ""
        with (self.root / key / "log").open(encoding="utf-8", errors="replace") as log:
            while True:
                over = not (follow and self.look(key).alive)  # before reading: what comes later is read the next time
                *lines, rest = (rest + log.read()).split("\n")
                yield from lines
                if over:
                    break
                time.sleep(0.05)
        if rest:
            yield rest


def _number(path):
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _running(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
