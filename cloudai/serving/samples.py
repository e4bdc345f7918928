"""What a server answered, kept for the monitor: sampled rows in safetensors files, oldest dropped first.

A file is one flush. Its name is ``<µs>-<pid>-<n>.safetensors``, where µs is the Unix time of its newest row, rounded up.
Its metadata has ``format: cloudai.samples/1``. Rows whose arrays have the same shapes form a block; block ``i`` has the
tensors ``i/times`` (float64[n], Unix time), ``i/ids`` (uint8[n, 64], ASCII, zero padded), ``i/input/<name>`` and
``i/output/<name>``, each with n rows.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cloudai.serving.files import replace_file

__all__ = ["SampleBlock", "SampleLog", "read_samples"]

Arrays = Mapping[str, np.ndarray]

_FORMAT = "cloudai.samples/1"
_NAME = re.compile(r"(\d{16,20})-\d+-\d+\.safetensors")
_ID_BYTES = 64
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleBlock:
    """Rows that a server answered.

    Attributes
    ----------
    ids : array of str, shape (n,)
        The request's id of each row; the rows of one request share it.
    times : array of float64, shape (n,)
        Unix time of each answer.
    inputs, outputs : mapping of str to array
        Each with n rows.
    """

    ids: np.ndarray
    times: np.ndarray
    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class _Answer:
    """One sampled request: its arrays have one row per example."""

    id: str
    time: float
    inputs: Arrays
    outputs: Arrays
    rows: int

    @property
    def size(self) -> int:
        return sum(array.nbytes for array in itertools.chain(self.inputs.values(), self.outputs.values()))

    @property
    def shapes(self) -> tuple[Any, ...]:
        return tuple((name, a.dtype.str, a.shape[1:]) for part in (self.inputs, self.outputs) for name, a in part.items())


class SampleLog:
    """Keeps a share of the answered requests, in memory first and soon in files, off the request's path.

    Parameters
    ----------
    folder : Path
        Where the files go; only the user can read it.
    rate : float
        The share of requests that are kept, each by an independent draw.
    max_bytes : int
        The most that may lie in the folder, and the most that may wait in memory.
    dropped : callable
        Told how many rows could not be kept because memory or disk was full.
    flush_rows : int
        So many waiting rows are written at once, fewer after `flush_seconds`.

    Raises
    ------
    OSError
        If the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rate: float,
        max_bytes: int,
        dropped: Callable[[int], None],
        flush_rows: int = 1000,
        flush_seconds: float = 1.0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for draft in folder.glob(".*.tmp"):  # of a server that was killed while it wrote
            draft.unlink(missing_ok=True)
        self._folder, self._rate, self._max_bytes, self._dropped = folder, rate, max_bytes, dropped
        self._flush_rows, self._flush_seconds = flush_rows, flush_seconds
        self._random = np.random.default_rng()
        self._waiting: list[_Answer] = []
        self._waiting_bytes = self._waiting_rows = 0
        self._newest = 0.0
        self._numbers = itertools.count()
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._wake, self._closed = threading.Event(), False
        self._writer = threading.Thread(target=self._write_on, name="samples", daemon=True)
        self._writer.start()

    def draw(self, inputs: Arrays) -> Arrays | None:
        """Decide whether a request is kept: a copy of its inputs (a model may change its own), or None."""
        if self._rate == 0 or (self._rate < 1 and self._random.random() >= self._rate):
            return None
        return {name: array.copy() for name, array in inputs.items()}

    def keep(self, request_id: str, inputs: Arrays, outputs: Arrays, *, rows: int) -> None:
        """Keep a drawn request, whose arrays have `rows` rows each."""
        with self._lock:
            self._newest = max(self._newest, time.time())  # never backwards: readers go on from the last time they saw
            answer = _Answer(request_id, self._newest, inputs, {name: array.copy() for name, array in outputs.items()}, rows)
            fits = self._waiting_bytes + answer.size <= self._max_bytes
            if fits:
                self._waiting.append(answer)
                self._waiting_bytes += answer.size
                self._waiting_rows += rows
        if not fits:
            self._dropped(rows)
        elif self._waiting_rows >= self._flush_rows:
            self._wake.set()

    def flush(self) -> None:
        """Return when all that was kept so far is in files.

        Raises
        ------
        OSError
            If it cannot be written; these rows are lost then.
        """
        with self._writing:
            answers = self._take()
            if not answers:
                return
            newest = int(answers[-1].time * 1e6) + 1
            name = f"{newest:016d}-{os.getpid()}-{next(self._numbers)}.safetensors"
            try:
                replace_file(self._folder / name, _encode(answers))
                _drop_oldest(self._folder, self._max_bytes)
            except OSError:
                self._dropped(sum(answer.rows for answer in answers))
                raise

    def close(self) -> None:
        """Write what waits, and end."""
        self._closed = True
        self._wake.set()
        self._writer.join()

    def _take(self) -> list[_Answer]:
        with self._lock:
            answers, self._waiting = self._waiting, []
            self._waiting_bytes = self._waiting_rows = 0
        return answers

    def _write_on(self) -> None:
        while not self._closed:
            self._wake.wait(self._flush_seconds)
            self._wake.clear()
            try:
                self.flush()
            except OSError as error:
                _logger.warning("sampled rows are lost, they cannot be written: %s", error)


