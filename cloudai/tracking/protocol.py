"""What a tracker must do. Plain values only: a tracker of another package needs nothing of cloudai but this module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

__all__ = ["Checkable", "Factory", "Row", "TrackedModel", "TrackedRun", "Tracker"]


class Row(NamedTuple):
    """Metrics at a step; `at` is the unix time at which they were reported."""

    step: int
    metrics: Mapping[str, float]
    at: float


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when its record begins."""

    identity: str
    """32 hexadecimal digits that no other run has; whoever brings them goes on with the same record."""
    name: str
    experiment: str
    """What the runs of one model are gathered under: the model's name."""
    started_at: float = 0.0
    """Unix time."""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrackedModel:
    """The model that a run made."""

    name: str
    version: str
    uri: str
    digest: str


class Tracker(Protocol):
    """Where a run's parameters, metrics and model are recorded.

    Every call may come again, from this object or from a new one in another process, because nobody knew whether it had
    arrived; the record is then as if it had come once. After each `start`, all rows of the run so far are sent again. A call
    may raise anything and take any time: it is made from a thread that nobody waits for, and made again later.
    """

    def start(self, run: TrackedRun) -> None:
        """Begin the record of a run, or go on with it where it was begun before, also where it was ended."""
        ...

    def log(self, rows: Sequence[Row]) -> None:
        """Record rows of metrics."""
        ...

    def register(self, model: TrackedModel) -> None:
        """Record the model that the run made."""
        ...

    def end(self, succeeded: bool, at: float) -> None:
        """End the record; the run ended at a unix time."""
        ...


class Checkable(Protocol):
    """A tracker that can be asked whether it is there; this is what ``cloudai doctor`` calls where there is such a method."""

    def check(self) -> str:
        """Say in words where it is, or raise what is wrong. It writes nothing and takes seconds at most."""
        ...


Factory = Callable[[str, Path], Tracker]
"""Makes a tracker from its address and from a folder that is its own: the entry point of the group ``cloudai.trackers`` whose
name is the address's scheme. It touches neither the network nor the folder; `Tracker.start` does."""
