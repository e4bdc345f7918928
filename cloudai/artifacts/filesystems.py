"""Where files lie: a folder of this machine, or anything that fsspec reaches, asked with as few requests as it takes.

Both know whole files under full paths only. What can go wrong, and whether to try again, is for `cloudai.artifacts.patience`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
import shutil
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import fsspec

from cloudai.errors import MissingExtraError, SpecError
from cloudai.files import private_folder, replace_file

__all__ = ["Content", "Files", "Folder", "Remote", "filesystem", "forget_credentials", "is_local"]

_S3 = ("s3://", "s3a://")
_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,  # others write too: what was listed before says nothing
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 20,  # seconds without a byte
        # for one request, such as a part of a large file; the rest of the patience is ours
        "retries": {"mode": "standard", "total_max_attempts": 2},
    },
}
_PART = 16 * 2**20
"""Bytes of one part of a large object, which is what is sent again when a connection is cut."""
_MOST_PARTS = 9_000  # S3 takes 10,000
_lock = threading.Lock()


def is_local(url: str) -> bool:
    """Whether an address is a folder or file of this machine.

    Examples
    --------
    >>> is_local("data/train.csv"), is_local("file:///data"), is_local("s3://bucket/data")
    (True, True, False)
    """
    return "://" not in url or url.startswith(("file://", "local://"))


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system behind an address, and the path in it.

    For S3 there is one for each process and set of credentials, shared by all threads: making a client takes a tenth of a
    second. A process that was forked gets its own, and so does a user who has just mended the credentials.

    Raises
    ------
    SpecError
        If the address cannot be understood.
    MissingExtraError
        If the package for it is not installed.
    """
    try:
        if not url.startswith(_S3):
            return fsspec.url_to_fs(url)  # type: ignore[no-any-return]
        environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        with _lock:
            files = _s3(os.getpid(), environment)
        return files, files._strip_protocol(url)  # noqa: SLF001  as every file system of fsspec has it
    except ImportError as error:
        extra = "aws" if url.startswith(_S3) else ""
        fix = f'pip install "cloudai[{extra}]"' if extra else str(error)
        raise MissingExtraError(f"a package that reads {url.partition('://')[0]}:// is not installed", fix=fix) from None
    except ValueError as error:
        raise SpecError(f"{url!r} cannot be opened: {error}", fix="give a folder or a URL such as s3://…") from None


@functools.lru_cache(maxsize=2)
def _s3(pid: int, environment: tuple[tuple[str, str], ...]) -> Any:
    files = fsspec.filesystem("s3", skip_instance_cache=True, **_OPTIONS)
    files.retries = 1  # tries of one call, where s3fs itself would try again
    return files


def forget_credentials() -> None:
    """Read credentials anew for the next request, also those that lie in files; for when they were refused."""
    _s3.cache_clear()


Content = bytes | Sequence[bytes | memoryview]
"""The bytes of a file, in one piece or several."""


class Files(Protocol):
    """What the store asks of a place; paths are full paths, and missing files raise `FileNotFoundError`."""

    def read(self, path: str, *, large: bool) -> bytes:
        """Return a file."""
        ...

    def write(self, path: str, data: Content) -> None:
        """Write a file whole: a reader sees the old one or the new one."""
        ...

    def create(self, path: str, data: bytes, mark: str) -> None:
        """Write a file where there is none; `FileExistsError` where there is one, unless it was written with this mark."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder."""
        ...

    def names(self, path: str) -> list[str]:
        """Return the names in a folder."""
        ...

    def walk(self, path: str) -> list[str]:
        """Return the full paths of all files below a folder; none where there is no such folder."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file or a folder, if there is one."""
        ...

    def remove_files(self, paths: list[str]) -> None:
        """Remove those of the files that there are."""
        ...


class Folder:
    """Files of this machine. What is written is on the disk, not only in memory, before its name appears."""

    def read(self, path: str, *, large: bool) -> bytes:
        """Return a file."""
        return Path(path).read_bytes()

    def write(self, path: str, data: Content) -> None:
        """Write a file beside its place and move it there."""
        private_folder(Path(path).parent)
        replace_file(Path(path), data, durable=True)

    def create(self, path: str, data: bytes, mark: str) -> None:
        """Write a file beside its place and link it there, which fails where the name is taken, unlike a move."""
        private_folder(Path(path).parent)
        fresh = Path(f"{path}.{uuid.uuid4().hex}.tmp")
        try:
            replace_file(fresh, data)
            os.link(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder."""
        return Path(path).exists()

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, without drafts."""
        return [name for name in os.listdir(path) if not name.endswith(".tmp")]  # noqa: PTH208  names are asked for

    def walk(self, path: str) -> list[str]:
        """Return the full paths of all files below a folder, drafts included."""
        return [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]  # noqa: PTH118

    def remove(self, path: str) -> None:
        """Remove a file or a folder, if there is one."""
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)

    def remove_files(self, paths: list[str]) -> None:
        """Remove files, and the folders that are empty then."""
        for path in map(Path, paths):
            path.unlink(missing_ok=True)
        for folder in {Path(path).parent for path in paths}:
            _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # something is left in it, or it is gone


class Remote:
    """Files behind fsspec, of which an object store replaces each one whole by itself."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_s3 = url.startswith(_S3)
        filesystem(url)  # a wrong address is an error now

    @property
    def _fs(self) -> Any:
        return filesystem(self._url)[0]  # looked up each time: after a fork, or with new credentials, it is another one

    def read(self, path: str, *, large: bool) -> bytes:
        """Return a file, in one request; a large one in parts side by side, which must not change meanwhile."""
        options = {"max_concurrency": 1} if self._is_s3 and not large else {}
        return bytes(self._fs.cat_file(path, **options))

    def write(self, path: str, data: Content) -> None:
        """Write an object; one of many parts is there when its last part is, or not at all."""
        data = data if isinstance(data, bytes) else b"".join(data)
        self._fs.pipe_file(path, data, **self._in_parts(data))

    def create(self, path: str, data: bytes, mark: str) -> None:
        """Write an object under the condition that there is none (``If-None-Match: *``).

        Where an answer was lost on its way, the second try meets what the first one wrote; the mark tells that it is ours.
        """
        options = {"Metadata": {"writer": mark}, **self._in_parts(data)} if self._is_s3 else {}
        fs = self._fs
        try:
            fs.pipe_file(path, data, mode="create", **options)
        except FileExistsError:
            if not self._is_s3 or fs.metadata(path).get("writer") != mark:
                raise

    def _in_parts(self, data: bytes) -> dict[str, Any]:
        return {"chunksize": max(_PART, len(data) // _MOST_PARTS + 1)} if self._is_s3 else {}

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder."""
        return bool(self._fs.exists(path))

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, as they are now."""
        found = self._fs.ls(path, detail=False, refresh=True)
        return [posixpath.basename(str(name).rstrip("/")) for name in found]

    def walk(self, path: str) -> list[str]:
        """Return the full paths of all objects below a folder."""
        return [str(name) for name in self._fs.find(path)]

    def remove(self, path: str) -> None:
        """Remove an object, or all below a folder."""
        self.remove_files(self.walk(path))

    def remove_files(self, paths: list[str]) -> None:
        """Remove objects, a thousand in a request."""
        if paths:
            with contextlib.suppress(FileNotFoundError):  # somebody else was first
                self._fs.rm(paths)
