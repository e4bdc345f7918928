"""Models in the store: opened by the name that the ledger knows, and written and opened at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloudai.artifacts import versions
from cloudai.artifacts.model import Model
from cloudai.artifacts.saving import write_model
from cloudai.artifacts.store import Store
from cloudai.display import nearest
from cloudai.errors import NotFoundError
from cloudai.state.ledger import Ledger

__all__ = ["find_model", "save_model"]


def find_model(ledger: Ledger, ref: str) -> Model:
    """Open a recorded model by name, ``"digits"`` (the latest) or ``"digits@1.0.0"``, or the model in a folder.

    Raises
    ------
    NotFoundError
        If there is none.
    IntegrityError
        If it is not what was recorded.
    """
    name, _, version = ref.partition("@")
    known = {found: (uri, digest) for _, found, uri, digest in ledger.models(name)}
    if not known and ("/" in ref or Path(ref).is_dir()):
        return Model.open(ref)
    if not known:
        raise NotFoundError(f"there is no model {name!r}", fix=nearest(name, sorted({entry[0] for entry in ledger.models()})))
    version = version or versions.latest(list(known))
    if version not in known:
        raise NotFoundError(f"there is no version {version!r} of {name!r}", fix=nearest(version, list(known)))
    return Model.open(*known[version])


def save_model(
    store: Store, name: str, files: Mapping[str, bytes], facts: Mapping[str, Any], *, run: str, version: str = ""
) -> Model:
    """Write a model and open it; see `cloudai.artifacts.saving.write_model`."""
    return Model.open(*write_model(store, name, files, facts, run=run, version=version))
