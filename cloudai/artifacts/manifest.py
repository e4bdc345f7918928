"""A model's manifest, read with distrust: it may come from whoever can write to the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

__all__ = ["read_manifest"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}")


def read_manifest(data: bytes) -> dict[str, Any]:
    """Return a manifest of which every part has its type, and every file a plain name in the model's own folder.

    Raises
    ------
    ValueError
        Naming the part that is not as it should be.
    """
    try:
        manifest = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested without end") from None
    _require(isinstance(manifest, dict), "it is no object")
    for part, fits in _PARTS.items():
        try:
            good = fits(manifest.get(part))
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError):
            good = False
        _require(good, f"its {part} are not what they should be" if part.endswith("s") else f"its {part} is not one")
    return dict(manifest)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _is_files(files: Any) -> bool:
    return all(_is_file_name(name) and _is_entry(entry) for name, entry in files.items())


def _is_file_name(name: str) -> bool:
    """Whether a name is that of a file in the folder itself: no path, nothing hidden, nothing that a terminal would obey."""
    return name.isprintable() and not name.startswith(".") and not set(name) & set("/\\:") and 0 < len(name) <= 200


def _is_entry(entry: Mapping[str, Any]) -> bool:
    digest, size = entry["sha256"], entry["size"]
    return _DIGEST.fullmatch(digest) is not None and type(size) is int and 0 <= size < 2**63


def _is_signature(signature: Any) -> bool:
    specs = [*signature["inputs"], *signature["outputs"]]
    return all(
        isinstance(spec["name"], str)
        and isinstance(spec["dtype"], str)
        and all(type(size) is int and -1 <= size < 2**31 for size in spec["shape"])
        for spec in specs
    )


_PARTS: dict[str, Callable[[Any], bool]] = {
    "name": lambda name: isinstance(name, str) and name.isprintable() and 0 < len(name) <= 200,
    "version": lambda version: _VERSION.fullmatch(version) is not None,
    "created": lambda created: isinstance(datetime.fromisoformat(created), datetime),
    "files": _is_files,
    "signature": _is_signature,
    "metrics": lambda metrics: all(isinstance(value, int | float) for value in metrics.values()),
    "lineage": lambda lineage: all(isinstance(value, str) for value in lineage.values()),
    "kind": lambda kind: kind is None or isinstance(kind, str),
    "labels": lambda labels: labels is None or (isinstance(labels, list) and all(isinstance(name, str) for name in labels)),
    "features": lambda features: all(isinstance(name, str) for name in features) and isinstance(features, list),
}
