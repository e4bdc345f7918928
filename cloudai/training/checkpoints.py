"""Checkpoints on the store: committed as a whole, checked when read, the one before the last kept for bad days.

A checkpoint is a folder ``checkpoints/step-<step>`` with one file for each rank. It exists from the moment that its
``manifest.json`` does, which names the digest of every file; so a worker that dies while writing leaves nothing that a
reader would take for a checkpoint, on any store.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cloudai.artifacts import trees
from cloudai.artifacts.store import Store, canonical_json, sha256
from cloudai.errors import CloudAIError

__all__ = ["Checkpoint", "Checkpoints"]

log = logging.getLogger(__name__)
_FOLDER = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """What one rank finds when it comes back."""

    step: int
    shared: Any
    """The tree that rank 0 wrote: model, optimiser, progress."""
    own: Any
    """The tree that this rank wrote: random states, its own buffers."""


class Checkpoints:
    """The checkpoints of one run.

    Parameters
    ----------
    store : Store
        The run's folder.
    keep : int
        How many committed checkpoints are kept.
    """

    def __init__(self, store: Store, keep: int) -> None:
        self._store = store
        self._keep = keep

    def write_part(self, step: int, rank: int, tree: Any) -> str:
        """Write one rank's part, and return its digest for `commit`."""
        data = trees.dump(tree)
        self._store.write(_part(step, rank), data)
        return sha256(data)

    def commit(self, step: int, digests: Sequence[str]) -> None:
        """Make the parts a checkpoint, and remove what is no longer needed."""
        manifest = {"step": step, "parts": list(digests)}
        self._store.write(f"{_folder(step)}/manifest.json", canonical_json(manifest))
        self._prune(step)

    def steps(self) -> list[int]:
        """Return the steps of the folders there are, committed or not, in order."""
        names = self._store.list(_FOLDER)
        return sorted(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit())

    def latest(self, rank: int = 0) -> Checkpoint | None:
        """Return the newest checkpoint whose every part is intact; None where there is none.

        All ranks check all parts, so that all of them choose the same one.
        """
        for step in reversed(self.steps()):
            try:
                found = self._read(step, rank)
            except (CloudAIError, KeyError, TypeError) as error:
                log.warning("the checkpoint of step %d is damaged (%s); going back to the one before", step, error)
                continue
            if found is not None:
                return found
        return None

    def _read(self, step: int, rank: int) -> Checkpoint | None:
        manifest = self._store.read_json(f"{_folder(step)}/manifest.json")
        if manifest is None:
            return None
        parts = [self._store.read_verified(_part(step, i), digest) for i, digest in enumerate(manifest["parts"])]
        own = trees.load(parts[rank])["own"] if rank < len(parts) else None
        return Checkpoint(step, trees.load(parts[0])["shared"], own)

    def _prune(self, newest: int) -> None:
        """Remove folders older than the kept ones, among them those that were never committed."""
        committed = [step for step in self.steps() if self._store.exists(f"{_folder(step)}/manifest.json")]
        oldest_kept = committed[-self._keep :][0] if committed else newest
        for step in self.steps():
            if step < oldest_kept:
                self._store.remove(_folder(step))


def _folder(step: int) -> str:
    return f"{_FOLDER}/step-{step:012d}"


def _part(step: int, rank: int) -> str:
    return f"{_folder(step)}/rank-{rank}.safetensors"
