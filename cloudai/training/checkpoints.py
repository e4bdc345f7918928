"""Checkpoints on the store: committed as a whole, checked when read, the one before the last kept for bad days.

A checkpoint is a folder ``checkpoints/step-<step>`` with one file for each rank. It exists from the moment that its
``manifest.json`` does, which names the digest of every file; so a worker that dies while writing leaves nothing that a
reader would take for a checkpoint, on any store.

A store that fails does not end the training: the checkpoint is left out with a warning, and the next one is tried.
On an object store a checkpoint takes one request for each part, one for its manifest, and two to tidy up.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cloudai.artifacts import trees
from cloudai.artifacts.store import Store, canonical_json, sha256
from cloudai.errors import CloudAIError, StoreError

__all__ = ["Checkpoint", "Checkpoints"]

log = logging.getLogger(__name__)
_FOLDER = "checkpoints"
_BRIEF = 10.0
"""Seconds that a training waits for a store to take a checkpoint, before it goes on without."""


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
        self._brief = store.patient(min(_BRIEF, store.patience))
        self._keep = keep

    def write_part(self, step: int, rank: int, tree: Any) -> str:
        """Write one rank's part, and return its digest for `commit`; empty where the store does not take it."""
        data = trees.dump(tree)
        try:
            self._brief.write(_part(step, rank), data)
        except StoreError as error:
            log.warning("the checkpoint of step %d is left out: %s", step, error.what)
            return ""
        return sha256(data)

    def commit(self, step: int, digests: Sequence[str]) -> bool:
        """Make the parts a checkpoint, and remove what is no longer needed; returns whether there is a checkpoint now."""
        if not all(digests):
            return False
        manifest = {"step": step, "parts": list(digests)}
        try:
            self._brief.write(f"{_folder(step)}/manifest.json", canonical_json(manifest))
        except StoreError as error:
            log.warning("the checkpoint of step %d is left out: %s", step, error.what)
            return False
        try:
            self._prune()
        except StoreError as error:
            log.warning("older checkpoints are not removed yet: %s", error.what)
        return True

    def steps(self) -> list[int]:
        """Return the steps of the folders there are, committed or not, in order."""
        names = self._store.list(_FOLDER)
        return sorted(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit())

    def latest(self, rank: int = 0) -> Checkpoint | None:
        """Return the newest checkpoint whose every part is intact; None where there is none.

        All ranks check all parts, so that all of them choose the same one.

        Raises
        ------
        StoreError
            If the store cannot be read.
        """
        for step in reversed(self.steps()):
            try:
                found = self._read(step, rank)
            except StoreError:
                raise  # it says nothing about the checkpoint: going back further would lose work
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

    def _prune(self) -> None:
        """Remove what is older than the kept checkpoints, among it parts that were never committed."""
        keys = self._brief.walk(_FOLDER)
        committed = sorted(_step_of(key) for key in keys if key.endswith("/manifest.json"))
        oldest_kept = committed[-self._keep :][0] if committed else 0
        old = [key for key in keys if _step_of(key) < oldest_kept]
        if old:
            self._brief.remove_files(old)


def _step_of(key: str) -> int:
    """Return the step that a file belongs to."""
    return int(key.removeprefix(f"{_FOLDER}/step-").partition("/")[0])


def _folder(step: int) -> str:
    return f"{_FOLDER}/step-{step:012d}"


def _part(step: int, rank: int) -> str:
    return f"{_folder(step)}/rank-{rank}.safetensors"
