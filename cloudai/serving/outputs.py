"""A model's outputs as counts in cells, so that two versions' predictions can be compared while they come in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["OutputColumn", "first_places", "first_rows", "learnt"]

_MOST_COLUMNS = 16
_CELLS = 10
_OTHERS = "…"


@dataclass(frozen=True)
class OutputColumn:
    """One column of the outputs, its cells, and how many predictions of the two versions fell into each.

    Attributes
    ----------
    name : str
        Of the output, with the place of the column in it.
    edges : tuple of float
        The upper ends of a number's cells; the last cell has none.
    labels : tuple of str
        A category's cells; the last takes all others. One of the two is empty.
    counts : tuple of (share, new, old)
        For each share that requests were dealt by: the predictions in each cell.
    """

    name: str
    edges: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    counts: tuple[tuple[float, tuple[int, ...], tuple[int, ...]], ...] = ()

    def cells(self, values: np.ndarray) -> tuple[int, ...]:
        """Count values by cell."""
        if self.labels:
            known = {label: place for place, label in enumerate(self.labels)}
            places = np.array([known.get(str(value), len(self.labels) - 1) for value in values], dtype=int)
            return tuple(np.bincount(places, minlength=len(self.labels)).tolist())
        places = np.searchsorted(np.array(self.edges), values.astype(np.float64), side="left")
        return tuple(np.bincount(places, minlength=len(self.edges) + 1).tolist())

    def added(self, share: float, new: Sequence[int], old: Sequence[int]) -> OutputColumn:
        """Count more predictions, dealt by a share."""
        if self.counts and self.counts[-1][0] == share:
            *rest, (_, new_before, old_before) = self.counts
            new = [a + b for a, b in zip(new, new_before, strict=True)]
            old = [a + b for a, b in zip(old, old_before, strict=True)]
            return OutputColumn(self.name, self.edges, self.labels, (*rest, (share, tuple(new), tuple(old))))
        return OutputColumn(self.name, self.edges, self.labels, (*self.counts, (share, tuple(new), tuple(old))))

    def events(self) -> Iterator[list[tuple[float, tuple[int, int], tuple[int, int]]]]:
        """Give each set of cells whose share is compared, and its complement, as (share, (rows, in it), (rows, in it)).

        Of a number all that is up to each edge, so that the largest gap is that of Kolmogorov and Smirnov; of a category
        each cell.
        """
        cells = len(self.labels) or len(self.edges) + 1
        sets = [range(n, n + 1) for n in range(cells)] if self.labels else [range(n) for n in range(1, cells)]
        for chosen in sets:
            inside = [
                (share, (sum(new), sum(new[n] for n in chosen)), (sum(old), sum(old[n] for n in chosen)))
                for share, new, old in self.counts
            ]
            yield inside
            yield [(share, (rows, rows - n), (all_old, all_old - m)) for share, (rows, n), (all_old, m) in inside]

    def to_json(self) -> list[Any]:
        """Return plain JSON for the ledger."""
        return [self.name, list(self.edges), list(self.labels), [[s, list(new), list(old)] for s, new, old in self.counts]]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> OutputColumn:
        """Read what `to_json` returned."""
        name, edges, labels, counts = data
        return cls(name, tuple(edges), tuple(labels), tuple((s, tuple(new), tuple(old)) for s, new, old in counts))


def first_rows(outputs: Mapping[str, Any], ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the columns of the outputs, with the first row of each request: rows that came together are not independent.

    Where an output has several numbers a row, such as scores of classes, the place of the largest is a column too.
    """
    places, columns = first_places(ids), dict[str, np.ndarray]()
    for name, array in outputs.items():
        rows = np.asarray(array)[places]
        if rows.ndim == 1:
            columns[name] = rows
            continue
        flat = rows.reshape(len(rows), -1)
        if flat.dtype.kind == "f" and flat.shape[1] > 1:
            columns[f"{name}: largest"] = np.array([f"column {n}" for n in np.nan_to_num(flat, nan=-np.inf).argmax(axis=1)])
        columns |= {f"{name}[{n}]": flat[:, n] for n in range(min(flat.shape[1], _MOST_COLUMNS))}
    return columns


def first_places(ids: Sequence[str]) -> list[int]:
    """Return where the first row of each request is."""
    _, places = np.unique(np.asarray(ids), return_index=True)
    return sorted(map(int, places))


def learnt(name: str, values: np.ndarray) -> OutputColumn:
    """Choose a column's cells by what the stable version gave: a tenth of the rows in each, or the commonest categories."""
    many = values.dtype.kind in "iu" and len(np.unique(values)) > 2 * _CELLS
    if values.dtype.kind == "f" or many:
        finite = values[np.isfinite(values)]
        edges = np.unique(np.quantile(finite, np.arange(1, _CELLS) / _CELLS)) if len(finite) else np.zeros(1)
        return OutputColumn(name, edges=tuple(map(float, edges)))
    kinds, counts = np.unique(values.astype(str), return_counts=True)
    common = kinds[np.argsort(-counts, kind="stable")][: _CELLS - 1]
    return OutputColumn(name, labels=(*map(str, common), _OTHERS))
