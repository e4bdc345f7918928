"""A model: files whose every byte is accounted for, and what is known about them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloudai.artifacts import trees, versions
from cloudai.artifacts.signature import Signature
from cloudai.artifacts.store import Store, canonical_json, sha256
from cloudai.capture.bundle import loaded
from cloudai.display import Card, Shown, Table, nearest
from cloudai.errors import IntegrityError, MissingExtraError, NotFoundError, RequestError, SpecError
from cloudai.state.ledger import Ledger
from cloudai.statistics.profiles import Profile, columns_of

if TYPE_CHECKING:
    from cloudai.artifacts.torch_models import TorchServable

__all__ = ["Model", "arrays_for", "code_folder", "find_model", "named_columns", "only_output", "save_model"]

MANIFEST = "manifest.json"


class Model(Shown):
    """A versioned, hashed model in the store.

    Made by `Model.open`, `cloudai.load_model` or ``run.model``. The digest covers the manifest, and the manifest covers
    every file; files are checked whenever they are read.

    Attributes
    ----------
    uri : str
        The folder of its files.
    digest : str
        The SHA-256 of its manifest.
    signature : Signature
        What it takes and gives.
    metrics : Mapping[str, float]
        As measured at the end of training.
    lineage : Mapping[str, str]
        The run that made it, and the hashes of code, data and spec.
    """

    def __init__(self, store: Store, manifest: Mapping[str, Any], digest: str, *, trusted: bool) -> None:
        self._store = store
        self._manifest = manifest
        self._trusted = trusted
        self.uri = store.root
        self.digest = digest
        self.name: str = manifest["name"]
        self.version: str = manifest["version"]
        self.signature = Signature.from_json(manifest["signature"])
        self.metrics: Mapping[str, float] = manifest["metrics"]
        self.lineage: Mapping[str, str] = manifest["lineage"]
        self.features: tuple[str, ...] = tuple(manifest["features"])

    @classmethod
    def open(cls, uri: str, digest: str = "") -> Model:
        """Open the model in a folder.

        Parameters
        ----------
        uri : str
            A folder or an fsspec URL.
        digest : str
            The digest that it must have, as recorded when it was made. Without one the files are only checked against
            the manifest beside them, and code in the folder is not run.

        Raises
        ------
        NotFoundError
            If there is no model.
        IntegrityError
            If the manifest is not the one that was recorded, or is damaged.
        """
        store = Store(uri)
        try:
            data = store.read(MANIFEST)
        except NotFoundError:
            raise NotFoundError(f"there is no model in {uri}", fix="give the folder that holds manifest.json") from None
        actual = sha256(data)
        if digest and actual != digest:
            raise IntegrityError(
                f"the model in {uri} is not what was recorded: its manifest was changed",
                fix="restore the folder, or train it again",
            )
        try:
            return cls(store, json.loads(data), actual, trusted=bool(digest))
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{uri}/{MANIFEST} is damaged: {error!r}", fix="restore it, or train the model again"
            ) from None

    def __repr__(self) -> str:
        return f"Model('{self.name}@{self.version}', {self.digest[:12]})"

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(int(entry["size"]) for entry in self._manifest["files"].values())

    @property
    def created(self) -> datetime:
        """When it was made."""
        return datetime.fromisoformat(self._manifest["created"])

    def card(self) -> Card:
        """Show what it is, how good it is and where it comes from."""
        facts = [
            ("digest", f"sha256:{self.digest[:16]}…"),
            ("takes → gives", str(self.signature)),
            ("size", f"{self.size / 1024:,.1f} KiB in {len(self._manifest['files'])} files"),
            ("made", f"{self.created:%Y-%m-%d %H:%M} UTC by {self.lineage.get('run', 'hand')}"),
        ]
        metrics = [(name, f"{value:.4g}") for name, value in self.metrics.items()]
        lineage = [(name, value[:24]) for name, value in self.lineage.items() if value]
        tables = [Table(("metric", "value"), metrics)] if metrics else []
        return Card(f"Model {self.name} {self.version}", facts, tables=[*tables, Table(("lineage", "of"), lineage)])

    def verify(self) -> Model:
        """Check every byte against the manifest, and that no file was added.

        Raises
        ------
        IntegrityError
            Naming the first file that differs, is missing or does not belong.
        """
        for name in self._store.list(""):
            if name not in self._manifest["files"] and name != MANIFEST:
                raise IntegrityError(f"{self.uri} holds a file that does not belong: {name!r}", fix="remove it")
        for name in self._manifest["files"]:
            self._file(name)
        return self

    def predict(self, data: Any) -> Any:
        """Predict in this process.

        Parameters
        ----------
        data : array or mapping of str to array
            One row per example; a bare array is the model's only input. Numbers are converted to the model's dtype.

        Returns
        -------
        array or dict of str to array
            A bare array where the model has one output.

        Raises
        ------
        RequestError
            If the data does not fit the signature.
        """
        outputs = self.servable().infer(arrays_for(self.signature, data, self.features))
        return only_output(outputs)

    def servable(self) -> TorchServable:
        """Return the model loaded and ready to infer; loaded once.

        Raises
        ------
        IntegrityError
            If a file was changed, or code would have to run whose origin is not known.
        MissingExtraError
            If torch is not installed.
        """
        return self._servable

    @functools.cached_property
    def _servable(self) -> TorchServable:
        try:
            from cloudai.artifacts import torch_models
        except ImportError:
            raise MissingExtraError("to run this model, torch is needed", fix='pip install "cloudai[train]"') from None
        return torch_models.TorchServable(self.name, self.version, self.signature, self.module())

    def module(self) -> Any:
        """Return a fresh `torch.nn.Module` with the model's weights, in eval mode."""
        from cloudai.artifacts import torch_models

        with self.code():
            return torch_models.build_module(self._file("module.safetensors")).eval()

    @contextlib.contextmanager
    def code(self) -> Iterator[None]:
        """Make the code that the model brings importable while the context is open; a server keeps it open.

        Raises
        ------
        IntegrityError
            If it brings code and nothing vouches for it.
        """
        if "code.zip" not in self._manifest["files"]:
            yield
            return
        if not self._trusted:
            raise IntegrityError(
                f"{self.name} {self.version} brings code, and nothing vouches for it",
                fix="open it by name with cloudai.load_model, or give the digest that its maker recorded",
            )
        with code_folder() as folder, loaded(self._file("code.zip"), folder):
            yield

    @functools.cached_property
    def profile(self) -> Profile | None:
        """The reference profile of the training data; None where the model was made without data."""
        name = "profile.bin"
        return Profile.from_bytes(self._file(name)) if name in self._manifest["files"] else None

    @property
    def example(self) -> dict[str, np.ndarray]:
        """A few rows of the data that it was trained on, as inputs."""
        return {name: np.asarray(array) for name, array in trees.load(self._file("example.safetensors")).items()}

    def _file(self, name: str) -> bytes:
        try:
            return self._store.read_verified(name, self._manifest["files"][name]["sha256"])
        except NotFoundError:
            raise IntegrityError(f"{self.uri} lacks the file {name!r}", fix="restore the folder, or train it again") from None


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
    """Write a model under ``models/<name>/<version>``; called again for the same run it returns the first one.

    Parameters
    ----------
    files : mapping of str to bytes
        The files by name.
    facts : mapping
        ``signature``, ``metrics``, ``lineage`` and ``features``.
    run : str
        Who makes it: the claim on the version, so that a restarted worker finds its own.
    version : str
        The version to give; by default the next one, from what changed.
    """
    facts = json.loads(canonical_json(facts))  # as it will be read again, so that versions compare like with like
    folder, claimed = _claim(store, name, facts, run, version)
    manifest = {
        "format": 1,
        "name": name,
        "version": claimed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {file: {"sha256": sha256(data), "size": len(data)} for file, data in sorted(files.items())},
        **facts,
    }
    if store.exists(f"{folder}/{MANIFEST}"):
        return Model.open(store.uri(folder))
    for file, data in files.items():
        store.write(f"{folder}/{file}", data)
    data = canonical_json(manifest)
    store.write(f"{folder}/{MANIFEST}", data)  # last: a folder without it is not a model
    return Model.open(store.uri(folder), sha256(data))


