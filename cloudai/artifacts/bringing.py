"""Models that no run of ours made: recorded like those that one did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudai import settings
from cloudai.artifacts.inputs import arrays_for, named_columns
from cloudai.artifacts.saving import write_model
from cloudai.artifacts.signature import Signature
from cloudai.artifacts.store import Store, canonical_json, sha256
from cloudai.errors import DataError, IntegrityError, RequestError, SpecError
from cloudai.specs.training import Named
from cloudai.state.ledger import open_ledger
from cloudai.statistics.profiles import Profile

__all__ = ["Brought", "record"]


@dataclass(frozen=True)
class Brought:
    """A checked model that is not written anywhere yet.

    Attributes
    ----------
    kind : str
        ``"torch"``, ``"onnx"`` or ``"transformers"``.
    files : dict of str to bytes
        All its files by name.
    signature : Signature
        What it takes and gives.
    lineage : dict of str to str
        Where it comes from, and the hashes that tell another model from the same one with other weights.
    labels : tuple of str
        The names of its classes, where it has them.
    """

    kind: str
    files: dict[str, bytes]
    signature: Signature
    lineage: dict[str, str]
    labels: tuple[str, ...] = field(default=())


def record(brought: Brought, name: str, metrics: Mapping[str, float] | None, data: Any) -> tuple[str, str]:
    """Write a model into the store and the ledger; the same one again gets no new version.

    Parameters
    ----------
    data : optional
        Inputs as the model gets them in service: the reference that a monitor compares with.

    Returns
    -------
    uri, digest : str
        What `Model.open` takes.

    Raises
    ------
    SpecError
        If the name or a metric is wrong.
    DataError
        If the data does not fit the model.
    IntegrityError
        If this very model was recorded before and its files were changed since.
    """
    name = Named.of(name=name).name
    features = tuple(map(str, getattr(data, "columns", ()))) if brought.kind != "transformers" else ()
    files = dict(brought.files)
    if data is not None:
        files["profile.bin"] = _profile(brought.signature, data, features).to_bytes()
    facts = {
        "kind": brought.kind,
        "signature": brought.signature.to_json(),
        "metrics": {key: _finite(key, value) for key, value in (metrics or {}).items()},
        "features": list(features),
        "labels": list(brought.labels),
        "lineage": {"run": "", **brought.lineage},
    }
    digests = {file: sha256(content) for file, content in files.items()}
    maker = "by hand: " + sha256(canonical_json([digests, facts]))
    uri, digest = write_model(Store(settings.current().store), name, files, facts, run=maker)
    if not digest:
        raise IntegrityError(f"the model in {uri}, which is this one, was changed", fix="restore the folder, or remove it")
    version = uri.rpartition("/")[2]
    open_ledger().add_model(name, version, uri, digest, "")
    return uri, digest


def _profile(signature: Signature, data: Any, features: tuple[str, ...]) -> Profile:
    try:
        arrays = arrays_for(signature, data, features)
    except RequestError as error:
        raise DataError(f"data= does not fit the model: {error.what}", fix=error.fix) from None
    return Profile.of(named_columns(arrays, signature, features))


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SpecError(f"the metric {name!r} is a {type(value).__name__}", fix="give numbers") from None
    if not math.isfinite(number):
        raise SpecError(f"the metric {name!r} is {number}", fix="give finite numbers")
    return number
