"""Data larger than memory: rows that are read while they are trained on, in an order that follows from the seed alone.

A file is read in pieces: the row groups of a parquet file, or a csv or jsonl file as a whole. Of each piece come chunks of
rows. An epoch draws an order of the pieces, reads some of them in turns, and mixes the rows of a window of chunks; batches are
cut from that. So memory holds two windows, whatever the data's size, and every attempt sees the same batches in the same order.

Which rows are held back to measure the model is drawn chunk by chunk from the seed and the chunk's position, so it does not
depend on what has been read.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from cloudai.errors import DataError
from cloudai.specs.training import Loop, Source
from cloudai.training.data import assembled
from cloudai.training.examples import Supervised
from cloudai.training.loop import batches_of
from cloudai.training.pieces import CHUNK, Piece, Reader, pieces_of

__all__ = ["Stream"]

_TURNS = 4
"""So many pieces are read in turns, so that a batch does not come from one file alone."""
_WINDOW = 16
"""Chunks whose rows are mixed."""
_PIECES = 8
"""With so many pieces for each worker, one has at most about an eighth more rows than another, which are left out."""
_MEASURED = 1024
"""Rows that are measured together."""

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Chunk:
    """Some rows of a piece, of which some are held back."""

    reader: Reader
    start: int
    rows: int
    table: Any
    """Its rows, where they had to be read to count them."""
    held: int

    def read(self, *, held: bool, seed: int) -> Columns:
        """Return the rows that are held back, or the others, in the order of the file."""
        columns = self.reader.read(self.start, self.table)
        piece = self.reader.piece
        drawn = np.random.default_rng([seed, piece.file, piece.first + self.start]).permutation(self.rows)
        chosen = np.sort(drawn[: self.held] if held else drawn[self.held :])
        return {name: column[chosen] for name, column in columns.items()}


class Stream:
    """The rows of files, batch by batch: what a loop takes where they do not fit into memory.

    Parameters
    ----------
    source : Source
        The files, and what is taken from them.
    loop : Loop
        The size of a batch, the share held back, the loss.
    seed : int
        What order and held-back rows are drawn from.
    rank, world_size : int
        Which worker this is, and of how many.
    device : torch.device
        Where the module is.
    patience : float
        For how many seconds a place that does not answer is tried again.

    Notes
    -----
    Of parquet each worker reads pieces of its own, where there are at least eight for each; what one has more than another is
    left out, other rows in each epoch. Of csv and jsonl, where nobody knows how many rows there are, every worker reads all
    files and takes its own rows of each batch.
    """

    def __init__(
        self,
        source: Source,
        loop: Loop,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        patience: float = 10.0,
    ) -> None:
        self._source, self._loop, self._seed = source, loop, seed
        self.device = device
        self.alive: Callable[[], None] = lambda: None
        """Called for each chunk that is read: so long as that goes on, nothing hangs."""
        self._rank, self._world = rank, world_size
        self._patience = patience
        self._pieces = pieces_of(source, patience)
        self._counted = all(piece.rows is not None for piece in self._pieces)
        self._train = [self._rows_to_train(piece) for piece in self._pieces] if self._counted else []
        if self._counted and not sum(self._train):
            raise _nothing()
        self._sharded = world_size > 1 and self._counted and self._are_enough()

    @property
    def steps_per_epoch(self) -> int | None:
        """How many batches an epoch has; None where that is not known before it is over (csv and jsonl).

        With several workers that read parquet it may differ from epoch to epoch by what is left out, so it is None there too.
        """
        if not self._counted or self._sharded:
            return None
        return batches_of(sum(self._train), self._loop.batch_size, self._world)

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Supervised]:
        """Yield this worker's part of each batch of an epoch.

        Parameters
        ----------
        epoch : int
            From 0; each has an order of its own.
        skip : int
            How many batches to leave out at the beginning. Of parquet they are not read, but for those of the same row group.

        Raises
        ------
        DataError
            If a file is not what it was when the run was asked for, or holds something that is no number.
        StoreError
            If a place cannot be reached.
        """
        if self._sharded:
            mine, count = self._assigned(epoch)
            whole = self._cut(epoch, mine, self._loop.batch_size // self._world, skip, spare=0)
            return map(self._examples, islice(whole, max(0, count - skip)))
        whole = self._cut(epoch, self._order(epoch), self._loop.batch_size, skip, spare=2 * self._world)
        return map(self._examples, map(self._share, whole))

    def measure(self, module: torch.nn.Module) -> dict[str, float]:
        """Return metrics of the rows held back, of a module that is in evaluation mode; they are read for it."""
        total: dict[str, float] = {}
        count = 0
        for columns in self._held():
            examples = self._examples(columns)
            for name, value in examples.measure(module, torch.arange(len(examples))).items():
                total[name] = total.get(name, 0.0) + value * len(examples)
            count += len(examples)
        return {name: value / count for name, value in total.items()}

    def sample(self, rows: int) -> dict[str, np.ndarray]:
        """Return the first rows that are trained on, as arrays of ``inputs`` and ``targets``; in every attempt the same.

        Raises
        ------
        DataError
            If there are none.
        """
        found: list[Columns] = []
        for columns in self._cut(0, self._order(0), min(rows, CHUNK), 0, spare=0):
            found.append(columns)
            if sum(map(_length, found)) >= rows:
                break
        if not found:
            raise _nothing()
        return {name: array[:rows] for name, array in _joined(found).items()}

    def _examples(self, arrays: Columns) -> Supervised:
        return Supervised(arrays["inputs"], arrays["targets"], self._loop.loss, self.device)

    def _share(self, columns: Columns) -> Columns:
        """Return this worker's rows of a batch; a last batch is cut so that all have equally many."""
        count = _length(columns)
        usable = count - count % self._world if count >= self._world else 0
        chosen = slice(self._rank, usable, self._world) if usable else slice(0, 1)
        return {name: column[chosen] for name, column in columns.items()}

    def _rows_to_train(self, piece: Piece) -> int:
        assert piece.rows is not None
        starts = range(0, piece.rows, CHUNK)
        return piece.rows - sum(self._held_of(piece, start, min(CHUNK, piece.rows - start)) for start in starts)

    def _held_of(self, piece: Piece, start: int, rows: int) -> int:
        """Return how many rows of a chunk are held back: the share of them, rounded up or down by lot."""
        lot = np.random.default_rng([self._seed, piece.file, piece.first + start, rows]).random()
        return int(self._loop.validation * rows + lot)

    def _order(self, epoch: int) -> Sequence[Piece]:
        drawn = np.random.default_rng([self._seed, epoch]).permutation(len(self._pieces))
        return [self._pieces[index] for index in drawn]

    def _are_enough(self) -> bool:
        """Whether each worker can have pieces of its own, and little is left out, and never all."""
        size = self._loop.batch_size // self._world
        return len(self._pieces) >= _PIECES * self._world and sum(self._train) / self._world - max(self._train) >= size

    def _assigned(self, epoch: int) -> tuple[list[Piece], int]:
        """Return the pieces that this worker reads, and how many whole batches all have.

        Each piece goes to the worker that has the fewest rows so far.
        """
        train = dict(zip(self._pieces, self._train, strict=True))
        workers = [(0, rank) for rank in range(self._world)]
        mine = []
        for piece in self._order(epoch):
            rows, rank = heapq.heappop(workers)
            heapq.heappush(workers, (rows + train[piece], rank))
            mine += [piece] if rank == self._rank else []
        return mine, min(rows for rows, _ in workers) // (self._loop.batch_size // self._world)

    def _chunks(self, pieces: Sequence[Piece]) -> Iterator[_Chunk]:
        """Yield the chunks of pieces, of some pieces in turns."""
        waiting = iter(pieces)
        turns = [self._chunks_of(piece) for piece in islice(waiting, _TURNS)]
        while turns:
            chunks = turns.pop(0)
            chunk = next(chunks, None)
            if chunk is not None:
                yield chunk
                turns.append(chunks)
                continue
            follower = next(waiting, None)
            if follower is not None:
                turns.append(self._chunks_of(follower))

    def _chunks_of(self, piece: Piece) -> Iterator[_Chunk]:
        reader = Reader(self._source, piece, self._patience)
        for start, rows, table in reader.chunks():
            self.alive()
            yield _Chunk(reader, start, rows, table, self._held_of(piece, start, rows))

    def _windows(self, pieces: Sequence[Piece]) -> Iterator[list[_Chunk]]:
        chunks = self._chunks(pieces)
        while window := list(islice(chunks, _WINDOW)):
            yield window

    def _mixed(self, epoch: int, pieces: Sequence[Piece], skip: int) -> Iterator[Columns]:
        """Yield the rows to train on, window by window, without the first ones; the next window is read meanwhile."""
        with ThreadPoolExecutor(1, thread_name_prefix="cloudai-stream") as pool:
            ahead = iter(self._read_windows(epoch, pieces, skip))
            coming = pool.submit(next, ahead, None)
            while (columns := coming.result()) is not None:
                coming = pool.submit(next, ahead, None)
                yield columns

    def _read_windows(self, epoch: int, pieces: Sequence[Piece], skip: int) -> Iterator[Columns]:
        before = 0
        for number, window in enumerate(self._windows(pieces)):
            count = sum(chunk.rows - chunk.held for chunk in window)
            if count and before + count > skip:
                arrays = self._arrays([chunk.read(held=False, seed=self._seed) for chunk in window])
                order = np.random.default_rng([self._seed, epoch, number]).permutation(count)[max(0, skip - before) :]
                yield {name: array[order] for name, array in arrays.items()}
            before += count

    def _cut(self, epoch: int, pieces: Sequence[Piece], size: int, skip: int, *, spare: int) -> Iterator[Columns]:
        """Yield batches; a rest of fewer than `spare` rows is part of the last one."""
        left: Columns | None = None
        for columns in self._mixed(epoch, pieces, skip * size):
            rows = columns if left is None else _joined([left, columns])
            count, begin = _length(rows), 0
            while count - begin >= size + min(size, spare):
                yield {name: column[begin : begin + size] for name, column in rows.items()}
                begin += size
            left = {name: column[begin:] for name, column in rows.items()}
        if left is not None and _length(left):
            yield left

    def _arrays(self, columns: Sequence[Columns]) -> Columns:
        return assembled(_joined(columns), self._source).arrays

    def _held(self) -> Iterator[Columns]:
        """Yield the rows held back, in the order of the files, some at once."""
        found: list[Columns] = []
        for piece in self._pieces if self._loop.validation else ():
            for chunk in self._chunks_of(piece):
                found += [chunk.read(held=True, seed=self._seed)] if chunk.held else []
                if sum(map(_length, found)) >= _MEASURED:
                    yield self._arrays(found)
                    found = []
        if found:
            yield self._arrays(found)


def _nothing() -> DataError:
    return DataError("no row is left to train on", fix="give more rows, or lower validation=")


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def _joined(parts: Sequence[Columns]) -> dict[str, Any]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
