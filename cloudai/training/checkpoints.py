"""Checkpoints on the store: committed as a whole, checked when read, the one before the last kept for bad days.

A checkpoint is a folder ``checkpoints/step-<step>`` with one file for each rank. It exists from the moment that its
``manifest.json`` does, which names the digest of every file; so a worker that dies while writing leaves nothing that a
reader would take for a checkpoint, on any store.

A store that fails does not end the training: the checkpoint is left out with a warning, and the next one is tried.
On an object store a checkpoint takes one request for each part, one for its manifest, and two to tidy up.

Training stands still only while the state is copied: the copy goes to the store beside it (`Writer`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cloudai.artifacts import trees
from cloudai.artifacts.store import Store, canonical_json, sha256
from cloudai.errors import CloudAIError, StoreError

__all__ = ["Checkpoint", "Checkpoints", "Writer"]

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
        self._damaged: set[int] = set()

    def write_part(self, step: int, rank: int, part: trees.Snapshot) -> str:
        """Write one rank's part, and return its digest for `commit`; empty where the store does not take it."""
        pieces = list(part.chunks())
        try:
            self._brief.write(_part(step, rank), pieces)
        except StoreError as error:
            log.warning("the checkpoint of step %d is left out: %s", step, error.what)
            return ""
        return sha256(pieces)

    def commit(self, step: int, digests: Sequence[str], at: float = 0.0) -> bool:
        """Make the parts a checkpoint, and remove what is no longer needed; returns whether there is a checkpoint now.

        Parameters
        ----------
        step : int
            The step of the state that the parts hold.
        digests : sequence of str
            As `write_part` has returned them for each rank.
        at : float
            The unix time of that state.
        """
        if not all(digests):
            return False
        manifest = {"step": step, "at": at, "parts": list(digests)}
        self._damaged.discard(step)
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
                self._damaged.add(step)
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
        """Remove what is damaged, and what is older than the kept checkpoints, among it parts that were never committed."""
        steps = {key: step for key in self._brief.walk(_FOLDER) if (step := _step_of(key)) is not None}
        whole = sorted({step for key, step in steps.items() if key.endswith("/manifest.json")} - self._damaged)
        oldest_kept = whole[-self._keep :][0] if whole else 0
        old = [key for key, step in steps.items() if step < oldest_kept or step in self._damaged]
        if old:
            self._brief.remove_files(old)


class Writer:
    """Writes checkpoints of one rank, one at a time, while the training goes on.

    Parameters
    ----------
    checkpoints : Checkpoints
        Those of the run.
    rank : int
        Whose parts are written.
    commit : callable
        Makes the parts of a step a checkpoint, in this writer's thread: takes the step and the digests of all ranks.
    alone : bool
        Whether there is no other rank: then a part counts as soon as it is written.
    """

    def __init__(
        self, checkpoints: Checkpoints, rank: int, commit: Callable[[int, Sequence[str]], None], *, alone: bool
    ) -> None:
        self._checkpoints, self._rank, self._commit, self._alone = checkpoints, rank, commit, alone
        self._snapshot = trees.Snapshot()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cloudai-checkpoint")
        self._step = -1
        self._part: Future[str] | None = None
        self._committing: Future[None] | None = None
        self.copying = 0.0
        """The seconds for which the last state was copied."""
        self.seconds = 0.0
        """How long the last part was on its way."""

    @property
    def writing(self) -> bool:
        """Whether a part of this rank is on its way."""
        return self._part is not None and not self._part.done()

    @property
    def undecided(self) -> bool:
        """Whether there is a part of which the other ranks must say whether it counts."""
        return self._part is not None

    @property
    def idle(self) -> bool:
        """Whether the next checkpoint can begin."""
        return self._part is None and (self._committing is None or self._committing.done())

    def begin(self, step: int, tree: Any) -> None:
        """Copy this rank's part of a checkpoint, and send it on its way; the one before must be settled.

        Raises
        ------
        SpecError
            If the tree holds something that cannot be saved.
        """
        self.wait()
        begin = time.monotonic()
        self._snapshot.take(tree)
        self.copying = time.monotonic() - begin
        self._step = step
        if self._alone:
            self._committing = self._pool.submit(lambda: self._commit(step, [self._write(step)]))
        else:
            self._part = self._pool.submit(self._write, step)

    def _write(self, step: int) -> str:
        begin = time.monotonic()
        digest = self._checkpoints.write_part(step, self._rank, self._snapshot)
        self.seconds = time.monotonic() - begin
        return digest

    def digest(self) -> str:
        """Wait for the part, and return its digest; empty where the store did not take it."""
        assert self._part is not None
        digest = self._part.result()
        self._part = None
        return digest

    def settle(self, digests: Sequence[str]) -> None:
        """Commit, beside the training, the parts of which these are the digests."""
        self._committing = self._pool.submit(self._commit, self._step, digests)

    def wait(self) -> None:
        """Wait until what was begun or settled is committed; what went wrong with that is raised here."""
        if self._committing is not None:
            self._committing.result()
            self._committing = None


def _step_of(key: str) -> int | None:
    """Return the step that a file belongs to; None of a file that is not ours."""
    step = key.removeprefix(f"{_FOLDER}/step-").partition("/")[0]
    return int(step) if step.isdigit() else None


def _folder(step: int) -> str:
    return f"{_FOLDER}/step-{step:012d}"


def _part(step: int, rank: int) -> str:
    return f"{_folder(step)}/rank-{rank}.safetensors"