def _claim(store: Store, name: str, facts: Mapping[str, Any], run: str, version: str) -> tuple[str, str]:
    """Take a version number for a run, one that nobody else has; the claims lie beside the models."""
    while True:
        taken = [file.removesuffix(".json") for file in store.list(f"models/{name}/claims")]
        for old in taken:
            claim = store.read_json(f"models/{name}/claims/{old}.json") or {}
            if claim.get("run") == run:
                return f"models/{name}/{old}", old
        last = versions.latest(taken)
        before = (store.read_json(f"models/{name}/claims/{last}.json") or {}).get("facts", {}) if last else {}
        new = version or versions.next_version(last, before, facts)
        claim = {"run": run, "facts": {"signature": facts["signature"], "lineage": facts["lineage"]}}
        if store.create(f"models/{name}/claims/{new}.json", canonical_json(claim)):
            return f"models/{name}/{new}", new
        if version:
            raise SpecError(f"{name} {version} exists already", fix="give another version, or none")


def arrays_for(signature: Signature, data: Any, features: Sequence[str]) -> dict[str, np.ndarray]:
    """Turn what a user gives into the model's inputs, converted to its dtypes where no value is lost.

    Parameters
    ----------
    data : array, data frame, or mapping of str to array
        A data frame's columns are taken by name where the model was trained on named ones.
    features : sequence of str
        The names of the columns that the model was trained on; empty where they had none.

    Raises
    ------
    RequestError
        If names, dtypes or shapes do not fit.
    """
    if hasattr(data, "columns") and features:
        data = _in_order(data, features)
    if not isinstance(data, Mapping):
        if len(signature.inputs) != 1:
            raise RequestError(f"the model takes {len(signature.inputs)} inputs", fix=f"give a dict with {signature}")
        data = {signature.inputs[0].name: data}
    dtypes = {spec.name: spec.dtype for spec in signature.inputs}
    arrays = {name: _as_array(name, value, dtypes.get(name)) for name, value in data.items()}
    signature.check(arrays)
    return arrays


