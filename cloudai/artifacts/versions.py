"""Semantic versions of models, given by what changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["latest", "next_version"]

_PATTERN = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def _parts(version: str) -> tuple[int, int, int]:
    match = _PATTERN.fullmatch(version)
    return (int(match[1]), int(match[2]), int(match[3])) if match else (-1, -1, -1)


def latest(versions: Sequence[str]) -> str:
    """Return the highest version; empty where there is none.

    Examples
    --------
    >>> latest(["1.9.0", "1.10.0", "draft"])
    '1.10.0'
    """
    known = [version for version in versions if _PATTERN.fullmatch(version)]
    return max(known, key=_parts, default="")


def next_version(version: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the version that follows, from what differs between two manifests.

    Another signature breaks callers: major. Other code or data: minor. The same trained again: patch.

    Examples
    --------
    >>> one = {"signature": 1, "lineage": {"code": "a", "data": "b"}}
    >>> next_version("", {}, one)
    '1.0.0'
    >>> next_version("1.2.3", one, {**one, "signature": 2})
    '2.0.0'
    >>> next_version("1.2.3", one, {**one, "lineage": {"code": "a", "data": "c"}})
    '1.3.0'
    >>> next_version("1.2.3", one, one)
    '1.2.4'
    """
    if not version:
        return "1.0.0"
    major, minor, patch = _parts(version)
    if before["signature"] != after["signature"]:
        return f"{major + 1}.0.0"
    if any(before["lineage"].get(key) != after["lineage"].get(key) for key in ("code", "data", "module")):
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch + 1}"
