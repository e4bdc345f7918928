"""Trees of arrays as bytes, without pickle: the numbers as safetensors, the shape of the tree as JSON.

A tree is what state dicts are made of: dicts (with string or integer keys), lists, tuples, numbers, strings, None,
bytes, numpy arrays (of numbers or texts) and torch tensors.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as on_numpy

from cloudai import texts
from cloudai.errors import IntegrityError, SpecError

__all__ = ["dump", "load"]

_KEY = "cloudai.tree"
_DAMAGED = (SafetensorError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, StopIteration)
"""What reading bytes of somebody else's may raise; a header may claim any size, nest without end, or hold anything."""


def dump(tree: Any) -> bytes:
    """Return a tree as the bytes of one safetensors file.

    Raises
    ------
    SpecError
        If the tree holds something that is neither an array nor plain, with its path.
    """
    arrays: dict[str, Any] = {}
    plain = _flatten(tree, "tree", arrays)
    return _save(arrays, {_KEY: json.dumps(plain)})


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


def _save(arrays: dict[str, Any], metadata: dict[str, str]) -> bytes:
    if any(not isinstance(array, np.ndarray) for array in arrays.values()):
        import torch
        from safetensors import torch as on_torch

        tensors = {name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for name, a in arrays.items()}
        return bytes(on_torch.save(tensors, metadata))
    return bytes(on_numpy.save(arrays, metadata))


def _load(data: bytes) -> dict[str, Any]:
    if "torch" in sys.modules:
        from safetensors import torch as on_torch

        return dict(on_torch.load(data))
    return dict(on_numpy.load(data))


def _flatten(value: Any, path: str, arrays: dict[str, Any]) -> Any:
    """Return the plain part of a value; arrays are put aside under their path."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        arrays[path] = value.detach().cpu().clone().contiguous()  # a clone: safetensors refuses shared memory
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
