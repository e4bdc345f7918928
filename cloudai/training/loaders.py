"""A loader of a user's own dataset whose place comes back, and whose chance depends on the row and not on who loads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from cloudai.errors import DataError
from cloudai.training import randomness

__all__ = ["Loader"]


class Loader:
    """Batches of a map-style dataset in an order of their own for each epoch; made by `cloudai.Context.loader`.

    Iterating yields what is left of the present epoch, and then the next epoch begins. A checkpoint that is reported while a
    batch is at hand counts it as done. What a dataset draws for a row, such as an augmentation, is drawn from the seed, the
    epoch and the row, so it is the same in the training's process and in any number of worker processes.

    Parameters
    ----------
    dataset : Dataset
        With ``__len__`` and ``__getitem__``.
    batch_size : int
        Rows of one batch, over all workers of the run together; each gets its share.
    seed : int
        Of the order and of what rows draw.
    rank, world_size : int
        Which worker of the run this is, and of how many.
    num_workers : int
        Processes that load rows beside the training; 0 loads them in its own.

    Raises
    ------
    DataError
        If the dataset has no length, or no row.

    Examples
    --------
    >>> loader = Loader(list(range(6)), batch_size=2, seed=0)
    >>> first = next(iter(loader))
    >>> again = Loader(list(range(6)), batch_size=2, seed=0)
    >>> again.load_state_dict(loader.state_dict())
    >>> sorted([*first.tolist(), *(row for batch in again for row in batch.tolist())])
    [0, 1, 2, 3, 4, 5]
    >>> again.epoch, again.step
    (1, 3)
    """

    def __init__(
        self, dataset: Any, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, num_workers: int = 0
    ) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            fix = "give a dataset with __len__ and __getitem__: only there can a row be found again"
            raise DataError(f"a {type(dataset).__name__} has no rows that can be counted", fix=fix)
        if len(dataset) < batch_size or batch_size < world_size:
            what = f"{len(dataset)} rows cannot be divided into batches of {batch_size} for {world_size} workers"
            raise DataError(what, fix="choose another batch_size")
        self._dataset, self._batch_size, self._seed = dataset, batch_size, seed
        self._rank, self._world, self._processes = rank, world_size, num_workers
        self.epoch, self._batch = 0, 0

    def __len__(self) -> int:
        """Return the batches of an epoch; rows that fill no batch are left out of it, others in each."""
        return len(self._dataset) // self._batch_size

    @property
    def step(self) -> int:
        """Batches that were given out, in all epochs."""
        return self.epoch * len(self) + self._batch

    def state_dict(self) -> dict[str, int]:
        """Return the place."""
        return {"epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a place."""
        self.epoch, self._batch = state["epoch"], state["batch"]

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches that are left of this epoch."""
        loader: DataLoader[Any] = DataLoader(
            _Seeded(self._dataset, self._seed, self.epoch, apart=self._processes > 0),
            batch_sampler=self._rows(),
            num_workers=self._processes,
            generator=torch.Generator(),  # or it would draw from the global one, a draw for each attempt
        )
        for batch in loader:
            self._batch += 1
            yield batch
        self.epoch, self._batch = self.epoch + 1, 0

    def _rows(self) -> list[list[int]]:
        """Return the rows of each batch that is left, of this worker of the run."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self._dataset), generator=generator).tolist()
        share = self._batch_size - self._batch_size % self._world
        begins = range(self._batch * self._batch_size, len(self) * self._batch_size, self._batch_size)
        return [order[begin : begin + share][self._rank :: self._world] for begin in begins]


class _Seeded(Dataset[Any]):
    """A dataset whose rows draw from seeds of their own."""

    def __init__(self, dataset: Any, seed: int, epoch: int, *, apart: bool) -> None:
        self._dataset, self._seed, self._epoch, self._apart = dataset, seed, epoch, apart

    def __getitem__(self, row: int) -> Any:
        before = None if self._apart else randomness.snapshot()  # the training's own chance must not notice
        mixed = np.random.SeedSequence([self._seed, self._epoch, row]).generate_state(1)
        randomness.seed_all(int(mixed[0]), 0)
        try:
            return self._dataset[row]
        finally:
            if before is not None:
                randomness.restore(before)
