"""Durations and sizes as people write them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

from cloudai.errors import SpecError

__all__ = ["Bytes", "Seconds", "parse_bytes", "parse_duration"]

_DURATION = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = (
    {"": 1, "B": 1} | {f"{p}B": 1000**i for i, p in enumerate("kMGT", 1)} | {f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)}
)


def parse_duration(value: float | str) -> float:
    """Read a duration in seconds.

    Parameters
    ----------
    value : float or str
        Seconds, or a text such as ``"90s"``, ``"5m"``, ``"1.5h"``, ``"1h30m"``.

    Raises
    ------
    SpecError
        If it is not a duration, or is negative.

    Examples
    --------
    >>> parse_duration("5m"), parse_duration("1h30m"), parse_duration(2)
    (300.0, 5400.0, 2.0)
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    text = str(value).replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|min|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise SpecError(f"{value!r} is not a duration", fix="write seconds, or a text like '90s', '5m', '1h30m'")
    return sum(float(number) * _DURATION[unit] for number, unit in parts)


def parse_bytes(value: int | str) -> int:
    """Read a size in bytes.

    Parameters
    ----------
    value : int or str
        Bytes, or a text such as ``"512MiB"``, ``"8GB"``.

    Raises
    ------
    SpecError
        If it is not a size, or is negative.

    Examples
    --------
    >>> parse_bytes("2GiB"), parse_bytes("1.5kB"), parse_bytes(10)
    (2147483648, 1500, 10)
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?i?B?)", str(value))
    if match is None or match[2] not in _BYTES:
        raise SpecError(f"{value!r} is not a size", fix="write bytes, or a text like '512MiB' or '8GB'")
    return int(float(match[1]) * _BYTES[match[2]])


Seconds = Annotated[float, BeforeValidator(parse_duration)]
"""A length of time: a number of seconds or a text like ``"5m"``."""

Bytes = Annotated[int, BeforeValidator(parse_bytes)]
"""A size: a number of bytes or a text like ``"8GiB"``."""
