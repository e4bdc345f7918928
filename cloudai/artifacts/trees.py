"""Trees of arrays as bytes, without pickle: the numbers as safetensors, the shape of the tree as JSON.

A tree is what state dicts are made of: dicts (with string or integer keys), lists, tuples, numbers, strings, None,
bytes, numpy arrays (of numbers or texts) and torch tensors.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as on_numpy

from cloudai import texts
from cloudai.errors import IntegrityError, SpecError

__all__ = ["Snapshot", "dump", "load"]

_KEY = "cloudai.tree"
_DAMAGED = (SafetensorError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, StopIteration)
"""What reading bytes of somebody else's may raise; a header may claim any size, nest without end, or hold anything."""


_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""The dtypes of numpy and torch as safetensors writes them."""


def dump(tree: Any) -> bytes:
    """Return a tree as the bytes of one safetensors file.

    Raises
    ------
    SpecError
        If the tree holds something that is neither an array nor plain, with its path.
    """
    arrays: dict[str, Any] = {}
    plain = _flatten(tree, "tree", arrays)
    return b"".join(_chunks(arrays, {_KEY: json.dumps(plain)}))


class Snapshot:
    """A tree as it is at one moment, to be written while the original changes.

    The memory of one snapshot is used again by the next: after the first, taking one is a copy and nothing else.

    Examples
    --------
    >>> weights, snapshot = np.zeros(2), Snapshot()
    >>> snapshot.take({"weights": weights})
    >>> weights += 1
    >>> load(b"".join(snapshot.chunks()))
    {'weights': array([0., 0.])}
    """

    def __init__(self) -> None:
        self._plain: Any = None
        self._arrays: dict[str, Any] = {}

    def take(self, tree: Any) -> None:
        """Copy a tree in place of the one before.

        Raises
        ------
        SpecError
            As `dump`; then the snapshot is of no use until the next one is taken.
        """
        found: dict[str, Any] = {}
        self._plain = _flatten(tree, "tree", found)
        self._arrays = {path: _copied(array, self._arrays.get(path)) for path, array in found.items()}
        _wait_for_copies(found)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of the file that `dump` would return, piece by piece and without a copy."""
        return _chunks(self._arrays, {_KEY: json.dumps(self._plain)})


def load(data: bytes) -> Any:
    """Return the tree that `dump` was given; tensors come back as tensors where torch is loaded.

    Raises
    ------
    IntegrityError
        If the bytes are not such a file.
    """
    try:
        plain = json.loads(_metadata(data)[_KEY])
        arrays = _load(data)
        return _restore(plain, arrays)
    except (*_DAMAGED, MemoryError) as error:
        raise IntegrityError(f"this is not a saved tree: {error}", fix="it is damaged: use an earlier one") from None


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ValueError("the header is cut short")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return dict(metadata)


def _chunks(arrays: dict[str, Any], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file: the length of its header, the header, and the arrays, those of wide numbers first.

    Written here and not by the package, which would first copy everything while no other thread can go on.
    """
    order = sorted(arrays, key=lambda path: (-arrays[path].dtype.itemsize, path))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for path in order:
        array, begin = arrays[path], end
        end += array.nbytes
        header[path] = {"dtype": _dtype_name(array, path), "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays lie where processors like them
    yield len(text).to_bytes(8, "little")
    yield text
    for path in order:
        yield _bytes_of(arrays[path])


def _dtype_name(array: Any, path: str) -> str:
    name = str(array.dtype).removeprefix("torch.")
    if name not in _NAMES:
        raise SpecError(f"{path} has the dtype {name}, which cannot be saved", fix="convert it to numbers first")
    return _NAMES[name]


def _bytes_of(array: Any) -> memoryview:
    """Return the memory of an array, row by row."""
    if not isinstance(array, np.ndarray):
        import torch

        array = array.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array.reshape(-1).view(np.uint8))


def _copied(array: Any, buffer: Any) -> Any:
    """Copy an array into a buffer where it fits in, else into a new one."""
    fits = type(buffer) is type(array) and buffer.dtype == array.dtype and buffer.shape == array.shape
    if isinstance(array, np.ndarray):
        if not fits:
            return array.copy()
        np.copyto(buffer, array)
        return buffer
    import torch

    if not fits:
        buffer = torch.empty(array.shape, dtype=array.dtype, pin_memory=array.is_cuda)
    return buffer.copy_(array, non_blocking=array.is_cuda)


def _wait_for_copies(arrays: dict[str, Any]) -> None:
    devices = {array.device for array in arrays.values() if not isinstance(array, np.ndarray) and array.is_cuda}
    for device in devices:
        import torch

        torch.cuda.synchronize(device)


def _load(data: bytes) -> dict[str, Any]:
    if "torch" in sys.modules:
        from safetensors import torch as on_torch

        return dict(on_torch.load(data))  # of safetensors, which knows no code
    return dict(on_numpy.load(data))


def _flatten(value: Any, path: str, arrays: dict[str, Any]) -> Any:
    """Return the plain part of a value; arrays are put aside under their path."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        arrays[path] = value.detach()
        return {"tensor": path}
    if isinstance(value, np.ndarray) and value.dtype.kind in "UTO" and texts.is_text(value):
        arrays[path], arrays[f"{path}#ends"] = texts.pack(value)
        return {"texts": path, "shape": list(value.shape)}
    if isinstance(value, np.ndarray):
        arrays[path] = np.ascontiguousarray(value)
        return {"array": path, "shape": list(value.shape)}
    if isinstance(value, dict):
        return {"dict": [[_plain_key(k, path), _flatten(v, f"{path}.{k}", arrays)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flatten(item, f"{path}.{i}", arrays) for i, item in enumerate(value)]}
    return _flatten_scalar(value, path)


def _flatten_scalar(value: Any, path: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    raise SpecError(
        f"{path} is a {type(value).__name__}, which cannot be saved",
        fix="save arrays, tensors, numbers, texts, and dicts, lists and tuples of them",
    )


def _plain_key(key: Any, path: str) -> str | int:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise SpecError(f"{path} has the key {key!r}", fix="use texts or integers as keys")


def _restore(plain: Any, arrays: dict[str, Any]) -> Any:
    if not isinstance(plain, dict):
        return plain
    kind, content = next(iter(plain.items()))
    if kind == "tensor":
        return arrays[content]
    if kind == "array":
        return _as_numpy(arrays[content]).reshape(plain["shape"])
    if kind == "texts":
        ends = _as_numpy(arrays[f"{content}#ends"]).reshape(plain["shape"])
        return texts.unpack(_as_numpy(arrays[content]), ends)
    if kind == "dict":
        return {key: _restore(value, arrays) for key, value in content}
    if kind in ("list", "tuple"):
        items = [_restore(item, arrays) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "float":
        return float(content)
    raise ValueError(f"unknown kind {kind!r}")


def _as_numpy(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy())
