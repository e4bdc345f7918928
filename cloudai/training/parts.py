"""A step in parts: which rows go through the module together, so that little is padded and all fits into memory."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["dealt", "grouped", "longest_first", "parts_of"]

_CALL = {"cpu": 32, "cuda": 2048}
"""What one more pass through a module costs, in tokens that could be computed instead. A pass of a transformer is some hundred
operations, each with a cost of its own: about 10 µs on a processor that computes a token in a few hundred, about 4 µs on a GPU
that computes one in a few. Rounded, and the same for all machines of a kind: parts must not depend on measured times."""

_LARGEST_POOL, _FEWEST_POOLS = 50, 4
"""The most batches whose rows are sorted together, and the fewest such pools, so that other rows meet in each epoch: those of
transformers (``get_length_grouped_indices`` in its trainer_pt_utils.py)."""


def grouped(order: torch.Tensor, lengths: np.ndarray, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """Return an epoch's order in which the rows of each batch are of like length, and the batches in random order.

    Parameters
    ----------
    order : Tensor, int64[n]
        The rows in random order. What is left over at its end stays there.
    lengths : ndarray
        The tokens of each row of the data.

    Examples
    --------
    >>> lengths = np.array([1, 9, 1, 9] * 4)
    >>> order = grouped(torch.arange(16), lengths, 2, torch.Generator().manual_seed(0))
    >>> sorted({tuple(lengths[batch].tolist()) for batch in order.numpy().reshape(8, 2)})
    [(1, 1), (9, 9)]
    """
    whole = len(order) // batch_size
    order, rest = order[: whole * batch_size], order[whole * batch_size :]
    pool = batch_size * max(1, min(_LARGEST_POOL, whole // _FEWEST_POOLS))
    batches = torch.cat([longest_first(rows, lengths) for rows in torch.split(order, pool)]).view(whole, batch_size)
    return torch.cat([batches[torch.randperm(whole, generator=generator)].flatten(), rest])


def longest_first(rows: torch.Tensor, lengths: np.ndarray | None) -> torch.Tensor:
    """Return the rows in falling order of length; without lengths as they are."""
    if lengths is None:
        return rows
    return rows[torch.from_numpy(np.argsort(-lengths[rows.numpy()], kind="stable"))]


def dealt(rows: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
    """Return one worker's rows of a step, dealt forth and back: who got the longer one of a round gets the shorter of the next.

    Parameters
    ----------
    rows : Tensor, int64[n]
        In falling order of length; equally many for each worker.

    Examples
    --------
    >>> [dealt(torch.arange(6), rank, 2).tolist() for rank in range(2)]
    [[0, 3, 4], [1, 2, 5]]
    """
    rounds = rows.view(-1, world_size)
    places = torch.arange(len(rounds)) % 2 * (world_size - 1 - 2 * rank) + rank
    return rounds[torch.arange(len(rounds)), places]


def parts_of(rows: torch.Tensor, lengths: np.ndarray | None, most: int | None, device: str = "cpu") -> list[torch.Tensor]:
    """Divide the rows of a step into parts that are computed one after the other.

    Parameters
    ----------
    rows : Tensor, int64[n]
        In falling order of length, where they have lengths.
    lengths : ndarray or None
        The tokens of each row of the data.
    most : int or None
        The most rows of a part.
    device : str
        The kind of device that computes them.

    Notes
    -----
    With lengths, the parts are those that cost least when each is padded to its longest row and each pass costs something by
    itself; found by dynamic programming over the places where a part may end.

    Examples
    --------
    >>> lengths = np.array([500, 10, 480, 12])
    >>> parts_of(longest_first(torch.arange(4), lengths), lengths, None)
    [tensor([0, 2]), tensor([3, 1])]
    """
    if lengths is None or len(rows) < 2:
        return list(torch.split(rows, most or len(rows)))
    return [
        rows[begin:end] for begin, end in _cheapest(lengths[rows.numpy()], most or len(rows), _CALL.get(device, _CALL["cuda"]))
    ]


def _cheapest(lengths: np.ndarray, most: int, call: int) -> list[tuple[int, int]]:
    """Return where the parts begin and end; `lengths` fall."""
    count = len(lengths)
    cost, begins = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        first = max(0, end - most)
        choices = np.arange(first, end)
        total = cost[first:end] + call + (end - choices) * lengths[first:end]
        best = int(total.argmin())
        cost[end], begins[end] = total[best], choices[best]
    bounds = [count]
    while bounds[-1] > 0:
        bounds.append(int(begins[bounds[-1]]))
    return [(begin, end) for begin, end in zip(bounds[::-1], bounds[-2::-1], strict=False)]
