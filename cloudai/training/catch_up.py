"""Tells trackers what they missed of runs that have ended: ``python -m cloudai.training.catch_up [NAME …]``.

The supervisor starts it now and then while something is behind, in a process of its own since trackers are heavy and may hang;
`Run.track` and ``cloudai track`` start it by hand. Everything is sent again from the run's folder; a tracker takes what it has
once more without harm.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cloudai import settings
from cloudai.errors import CloudAIError, NotFoundError
from cloudai.files import append_to, private_folder
from cloudai.specs.confidential import start_log
from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import open_ledger
from cloudai.tracking.background import BackgroundTracker
from cloudai.training.job import RunFiles
from cloudai.training.journal import JournalReader
from cloudai.training.tracked import RunSource, behind, first_note, tracked_model, unmark_behind, write_note

__all__ = ["main", "start_catching_up"]

log = logging.getLogger("cloudai.catch_up")

_PATIENCE = 30.0  # seconds that a tracker has for its next answer
_LONGEST = 3600.0  # seconds for one run


def start_catching_up(home: Path, names: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a process that catches up these runs, or all that are behind; it outlives this one."""
    private_folder(home)
    with append_to(home / "catch_up.log") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "cloudai.training.catch_up", *names],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd=home,
            env=os.environ | {"CLOUDAI_HOME": str(home)},
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Catch up the named runs, or all that are behind; returns 1 where one still is."""
    parser = argparse.ArgumentParser(prog="python -m cloudai.training.catch_up")
    parser.add_argument("names", nargs="*")
    names = parser.parse_args(argv).names
    start_log()
    home = settings.current().home
    with _alone(home):
        down: set[str] = set()
        told = [_catch_up(home, name, down) for name in names or behind(home)]
    return 0 if all(told) else 1


def _catch_up(home: Path, name: str, down: set[str]) -> bool:
    """Catch up one run, and return whether nothing is left to be told; an address where nobody was is not asked again."""
    ledger = open_ledger()
    try:
        record = ledger.get("run", name)
    except NotFoundError:
        unmark_behind(home, name)
        return True
    spec = TrainSpec.model_validate(record.spec)
    if not record.ended or spec.tracking in down:
        return False
    try:
        tracker = _tell(spec, succeeded=record.phase == "succeeded")
    except (CloudAIError, OSError) as error:  # its folder cannot be read: the others are told all the same
        log.warning("%s cannot be told now: %s", name, getattr(error, "what", error))
        return False
    log.info("%s in %s: %s", name, spec.tracking, "complete" if tracker.complete else tracker.problem)
    if tracker.complete:
        unmark_behind(home, name)
    elif not tracker.reached:
        down.add(spec.tracking)
    return tracker.complete


def _tell(spec: TrainSpec, *, succeeded: bool) -> BackgroundTracker:
    """Tell the tracker of an ended run everything, and note how that went."""
    folder = RunFiles(spec).folder
    reader = JournalReader(folder)
    status = reader.status()
    tracker = BackgroundTracker(RunSource(spec))
    tracker.close(succeeded, status.get("updated", 0.0), tracked_model(reader.result()))
    complete = tracker.wait(_LONGEST, patience=_PATIENCE)
    note = replace(first_note(folder), attempt=status.get("attempt", 0), complete=complete, problem=tracker.problem)
    write_note(folder, note)
    return tracker


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Wait for others who catch up in this home: two at once would send everything twice."""
    with append_to(home / "catch_up.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # a tracker that hangs must not keep this process
