"""The store: a folder or an object store behind fsspec, in which a reader never sees half a file."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from cloudai.errors import CloudAIError, IntegrityError, NotFoundError, SpecError
from cloudai.files import private_folder, replace_file
from cloudai.specs.confidential import refuse_credentials

__all__ = ["Store", "canonical_json", "content_key", "sha256"]


def sha256(data: bytes) -> str:
    """Return the SHA-256 digest of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def content_key(folder: str, data: bytes, suffix: str) -> str:
    """Return the key of bytes that are named by their own digest."""
    return f"{folder}/{sha256(data)}{suffix}"


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of a value: keys sorted, no spaces, so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class Store:
    """Files under one root, written whole or not at all.

    Parameters
    ----------
    root : str
        A folder or an fsspec URL, such as ``s3://bucket/prefix``.

    Raises
    ------
    SpecError
        If the URL cannot be understood, or holds a password.
    """

    def __init__(self, root: str) -> None:
        refuse_credentials(root, "the store's address")
        self.root = root.rstrip("/")
        try:
            self._fs, self._path = fsspec.url_to_fs(self.root)
        except (ValueError, ImportError) as error:
            raise SpecError(
                f"the store {root!r} cannot be opened: {error}", fix="give a folder or a URL such as s3://…"
            ) from None
        self._is_local = "file" in ((self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol)

    def uri(self, key: str) -> str:
        """Return the full address of a key."""
        return f"{self.root}/{key}"

    def at(self, key: str) -> Store:
        """Return the store rooted at a folder of this one."""
        return Store(self.uri(_checked(key)))

    def write(self, key: str, data: bytes) -> None:
        """Write a file; a reader sees the old one or the new one.

        An object store replaces objects whole by itself. On a local disk the bytes are on the disk, not only in the
        machine's memory, before the new name appears.

        Raises
        ------
        CloudAIError
            If the disk is full or read-only.
        """
        path = self._full(key)
        if not self._is_local:
            self._fs.pipe_file(path, data)
            return
        try:
            private_folder(Path(path).parent)
            replace_file(Path(path), data, durable=True)
        except OSError as error:
            fix = "make room there, or give another place: CLOUDAI_STORE"
            raise CloudAIError(f"the store {self.root} cannot be written: {error.strerror}", fix=fix) from None

    def create(self, key: str, data: bytes) -> bool:
        """Write a file unless there is one; returns whether it was written."""
        path = self._full(key)
        if not self._is_local:
            try:
                self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True
        private_folder(Path(path).parent)
        fresh = Path(f"{path}.{uuid.uuid4().hex}.tmp")
        replace_file(fresh, data)
        try:
            os.link(fresh, path)  # fails where the name is taken, unlike a rename
        except FileExistsError:
            return False
        finally:
            fresh.unlink()
        return True

    def put(self, key: str, data: bytes) -> None:
        """Write bytes whose key holds their own digest, unless they are there already."""
        if not self.exists(key):
            self.write(key, data)

    def read(self, key: str) -> bytes:
        """Read a file.

        Raises
        ------
        NotFoundError
            If there is none.
        """
        try:
            return bytes(self._fs.cat_file(self._full(key)))
        except FileNotFoundError:
            raise NotFoundError(f"there is no {self.uri(key)}", fix="was it removed, or the store changed?") from None

    def read_verified(self, key: str, digest: str) -> bytes:
        """Read a file whose digest is known.

        Raises
        ------
        IntegrityError
            If the bytes are not those that were recorded.
        """
        data = self.read(key)
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
            value = json.loads(self._fs.cat_file(self._full(key)))
        except FileNotFoundError:
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
        return bool(self._fs.exists(self._full(key)))

    def list(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no such folder."""
        try:
            found = self._fs.ls(self._full(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        names = (posixpath.basename(str(path).rstrip("/")) for path in found)
        return sorted(name for name in names if not name.endswith(".tmp"))

    def remove(self, key: str) -> None:
        """Remove a file or a folder; nothing happens where there is none."""
        path = self._full(key)
        if self._fs.exists(path):
            self._fs.rm(path, recursive=True)

    def _full(self, key: str) -> str:
        return f"{self._path}/{_checked(key)}" if key else self._path


def _checked(key: str) -> str:
    """Refuse a key that would leave the store."""
    parts = PurePosixPath(key).parts
    if key.startswith("/") or ".." in parts or "\\" in key or "\0" in key:
        raise IntegrityError(f"{key!r} is not a name inside the store", fix="use a relative name without '..'")
    return key
