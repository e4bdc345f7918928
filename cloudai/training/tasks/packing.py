"""Texts of unlike length in blocks of like length: best fit, nothing cut that fits into a block."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

__all__ = ["packed"]


def packed(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Put pieces into blocks of at most `size`, the longest first, each where the least room is left over.

    Source: Ding et al. 2024, "Fewer Truncations Improve Language Modeling", https://arxiv.org/abs/2404.10830

    Returns
    -------
    list of lists of int
        The pieces of each block, by their place in `lengths`.

    Examples
    --------
    >>> packed([3, 5, 2, 6], 8)
    [[3, 2], [1, 0]]
    """
    rooms: list[tuple[int, int]] = []  # room and number of blocks that are not full, in order
    blocks: list[list[int]] = []
    for piece in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        place = bisect.bisect_left(rooms, (lengths[piece], -1))
        room, block = rooms.pop(place) if place < len(rooms) else (size, len(blocks))
        if block == len(blocks):
            blocks.append([])
        blocks[block].append(piece)
        if room > lengths[piece]:
            bisect.insort(rooms, (room - lengths[piece], block))
    return blocks
