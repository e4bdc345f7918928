"""A model: files whose every byte is accounted for, and what is known about them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cloudai.artifacts import kinds, trees
from cloudai.artifacts.elsewhere import FromElsewhere
from cloudai.artifacts.inputs import arrays_for, only_output
from cloudai.artifacts.manifest import read_manifest
from cloudai.artifacts.saving import MANIFEST
from cloudai.artifacts.servable import Servable, needed
from cloudai.artifacts.signature import Signature
from cloudai.artifacts.store import Store, sha256
from cloudai.capture.bundle import code_folder, loaded
from cloudai.display import Card, Shown, Table, nearest
from cloudai.errors import IntegrityError, NotFoundError, SpecError
from cloudai.statistics.profiles import Profile

if TYPE_CHECKING:
    from cloudai.artifacts.export import Export

__all__ = ["Model"]


class Model(FromElsewhere, Shown):
    """A versioned, hashed model in the store.

    Made by ``run.model``, `cloudai.load_model`, `Model.open`, or from a model that you bring: `Model.from_torch`,
    `Model.from_onnx`, `Model.from_transformers`, `Model.from_mlflow`. The digest covers the manifest, and the manifest
    covers every file; files are checked whenever they are read.

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
    kind : str
        What runs it: ``"torch"``, ``"onnx"`` or ``"transformers"``.
    labels : tuple of str
        The names of its classes, in the order of its scores; empty where it has none.
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
        self.kind: str = manifest.get("kind", "torch")
        self.labels: tuple[str, ...] = tuple(manifest.get("labels", ()))
        if self.kind not in kinds.KINDS:
            raise IntegrityError(f"{self.name} {self.version} is of the unknown kind {self.kind!r}", fix="update cloudai")

    @classmethod
    def open(cls, uri: str, digest: str = "") -> Self:
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
            return cls(store, read_manifest(data), actual, trusted=bool(digest))
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
            ("kind", self.kind),
            ("size", f"{self.size / 1024:,.1f} KiB in {len(self._manifest['files'])} files"),
            ("made", f"{self.created:%Y-%m-%d %H:%M} UTC by {self.lineage.get('run') or 'hand'}"),
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
            self.file(name)
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

    def servable(self) -> Servable:
        """Return the model loaded and ready to infer; loaded once.

        Raises
        ------
        IntegrityError
            If a file was changed, or code would have to run whose origin is not known.
        MissingExtraError
            If what runs it is not installed.
        """
        return self._servable

    @functools.cached_property
    def _servable(self) -> Servable:
        return kinds.servable_of(self)

    def module(self) -> Any:
        """Return a fresh `torch.nn.Module` with the model's weights, in eval mode.

        Raises
        ------
        SpecError
            If it is an ONNX model.
        """
        return kinds.module_of(self)

    def export(self, to: str = "onnx", *, path: str | Path | None = None, tolerance: float = 1e-4) -> Export:
        """Write the model as an ONNX file and compare it with the original, on its example and on random rows.

        A model of transformers becomes a graph from tokens and their mask to scores: its tokenizer stays outside.

        Parameters
        ----------
        to : str
            The format; there is ``"onnx"``.
        path : path, optional
            The file, by default ``<name>-<version>.onnx`` here; one that is there is replaced.
        tolerance : float
            The largest difference that is accepted, absolute or as a share of the largest value of an output.

        Returns
        -------
        Export
            Its path, size, and the largest difference that was found.

        Raises
        ------
        SpecError
            If the model cannot be exported, or the file answers differently. Nothing is left behind then.
        MissingExtraError
            If onnx, onnxscript or onnxruntime is not installed.
        """
        if to != "onnx":
            raise SpecError(f"there is no export to {to!r}", fix="use 'onnx'")
        for package in ("onnx", "onnxruntime", "onnxscript"):
            needed(package, "onnx")
        from cloudai.artifacts import export

        target = Path(path if path is not None else f"{self.name}-{self.version}.onnx")
        return export.export_onnx(kinds.exportable_of(self), target.expanduser(), tolerance)

    def files(self) -> dict[str, bytes]:
        """Return the bytes of all its files by name, each checked against the manifest."""
        return {name: self.file(name) for name in self._manifest["files"]}

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
        with code_folder() as folder, loaded(self.file("code.zip"), folder):
            yield

    @functools.cached_property
    def profile(self) -> Profile | None:
        """The reference profile of the training data; None where the model was made without data."""
        name = "profile.bin"
        return Profile.from_bytes(self.file(name)) if name in self._manifest["files"] else None

    @property
    def example(self) -> dict[str, np.ndarray]:
        """A few rows of the data that it was trained on, as inputs."""
        return {name: np.asarray(array) for name, array in trees.load(self.file("example.safetensors")).items()}

    def file(self, name: str) -> bytes:
        """Return the bytes of one of its files, checked against the manifest.

        Raises
        ------
        NotFoundError
            If the model has no such file.
        IntegrityError
            If its bytes are not what was recorded.
        """
        if name not in self._manifest["files"]:
            raise NotFoundError(f"{self.name} {self.version} has no file {name!r}", fix=nearest(name, self._manifest["files"]))
        try:
            return self._store.read_verified(name, self._manifest["files"][name]["sha256"])
        except NotFoundError:
            raise IntegrityError(f"{self.uri} lacks the file {name!r}", fix="restore the folder, or train it again") from None
