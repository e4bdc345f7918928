"""What a tracker must know of a run, read from the run's folder; and the note of what it does not know yet.

``tracking.json`` in the folder says under which identity the run is recorded and whether the tracker has everything of the last
attempt. A run that ended while its tracker was behind also has an empty file in ``<home>/behind``, until it is caught up.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloudai import settings
from cloudai.artifacts.store import Store, sha256
from cloudai.errors import CloudAIError, IntegrityError
from cloudai.specs.training import TrainSpec
from cloudai.tracking import Row, TrackedModel, TrackedRun, Tracker, tracker_for
from cloudai.tracking.registry import NONE
from cloudai.training.job import RunFiles
from cloudai.training.journal import JournalReader

__all__ = ["Note", "RunSource", "behind", "lineage", "mark_behind", "read_note", "tracked_model", "unmark_behind", "write_note"]

_NOTE = "tracking.json"


@dataclass(frozen=True)
class Note:
    """What the tracker has of a run."""

    identity: str
    started: float
    """Unix time."""
    attempt: int = 0
    """The attempt that `complete` is about."""
    complete: bool = False
    problem: str = ""
    """Why it has not everything."""


def read_note(folder: Store) -> Note | None:
    """Read the note in a run's folder; None where tracking has not begun, or the note cannot be understood."""
    try:
        value = folder.read_json(_NOTE)
        return None if value is None else Note(**value)
    except (IntegrityError, TypeError):
        return None


def write_note(folder: Store, note: Note) -> None:
    """Write the note."""
    folder.write_json(_NOTE, asdict(note))


def first_note(folder: Store) -> Note:
    """Return the note, made now where there was none."""
    note = read_note(folder)
    if note is None:
        note = Note(secrets.token_hex(16), JournalReader(folder).status().get("started", time.time()))
        write_note(folder, note)
    return note


class RunSource:
    """A run's folder, as the source of what its tracker is told.

    Parameters
    ----------
    spec : TrainSpec
        The run.
    attempt : int, optional
        The attempt that is reporting now; None where the run has ended.
    """

    def __init__(self, spec: TrainSpec, attempt: int | None = None) -> None:
        self._spec = spec
        self._folder = RunFiles(spec).folder
        self._attempt = attempt
        self._seen: dict[int, dict[str, float]] = {}

    def begin(self) -> tuple[Tracker, TrackedRun]:
        """Make the tracker and say what it is told first."""
        spec, note = self._spec, first_note(self._folder)
        files = settings.current().home / "tracking" / spec.name
        run = TrackedRun(note.identity, spec.name, spec.model_name, note.started, _params(spec), _tags(spec))
        return tracker_for(spec.tracking, files), run

    def rows(self) -> Sequence[Row]:
        """Return all rows in the folder, without what a later attempt did again with the same outcome."""
        self._seen = {}
        rows: list[Row] = []
        for number, reported in JournalReader(self._folder).attempts().items():
            rows += self.fresh(reported)
            if number != self._attempt:
                self._remember(reported)
        return rows

    def fresh(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Leave out the metrics that an earlier attempt has reported with the same value at the same step."""
        if not self._seen:
            return rows
        left = (Row(row.step, _without(row.metrics, self._seen.get(row.step, {})), row.at) for row in rows)
        return [row for row in left if row.metrics]

    def _remember(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._seen.setdefault(row.step, {}).update(row.metrics)


def _without(metrics: Mapping[str, float], known: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in known or not _same(known[name], value)}


def _same(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)


def tracked_model(result: Mapping[str, Any] | None) -> TrackedModel | None:
    """Return the model in a run's ``result.json``, if it made one."""
    entry = (result or {}).get("model")
    return None if entry is None else TrackedModel(**entry)


def lineage(spec: TrainSpec) -> dict[str, str]:
    """Return what a run was made from, by digest."""
    work = spec.work
    return {
        "run": spec.name,
        "code": Path(work.code).stem,
        "module": Path(work.module).stem,
        "data": work.source.digest if work.source is not None else Path(work.data).stem,
        "spec": sha256(spec.model_dump_json(exclude={"name"}).encode()),
    }


def _params(spec: TrainSpec) -> dict[str, str]:
    loop_params = spec.loop.model_dump(exclude_none=True) if spec.work.kind in ("module", "text") else {}
    workers = {"num_workers": spec.scaling.num_workers, "seed": spec.seed}
    return {key: str(value) for key, value in {**loop_params, **workers, **spec.config}.items()}


def _tags(spec: TrainSpec) -> dict[str, str]:
    return {f"cloudai.{name}": value for name, value in lineage(spec).items()}


def behind(home: Path) -> list[str]:
    """Return the names of the ended runs whose trackers are behind, the longest first."""
    folder = home / "behind"
    return [path.name for path in sorted(folder.iterdir(), key=_age)] if folder.is_dir() else []


def _age(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def mark_behind(home: Path, spec: TrainSpec) -> None:
    """Mark a run that is about to end, unless its tracker has everything of the last attempt."""
    if spec.tracking == NONE:
        return
    with contextlib.suppress(CloudAIError, OSError):  # a store that cannot be read says nothing: look again later
        folder = RunFiles(spec).folder
        attempt = JournalReader(folder).status().get("attempt")
        note = read_note(folder)
        if attempt is None or (note is not None and note.complete and note.attempt == attempt):
            return  # no worker has ever reported, or nothing is missing
    with contextlib.suppress(OSError):  # a full disk must not keep a run from ending
        (home / "behind").mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "behind" / spec.name).touch()


def unmark_behind(home: Path, name: str) -> None:
    """Forget that a run's tracker was behind."""
    (home / "behind" / name).unlink(missing_ok=True)
