"""The store: a folder or an object store behind fsspec, in which a reader never sees half a file."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from cloudai.artifacts.filesystems import Content, Files, Folder, Remote, filesystem, forget_credentials, is_local
from cloudai.artifacts.patience import persist
from cloudai.errors import IntegrityError, NotFoundError, StoreError
from cloudai.specs.confidential import refuse_credentials

__all__ = ["Store", "canonical_json", "content_key", "sha256"]

T = TypeVar("T")
_ASK_FIRST = 2**16
"""Bytes from which on an object store is asked whether it has them before they are sent."""


def sha256(data: Content) -> str:
    """Return the SHA-256 digest of `data`, in one piece or several, in hexadecimal."""
    digest = hashlib.sha256()
    for piece in [data] if isinstance(data, bytes) else data:
        digest.update(piece)
    return digest.hexdigest()


def content_key(folder: str, data: bytes, suffix: str) -> str:
    """Return the key of bytes that are named by their own digest."""
    return f"{folder}/{sha256(data)}{suffix}"


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of a value: keys sorted, no spaces, so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class Store:
    """Files under one root, written whole or not at all, on a disk or an object store.

    Parameters
    ----------
    root : str
        A folder or an fsspec URL, such as ``s3://bucket/prefix``. Credentials and the endpoint of an object store come from
        the environment (``AWS_…``) and its own files, never from here.
    patience : float
        For how many seconds what fails is tried again, where trying again makes sense.

    Raises
    ------
    SpecError
        If the URL cannot be understood, or holds a password.
    MissingExtraError
        If the package for it is not installed.

    Notes
    -----
    Whatever is done with it raises `StoreError` where the store cannot be reached, does not let us in, or is full.
    """

    def __init__(self, root: str, *, patience: float = 10.0) -> None:
        refuse_credentials(root, "the store's address")
        self.root = root.rstrip("/")
        self.patience = patience
        self.is_local = is_local(self.root)
        self._path = filesystem(self.root)[1].rstrip("/")
        self._files: Files = Folder() if self.is_local else Remote(self.root)

    def uri(self, key: str) -> str:
        """Return the full address of a key."""
        return f"{self.root}/{key}"

    def at(self, key: str) -> Store:
        """Return the store rooted at a folder of this one."""
        return Store(self.uri(_checked(key)), patience=self.patience)

    def patient(self, seconds: float) -> Store:
        """Return the same store with another patience."""
        return self if seconds == self.patience else Store(self.root, patience=seconds)

    def write(self, key: str, data: Content) -> None:
        """Write a file, given in one piece or several; a reader sees the old one or the new one.

        An object store replaces objects whole by itself. On a local disk the bytes are on the disk, not only in the
        machine's memory, before the new name appears.

        Raises
        ------
        StoreError
            If it cannot be written: the disk is full or read-only, the store does not let us in, or cannot be reached.
        """
        path = self._full(key)
        self._do(lambda: self._files.write(path, data))

    def create(self, key: str, data: bytes) -> bool:
        """Write a file unless there is one; returns whether it was written. Of several writers one wins."""
        path, mark = self._full(key), uuid.uuid4().hex
        try:
            self._do(lambda: self._files.create(path, data, mark))
        except FileExistsError:
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        """Write bytes whose key holds their own digest, unless they are there already."""
        if len(data) < _ASK_FIRST and not self.is_local:
            self.create(key, data)  # one request instead of three
        elif not self.exists(key):
            self.write(key, data)

    def read(self, key: str) -> bytes:
        """Read a file.

        Raises
        ------
        NotFoundError
            If there is none.
        """
        return self._read(key, large=False)

    def _read(self, key: str, *, large: bool) -> bytes:
        path = self._full(key)
        try:
            return self._do(lambda: self._files.read(path, large=large))
        except FileNotFoundError:
            raise NotFoundError(f"there is no {self.uri(key)}", fix="was it removed, or the store changed?") from None

    def read_verified(self, key: str, digest: str) -> bytes:
        """Read a file whose digest is known.

        Raises
        ------
        NotFoundError
            If there is none.
        IntegrityError
            If the bytes are not those that were recorded.
        """
        data = self._read(key, large=True)
        if sha256(data) != digest:
            raise IntegrityError(
                f"{self.uri(key)} is not what was recorded: its SHA-256 differs", fix="restore the file, or make it anew"
            )
        return data

    def read_json(self, key: str) -> dict[str, Any] | None:
        """Read a JSON object, or None where there is no such file.

        Raises
        ------
        IntegrityError
            If the file is not a JSON object.
        """
        try:
            value = json.loads(self.read(key))
        except NotFoundError:
            return None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise IntegrityError(f"{self.uri(key)} is not a JSON object", fix="restore the file, or make it anew")
        return value

    def write_json(self, key: str, value: Mapping[str, Any]) -> None:
        """Write a JSON object."""
        self.write(key, json.dumps(value, allow_nan=True).encode())

    def exists(self, key: str) -> bool:
        """Whether there is such a file or folder."""
        path = self._full(key)
        return self._do(lambda: self._files.exists(path))

    def walk(self, folder: str) -> list[str]:
        """Return the keys of all files below a folder, sorted; none where there is no such folder."""
        path = self._full(folder)
        start = self._path.strip("/") + "/"
        found = self._do(lambda: self._files.walk(path))
        return sorted(name.strip("/").removeprefix(start) for name in found)

    def list(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no such folder."""
        path = self._full(folder)
        try:
            return sorted(self._do(lambda: self._files.names(path)))
        except FileNotFoundError:
            return []

    def remove(self, key: str) -> None:
        """Remove a file or a folder; nothing happens where there is none."""
        path = self._full(key)
        self._do(lambda: self._files.remove(path))

    def remove_files(self, keys: Sequence[str]) -> None:
        """Remove files, all with one request where that can be, and the folders that are empty then."""
        paths = [self._full(key) for key in keys]
        self._do(lambda: self._files.remove_files(paths))

    def _do(self, act: Callable[[], T]) -> T:
        try:
            return persist(act, self.root, 0.0 if self.is_local else self.patience)
        except StoreError as error:
            if not error.temporary:
                forget_credentials()  # they may be mended, in the environment or in files, before the next call
            raise

    def _full(self, key: str) -> str:
        return f"{self._path}/{_checked(key)}" if key else self._path


def _checked(key: str) -> str:
    """Refuse a key that would leave the store."""
    parts = PurePosixPath(key).parts
    if key.startswith("/") or ".." in parts or "\\" in key or "\0" in key:
        raise IntegrityError(f"{key!r} is not a name inside the store", fix="use a relative name without '..'")
    return key
