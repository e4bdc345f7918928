"""What the worker is given: one JSON file in the run's folder."""

from __future__ import annotations

from dataclasses import dataclass

from cloudai.artifacts.store import Store
from cloudai.specs.training import TrainSpec

__all__ = ["JOB", "RunFiles"]

JOB = "job.json"


@dataclass(frozen=True)
class RunFiles:
    """Where the files of a run are."""

    spec: TrainSpec

    @property
    def store(self) -> Store:
        """The store that holds everything."""
        return Store(self.spec.store)

    @property
    def folder(self) -> Store:
        """The run's own folder."""
        return self.store.at(f"runs/{self.spec.name}")
