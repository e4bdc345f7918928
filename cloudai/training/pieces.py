"""Pieces of files, read forward in chunks: row groups of parquet, and csv and jsonl files as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloudai.artifacts.patience import persist
from cloudai.specs.training import Source, SourceFile
from cloudai.training import readers, tables

__all__ = ["CHUNK", "Piece", "Reader", "pieces_of"]

CHUNK = 4096
"""Rows that are read together. Chunks begin at multiples of it, counted from the first row of their piece."""


@dataclass(frozen=True)
class Piece:
    """A part of a file that is read from its beginning to its end.

    Attributes
    ----------
    file : int
        Which of the source's files.
    group : int
        Which row group of it; 0 of a file that has none.
    first : int
        How many rows of the file come before.
    rows : int or None
        How many rows it has; None where that is not known before it is read.
    """

    file: int
    group: int
    first: int
    rows: int | None


def pieces_of(source: Source, patience: float) -> list[Piece]:
    """Return the pieces of all files, in their order.

    Raises
    ------
    DataError
        If a file is not what it was when the run was asked for.
    StoreError
        If a place cannot be reached.
    """
    found = []
    for number, file in enumerate(source.files):
        tables.check_unchanged(file, patience)
        found += [Piece(number, 0, 0, None)] if source.format != "parquet" else _groups(number, file, patience)
    return found


def _groups(number: int, file: SourceFile, patience: float) -> list[Piece]:
    sizes = persist(lambda: readers.group_sizes(file.path), tables.place(file.path), patience)
    firsts = np.cumsum([0, *sizes])
    return [Piece(number, group, int(first), rows) for group, (first, rows) in enumerate(zip(firsts, sizes, strict=False))]


class Reader:
    """Reads a piece forward, chunk by chunk; what is left out is not turned into arrays.

    Parameters
    ----------
    source : Source
        What is taken from the file.
    piece : Piece
        Which part of it.
    patience : float
        For how many seconds a place that does not answer is tried again.
    """

    def __init__(self, source: Source, piece: Piece, patience: float) -> None:
        self.piece = piece
        self._source, self._patience = source, patience
        self._path = source.files[piece.file].path
        self._tables: Iterator[Any] | None = None
        self._at = 0

    def chunks(self) -> Iterator[tuple[int, int, Any]]:
        """Yield where each chunk begins, counted from the first row of the piece, how many rows it has, and its table.

        There is no table where it need not be read to know that.
        """
        if self.piece.rows is not None:
            for start in range(0, self.piece.rows, CHUNK):
                yield start, min(CHUNK, self.piece.rows - start), None
            return
        start = 0
        while (table := self._table(start)) is not None:
            yield start, len(table), table
            start += len(table)

    def read(self, start: int, table: Any = None) -> dict[str, np.ndarray]:
        """Return the columns of the chunk that begins here, checked.

        Raises
        ------
        DataError
            If a column is missing, a value is missing, infinite or no number.
        StoreError
            If the place cannot be reached.
        """
        found = self._table(start) if table is None else table
        where = f"{self._path}, counted from row {self.piece.first + start + 1}"
        kinds = self._source.kinds
        return {name: readers.column_array(found.column(name), name, kind, where) for name, kind in kinds.items()}

    def _table(self, start: int) -> Any:
        return persist(lambda: self._forward_to(start), tables.place(self._path), self._patience)

    def _forward_to(self, start: int) -> Any:
        """Return the chunk that begins here, or None at the end; after a failure the piece is read from its beginning."""
        if self._tables is None or self._at > start:
            self._tables, self._at = readers.chunks(self._path, self._source, self.piece.group, CHUNK), 0
        try:
            for table in self._tables:
                begin, self._at = self._at, self._at + len(table)
                if begin == start:
                    return table
        except Exception:
            self._tables = None
            raise
        return None
