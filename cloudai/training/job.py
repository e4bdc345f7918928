"""What the worker is given: one JSON file in the run's folder."""

from __future__ import annotations

from dataclasses import dataclass

from cloudai.artifacts.store import Store
from cloudai.specs.training import TrainSpec

__all__ = ["JOB", "WORKER_PATIENCE", "RunFiles"]

JOB = "job.json"
WORKER_PATIENCE = 300.0
"""For how many seconds a worker tries again what it cannot do without, where a store does not answer."""


@dataclass(frozen=True)
class RunFiles:
    """Where the files of a run are."""

    spec: TrainSpec
    patience: float = 10.0

    @property
    def store(self) -> Store:
        """The store that holds everything."""
        return Store(self.spec.store, patience=self.patience)

    @property
    def folder(self) -> Store:
        """The run's own folder."""
        return self.store.at(f"runs/{self.spec.name}")
