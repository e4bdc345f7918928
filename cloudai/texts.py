"""Texts in arrays: recognised, checked, and laid out as plain numbers for files that hold only those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["first_bad", "is_text", "object_array", "pack", "unpack"]


def is_text(array: np.ndarray) -> bool:
    """Whether an array holds texts only, in any of numpy's ways to hold them.

    Examples
    --------
    >>> [is_text(np.array(values)) for values in (["a", "b"], [1, 2])], is_text(np.array(["a", None], dtype=object))
    ([True, False], False)
    """
    if array.dtype.kind in "UT":
        return True
    return array.dtype.kind == "O" and all(isinstance(value, str) for value in array.ravel().tolist())


def object_array(texts: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return texts as an array of objects: numpy's own text dtype gives each the width of the longest."""
    return np.array(texts, dtype=object) if len(texts) else np.zeros(0, dtype=object)


def first_bad(array: np.ndarray) -> tuple[int, Any] | None:
    """Return the place and value of the first element that is no text, or no valid Unicode; None where all are.

    Examples
    --------
    >>> first_bad(np.array(["a", None], dtype=object)), first_bad(np.array(["a"]))
    ((1, None), None)
    """
    for place, value in enumerate(array.ravel().tolist()):
        if not isinstance(value, str) or not _is_unicode(value):
            return place, value
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can carry and UTF-8 cannot
        return False
    return True


def pack(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the texts' bytes in one row, uint8[total], and where each of them ends, int64 in the array's shape."""
    encoded = [str(text).encode("utf-8", "surrogatepass") for text in array.ravel().tolist()]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends.reshape(array.shape)


def unpack(data: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the array of objects that `pack` was given.

    Raises
    ------
    ValueError
        If the ends do not fit the bytes.

    Examples
    --------
    >>> unpack(*pack(np.array([["yes", ""], ["no", "über"]]))).tolist()
    [['yes', ''], ['no', 'über']]
    """
    content, flat = data.tobytes(), ends.ravel().tolist()
    begins = [0, *flat[:-1]] if flat else []
    if any(begin > end for begin, end in zip(begins, flat, strict=True)) or (flat[-1] if flat else 0) != len(content):
        raise ValueError("the ends of the texts do not fit their bytes")
    texts = np.empty(len(flat), dtype=object)
    texts[:] = [content[begin:end].decode("utf-8", "surrogatepass") for begin, end in zip(begins, flat, strict=True)]
    return texts.reshape(ends.shape)
