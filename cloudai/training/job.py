"""What the worker is given, one JSON file in the run's folder, and with which codes it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloudai.artifacts.store import Store
from cloudai.specs.training import TrainSpec

__all__ = ["FAILED", "JOB", "LIMITED", "LOST", "NOT_EXACT", "PREEMPTED", "STOPPED", "SUCCEEDED", "WORKER_PATIENCE", "RunFiles"]

JOB = "job.json"
WORKER_PATIENCE = 300.0
"""For how many seconds a worker tries again what it cannot do without, where a store does not answer."""

SUCCEEDED, FAILED, LOST, PREEMPTED, LIMITED, STOPPED = 0, 1, 75, 80, 81, 143
"""Exit codes: 1 is an error that would come again, 75 one that would not (EX_TEMPFAIL of sysexits.h), such as a lost peer;
143 is what a shell gives for SIGTERM. 80 is a machine about to be taken away, 81 a limit of the run: both lie between those of
sysexits.h, which end at 78, and those of shells, which begin at 126."""

NOT_EXACT: Mapping[str, str] = {
    "function": "the training loop is your own function: cloudai cannot know all of its state",
    "benchmark": "a benchmark measures time, which is another each time",
}
"""By the kind of work, why the result may depend on interruptions; other kinds say so themselves."""


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
