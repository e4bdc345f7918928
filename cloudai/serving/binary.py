"""Triton's binary tensor extension of the protocol: JSON first, then the tensors' bytes, one after the other.

Source: https://github.com/triton-inference-server/server (``docs/protocol/extension_binary_data.md``). The header
``Inference-Header-Content-Length`` says how long the JSON is. A tensor lies there little-endian and in row-major order; a text
(BYTES) as its length, four bytes, before its UTF-8 bytes. Nothing is allocated by what a request claims: the sizes must fit
the bytes that came.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from cloudai.errors import RequestError

__all__ = ["HEADER", "from_bytes", "is_finite", "to_bytes"]

HEADER = b"inference-header-content-length"
_LENGTH = struct.Struct("<I")


def from_bytes(data: memoryview, shape: Sequence[int], dtype: np.dtype, who: str, *, finite: bool = True) -> np.ndarray:
    """Read one tensor; numbers are not copied, and NaN is refused unless `finite` is False.

    Raises
    ------
    RequestError
        If the bytes are not those of such a tensor, or numbers among them are NaN or infinite, or texts no UTF-8.

    Examples
    --------
    >>> from_bytes(memoryview(bytes([1, 0, 2, 0])), [2], np.dtype("int16"), "x")
    array([1, 2], dtype=int16)
    """
    count = math.prod(shape)
    if dtype.kind == "O":
        return _texts(data, count, who).reshape(shape)
    if count * dtype.itemsize != len(data):
        what = f"{who} has {len(data)} bytes, its shape {list(shape)} of {dtype.name} takes {count * dtype.itemsize}"
        raise RequestError(what, fix="let binary_data_size, shape and datatype fit each other")
    array = np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)
    if not array.flags.aligned:  # an odd number of bytes came before it
        array = array.copy()
    if finite and dtype.kind == "f" and not is_finite(array):
        raise RequestError(f"{who} holds NaN or infinite values, which no model takes", fix="replace them by numbers")
    if dtype.kind == "b" and count and array.view(np.uint8).max() > 1:
        raise RequestError(f"{who} holds bytes that are neither 0 nor 1", fix="send BOOL as one byte each, 0 or 1")
    return array


def to_bytes(array: np.ndarray) -> bytes | memoryview:
    r"""Write one tensor; numbers that lie in order already are not copied.

    Examples
    --------
    >>> bytes(to_bytes(np.array(["é"], dtype=object)))
    b'\x02\x00\x00\x00\xc3\xa9'
    """
    if array.dtype.kind == "O":
        encoded = [str(text).encode() for text in array.ravel().tolist()]
        return b"".join(part for text in encoded for part in (_LENGTH.pack(len(text)), text))
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite; of few numbers, the bytes are searched sooner than numpy's `all` begins."""
    return bool(np.isfinite(array).tobytes().find(0) < 0)


def _texts(data: memoryview, count: int, who: str) -> np.ndarray:
    if count * _LENGTH.size > len(data):
        raise RequestError(
            f"{who} has {len(data)} bytes, too few for {count} texts", fix="send each text's length in 4 bytes before it"
        )
    texts, place = np.empty(count, dtype=object), 0
    try:
        for number in range(count):
            (length,) = _LENGTH.unpack_from(data, place)
            place += _LENGTH.size
            text = data[place : place + length]
            if len(text) != length:
                raise ValueError("it ends before its text does")
            texts[number] = str(text, "utf-8")
            place += length
        if place != len(data):
            raise ValueError(f"{len(data) - place} bytes are left over")
    except (ValueError, struct.error) as error:
        raise RequestError(
            f"{who} holds no texts: {error}", fix="send each text as its length in 4 bytes and its UTF-8"
        ) from None
    return texts