def _in_order(frame: Any, features: Sequence[str]) -> Any:
    """Return a data frame's columns in the order that the model was trained on."""
    columns = {str(column): column for column in frame.columns}
    for name in features:
        if name not in columns:
            raise RequestError(f"the column {name!r} is missing", fix=nearest(name, list(columns)))
    for name in columns:
        if name not in features:
            raise RequestError(f"the model was not trained on a column {name!r}", fix="drop it")
    return frame[[columns[name] for name in features]]


def _as_array(name: str, value: Any, dtype: str | None) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise RequestError(f"input {name!r} is not an array: {error}", fix="give rows of equal length") from None
    if dtype is None or array.dtype.name == dtype:
        return array
    if not np.can_cast(array.dtype, dtype, "same_kind") and not (array.dtype.kind in "iub" and np.dtype(dtype).kind == "f"):
        raise RequestError(
            f"input {name!r} has dtype {array.dtype.name}, the model takes {dtype}", fix=f"convert it: array.astype({dtype!r})"
        )
    return array.astype(dtype)


def only_output(outputs: Mapping[str, np.ndarray]) -> Any:
    """Return the array where there is one output, else all by name."""
    return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)


@contextlib.contextmanager
def code_folder() -> Iterator[Path]:
    """Yield the folder where code is unpacked: in the process's own folder where its driver gave it one."""
    own = os.environ.get("CLOUDAI_SCRATCH")
    if own is not None:
        yield Path(own) / "code"  # it goes when the process's folder goes, also after a kill
        return
    with tempfile.TemporaryDirectory(prefix="cloudai-code-") as folder:
        yield Path(folder)


def named_columns(arrays: Mapping[str, np.ndarray], signature: Signature, features: Sequence[str]) -> dict[str, np.ndarray]:
    """Split a model's inputs into columns, named as its features where they have names."""
    columns: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        columns |= columns_of(arrays[spec.name], spec.name)
    if len(features) == len(columns):
        return dict(zip(features, columns.values(), strict=True))
    return columns
