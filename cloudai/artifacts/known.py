"""Models by name, as the ledger knows them."""

from __future__ import annotations

from pathlib import Path

from cloudai.artifacts import versions
from cloudai.artifacts.model import Model
from cloudai.display import nearest
from cloudai.errors import NotFoundError
from cloudai.state.ledger import Ledger

__all__ = ["find_model"]


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
