"""The rows that servers keep for the monitor: how they lie in files, written by servers and read by drivers.

A file is one flush. Its name is ``<µs>-<pid>-<n>.safetensors``, where µs is the Unix time of its newest row, rounded up.
Its metadata has ``format: cloudai.samples/1``. Rows whose arrays have the same shapes form a block; block ``i`` has the
tensors ``i/times`` (float64[n], Unix time), ``i/ids`` (uint8[n, 64], ASCII, zero padded), ``i/input/<name>`` and
``i/output/<name>``, each with n rows. Texts lie there as their UTF-8 bytes in one row, and ``i/input-ends/<name>`` (int64, with
n rows) says where each of them ends.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cloudai import texts

__all__ = ["Answer", "Arrays", "SampleBlock", "encode", "file_rows", "read_all_samples", "read_samples"]

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
class Answer:
    """One sampled request: its arrays have one row per example."""

    id: str
    time: float
    inputs: Arrays
    outputs: Arrays
    rows: int

    @property
    def size(self) -> int:
        """Bytes of all its arrays; of a text at least one for each character."""
        arrays = itertools.chain(self.inputs.values(), self.outputs.values())
        return sum(array.nbytes + (sum(map(len, array.ravel())) if array.dtype.kind == "O" else 0) for array in arrays)

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What must be equal for rows to lie in one block."""
        return tuple((name, a.dtype.str, a.shape[1:]) for part in (self.inputs, self.outputs) for name, a in part.items())


def encode(answers: Sequence[Answer]) -> bytes:
    """Return the bytes of one file."""
    blocks: dict[tuple[Any, ...], list[Answer]] = {}
    for answer in answers:
        blocks.setdefault(answer.shapes, []).append(answer)
    tensors: dict[str, np.ndarray] = {}
    for number, block in enumerate(blocks.values()):
        counts = [answer.rows for answer in block]
        ids = np.array([answer.id for answer in block], dtype=f"S{_ID_BYTES}").view(np.uint8).reshape(-1, _ID_BYTES)
        tensors[f"{number}/ids"] = np.repeat(ids, counts, axis=0)
        tensors[f"{number}/times"] = np.repeat([answer.time for answer in block], counts)
        for name in block[0].inputs:
            tensors |= _written(f"{number}/input", name, [answer.inputs[name] for answer in block])
        for name in block[0].outputs:
            tensors |= _written(f"{number}/output", name, [answer.outputs[name] for answer in block])
    return save(tensors, {"format": _FORMAT})


def _written(part: str, name: str, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    array = np.concatenate(arrays)
    if array.dtype.kind != "O":
        return {f"{part}/{name}": array}
    content, ends = texts.pack(array)
    return {f"{part}/{name}": content, f"{part}-ends/{name}": ends}


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
    return [block for _, block in read_all_samples({"": folder}, since, limit)]


def read_all_samples(folders: Mapping[str, Path], since: float, limit: int) -> list[tuple[str, SampleBlock]]:
    """Read as `read_samples` from several servers' folders: the oldest rows of all of them, each with its server's key."""
    if limit <= 0:
        return []
    found = [
        (key, block)
        for key, folder in folders.items()
        for path in sorted(folder.glob("*.safetensors"))
        for block in _read_file(path, since)
    ]
    times = np.sort(np.concatenate([block.times for _, block in found])) if found else np.zeros(0)
    until = times[limit - 1] if len(times) > limit else np.inf
    chosen = ((key, _select(block, block.times <= until)) for key, block in found)
    return [(key, block) for key, block in chosen if len(block.times)]


def file_rows(folder: Path, since: float, limit: int) -> list[bytes]:
    """Return the files, each as it is, that hold the oldest `limit` rows answered after `since`; they may hold others too.

    For a server that sends its rows elsewhere: there, they are laid into a folder of `read_all_samples`.
    """
    found: list[bytes] = []
    rows = 0
    for path in sorted(folder.glob("*.safetensors")) if limit > 0 else ():
        if rows >= limit:
            break
        count = sum(len(block.times) for block in _read_file(path, since))
        with contextlib.suppress(FileNotFoundError):  # dropped meanwhile, as the oldest
            found += [path.read_bytes()] if count else []
            rows += count
    return found


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
        inputs, outputs = (_part(tensors, f"{number}/{part}") for part in ("input", "output"))
        yield SampleBlock(ids, tensors[f"{number}/times"], inputs, outputs)


def _part(tensors: Arrays, part: str) -> dict[str, np.ndarray]:
    found = {key.removeprefix(f"{part}/"): array for key, array in tensors.items() if key.startswith(f"{part}/")}
    ends = {name: tensors.get(f"{part}-ends/{name}") for name in found}
    return {name: array if (end := ends[name]) is None else texts.unpack(array, end) for name, array in found.items()}


def _select(block: SampleBlock, mask: np.ndarray) -> SampleBlock:
    """Keep some rows; a block whose arrays differ in length raises IndexError."""
    inputs, outputs = ({name: array[mask] for name, array in part.items()} for part in (block.inputs, block.outputs))
    return SampleBlock(block.ids[mask], block.times[mask], inputs, outputs)
