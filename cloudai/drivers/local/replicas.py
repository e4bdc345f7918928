"""The replicas of one revision on this machine: as many processes as are wanted, each in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudai.drivers.local.processes import Processes, locked
from cloudai.files import private_folder, replace_file

__all__ = ["DRAIN", "Replica", "Replicas", "read_json", "write_json"]

DRAIN = 15.0
"""Seconds that a process has to answer what it has taken on."""


@dataclass(frozen=True)
class Replica:
    """A live process of a revision.

    Attributes
    ----------
    port : int or None
        Where it listens; None while it is starting.
    listening : bool
        Whether it said that it takes requests, and not that it is about to end.
    token_file : str
        The file with the token that it asks for; empty where it asks for none.
    """

    key: str
    pid: int | None
    port: int | None
    listening: bool
    token_file: str


class Replicas:
    """The replicas under the folder of a revision, beside ``revision.json``: what to start, and how often.

    Where that file is missing, the revision has been retired, or never was.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "revision.json"
        self._processes = Processes(folder)

    @property
    def wanted(self) -> int | None:
        """How many there should be; None where there is no such revision."""
        count = read_json(self._file).get("replicas")
        return None if count is None else int(count)

    def begin(self, argv: Sequence[str], env: Mapping[str, str], replicas: int) -> None:
        """Bring the revision up, or what of it has died; one that was scaled keeps its number."""
        private_folder(self._folder)
        with locked(self._folder / "lock"):
            known = self.wanted
            count = replicas if known is None else known
            write_json(self._file, {"argv": list(argv), "env": dict(env), "replicas": count})
            self._fill_up(count)

    def fill_up(self, replicas: int) -> None:
        """Want so many from now on, and start those that are missing."""
        with locked(self._folder / "lock"):
            write_json(self._file, {**read_json(self._file), "replicas": replicas})
            self._fill_up(replicas)

    def _fill_up(self, count: int) -> None:
        taken = {replica.key for replica in self.alive()}
        for _ in range(count - len(taken)):
            key = next(key for key in map(str, range(1, 10_000)) if key not in taken and not self._runs(key))
            taken.add(key)
            self._start(key)

    def _start(self, key: str) -> None:
        known, folder = read_json(self._file), self._processes.folder(key)
        self._mark(key).unlink(missing_ok=True)
        argv, env = [*known["argv"], "--state", str(folder)], {**known["env"], "CLOUDAI_SCRATCH": str(folder)}
        self._processes.start(key, argv, env, again=True)

    def _runs(self, key: str) -> bool:
        process = self._processes.look(key)
        return process is not None and process.alive

    def alive(self) -> list[Replica]:
        """Return the live ones, those apart that were told to end."""
        keys = [key for key in self.keys() if not self._mark(key).exists()]
        return [replica for key in keys if (replica := self._look(key)) is not None]

    def keys(self) -> list[str]:
        """Return the names of all replicas, alive or not, in the order in which they are started."""
        return sorted((key for key in self._processes.keys() if key.isdigit()), key=int)

    def folder(self, key: str) -> Path:
        """Return the folder of a replica."""
        return self._processes.folder(key)

    def _look(self, key: str) -> Replica | None:
        process, state = self._processes.look(key), read_json(self._processes.folder(key) / "server.json")
        if process is None or not process.alive:
            return None
        same = process.pid is not None and state.get("pid") == process.pid  # what a dead one wrote does not count
        port = int(state["port"]) if same else None
        return Replica(key, process.pid, port, bool(same and state.get("ready")), str(state.get("token_file", "")))

    def mark_surplus(self, replicas: int) -> list[str]:
        """Choose those that are too many, first of all what is not ready, and say in their folders that they are to end.

        With them come those that were chosen long ago and are still there: whoever was to tell them has died before.
        """
        with locked(self._folder / "lock"):
            by_worth = sorted(self.alive(), key=lambda replica: (not replica.listening, int(replica.key)))
            surplus = [replica.key for replica in by_worth[replicas:]]
            for key in surplus:
                self._mark(key).touch()
            return [*surplus, *(key for key in self.keys() if self._is_overdue(key))]

    def _mark(self, key: str) -> Path:
        return self._processes.folder(key) / "ending"

    def _is_overdue(self, key: str) -> bool:
        mark = self._mark(key)
        return mark.exists() and time.time() - mark.stat().st_mtime > 2 * DRAIN and self._runs(key)

    def let_end(self, keys: Sequence[str]) -> None:
        """Tell replicas to end, and see to it without being waited for."""
        for key in keys:
            self._processes.tell_to_end(key)
            threading.Thread(target=self._processes.see_end, args=(key,), kwargs={"grace": DRAIN}, daemon=True).start()

    def retire(self) -> None:
        """End all, and forget what to start."""
        with contextlib.suppress(FileNotFoundError), locked(self._folder / "lock"):
            self._file.unlink(missing_ok=True)
            self.stop()

    def stop(self) -> None:
        """End all at once."""
        for replica in self.alive():
            self._processes.tell_to_end(replica.key)  # those on their way out were told: the second time would cut them short
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: self._processes.see_end(key, grace=DRAIN), self.keys()))

    def last_words(self) -> str:
        """Return the last lines that the replica which ended last has written."""
        ends = {key: process.ended_at or 0.0 for key in self.keys() if (process := self._processes.look(key)) is not None}
        if not ends:
            return "it was ended"
        lines = [line for line in self._processes.log_lines(max(ends, key=ends.__getitem__), follow=False) if line.strip()]
        return " ".join(lines[-2:])[-400:] or "the process ended without a word"


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file says; nothing where it cannot be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file in one step."""
    replace_file(path, json.dumps(value).encode())