def _encode(answers: Sequence[_Answer]) -> bytes:
    blocks: dict[tuple[Any, ...], list[_Answer]] = {}
    for answer in answers:
        blocks.setdefault(answer.shapes, []).append(answer)
    tensors: dict[str, np.ndarray] = {}
    for number, block in enumerate(blocks.values()):
        counts = [answer.rows for answer in block]
        ids = np.array([answer.id for answer in block], dtype=f"S{_ID_BYTES}").view(np.uint8).reshape(-1, _ID_BYTES)
        tensors[f"{number}/ids"] = np.repeat(ids, counts, axis=0)
        tensors[f"{number}/times"] = np.repeat([answer.time for answer in block], counts)
        for name in block[0].inputs:
            tensors[f"{number}/input/{name}"] = np.concatenate([answer.inputs[name] for answer in block])
        for name in block[0].outputs:
            tensors[f"{number}/output/{name}"] = np.concatenate([answer.outputs[name] for answer in block])
    return save(tensors, {"format": _FORMAT})


def _drop_oldest(folder: Path, max_bytes: int) -> None:
    left = max_bytes
    for path in sorted(folder.glob("*.safetensors"), reverse=True):
        left -= path.stat().st_size
        if left < 0:
            path.unlink()


def read_samples(folder: Path, since: float, limit: int) -> list[SampleBlock]:
    """Read the rows that were answered after `since`, the oldest first.

    To go on reading, give the largest time that was returned as the next `since`.

    Parameters
    ----------
    folder : Path
        A server's ``samples`` folder; it need not exist. Files that are half-written, corrupt or of another kind are
        passed over, also when they vanish meanwhile.
    since : float
        Unix time; rows of exactly this time are not returned.
    limit : int
        The most rows; rows of the same instant are not parted, so that there may be a few more.
    """
    if limit <= 0:
        return []
    blocks = [block for path in sorted(folder.glob("*.safetensors")) for block in _read_file(path, since)]
    times = np.sort(np.concatenate([block.times for block in blocks])) if blocks else np.zeros(0)
    until = times[limit - 1] if len(times) > limit else np.inf
    chosen = (_select(block, block.times <= until) for block in blocks)
    return [block for block in chosen if len(block.times)]


def _read_file(path: Path, since: float) -> Iterable[SampleBlock]:
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[1]) <= since * 1e6:
        return []
    try:
        with safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("format") != _FORMAT:
                return []
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        return [_select(block, block.times > since) for block in _decode(tensors)]
    except (SafetensorError, OSError, ValueError, IndexError, KeyError) as error:
        _logger.info("passed over %s: %s", path, error)
        return []


def _decode(tensors: Arrays) -> Iterator[SampleBlock]:
    count = sum(key.endswith("/times") and key.count("/") == 1 for key in tensors)
    for number in range(count):
        ids = np.ascontiguousarray(tensors[f"{number}/ids"]).view(f"S{_ID_BYTES}").reshape(-1).astype(str)
        inputs, outputs = (_part(tensors, f"{number}/{part}/") for part in ("input", "output"))
        yield SampleBlock(ids, tensors[f"{number}/times"], inputs, outputs)


def _part(tensors: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): array for key, array in tensors.items() if key.startswith(prefix)}


def _select(block: SampleBlock, mask: np.ndarray) -> SampleBlock:
    """Keep some rows; a block whose arrays differ in length raises IndexError."""
    inputs, outputs = ({name: array[mask] for name, array in part.items()} for part in (block.inputs, block.outputs))
    return SampleBlock(block.ids[mask], block.times[mask], inputs, outputs)
