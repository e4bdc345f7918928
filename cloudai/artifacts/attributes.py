"""The plain attributes of a torch module as JSON, and back.

Numbers, texts, None and lists stand for themselves; everything else is an object whose ``"$"`` says what it is. Reading
calls nothing but constructors named here.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import pathlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from cloudai.errors import CaptureError, IntegrityError

__all__ = ["Names", "Things", "decode", "encode", "refused"]

_DEEPEST = 40
_FIX = "make it a buffer, a parameter or a plain value, or build it inside forward"


class Names(Protocol):
    """Gives names to what JSON cannot hold."""

    def tensor(self, tensor: torch.Tensor, path: str) -> str:
        """Return the key of a tensor."""

    def module(self, module: nn.Module, path: str) -> int:
        """Return the index of a module."""

    def location(self, thing: Any, path: str) -> str:
        """Return where a class or function is found, as ``module:qualname``."""


class Things(Protocol):
    """Gives back what has a name."""

    def tensor(self, key: str) -> torch.Tensor:
        """Return the tensor of that key."""

    def module(self, index: int) -> nn.Module:
        """Return the module of that index."""

    def function(self, location: str) -> Any:
        """Return the function at that location."""

    def module_class(self, location: str) -> type[nn.Module]:
        """Return the module class at that location."""

    def carried_class(self, location: str) -> type:
        """Return a class of the user's own code."""


def encode(value: Any, path: str, names: Names, depth: int = 0) -> Any:
    """Describe an attribute's value.

    Parameters
    ----------
    value : object
        The value.
    path : str
        Where it was found, for errors.
    names : Names
        Gives names to tensors, modules, classes and functions.

    Raises
    ------
    CaptureError
        If it cannot be described, with its path, its type and the fix.
    """
    if depth > _DEEPEST:
        raise refused(path, value, "it contains itself, or is nested too deeply")
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    for kind, encoder in _ENCODERS:
        if isinstance(value, kind):
            return encoder(value, path, lambda part, where: encode(part, where, names, depth + 1), names)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, path, lambda part, where: encode(part, where, names, depth + 1), names)
    if callable(value) and hasattr(value, "__name__"):
        return {"$": "class" if isinstance(value, type) else "function", "at": names.location(value, path)}
    raise refused(path, value)


def refused(path: str, value: Any, reason: str = "", fix: str = _FIX) -> CaptureError:
    """Return the error for something that cannot be described."""
    because = f": {reason}" if reason else ""
    return CaptureError(f"‘{path}’ ({type(value).__name__}) cannot be carried to the worker{because}", fix=fix)


_Encode = Callable[[Any, str], Any]


def _items(kind: str, value: Any, path: str, inner: _Encode) -> dict[str, Any]:
    return {"$": kind, "items": [inner(item, f"{path}[{i}]") for i, item in enumerate(value)]}


def _sequence(value: Any, path: str, inner: _Encode, _names: Names) -> Any:
    kinds: dict[type, str] = {tuple: "tuple", torch.Size: "size", list: "list"}
    if type(value) not in kinds:
        raise refused(path, value)
    kind = kinds[type(value)]
    encoded = _items(kind, value, path, inner)
    return encoded["items"] if kind == "list" else encoded


def _set(value: Any, path: str, inner: _Encode, _names: Names) -> Any:
    encoded = _items(type(value).__name__, value, path, inner)
    return encoded | {"items": sorted(encoded["items"], key=json.dumps)}


def _dict(value: Any, path: str, inner: _Encode, _names: Names) -> Any:
    kind = {dict: "dict", OrderedDict: "ordered"}.get(type(value))
    if kind is None:
        raise refused(path, value)
    return {"$": kind, "items": [[inner(key, f"a key of {path}"), inner(value[key], f"{path}[{key!r}]")] for key in value]}


def _dataclass(value: Any, path: str, inner: _Encode, names: Names) -> Any:
    at = names.location(type(value), path)
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)} | getattr(value, "__dict__", {})
    return {"$": "dataclass", "at": at, "fields": {name: inner(item, f"{path}.{name}") for name, item in fields.items()}}


def _enum(value: Any, path: str, _inner: _Encode, names: Names) -> Any:
    return {"$": "enum", "at": names.location(type(value), path), "name": value.name}


def _partial(value: Any, path: str, inner: _Encode, _names: Names) -> Any:
    kwargs = {name: inner(item, f"{path}.{name}") for name, item in value.keywords.items()}
    return {"$": "partial", "func": inner(value.func, path), "args": inner(list(value.args), path), "kwargs": kwargs}


def _method(value: Any, path: str, _inner: _Encode, names: Names) -> Any:
    owner = value.__self__
    if not isinstance(owner, nn.Module) or getattr(type(owner), value.__name__, None) is not value.__func__:
        raise refused(path, value, "it is not a method of a module's own class", "write it as a method of the class")
    return {"$": "method", "of": names.module(owner, path), "name": value.__name__}


def _weakref(value: Any, path: str, inner: _Encode, _names: Names) -> Any:
    target = value()
    if not isinstance(target, torch.Tensor):
        raise refused(path, value)
    return {"$": "weakref", "to": inner(target, path)}


def _numpy(value: Any, path: str, inner: _Encode, _names: Names) -> Any:
    if not isinstance(value.item(), bool | int | float | complex):
        raise refused(path, value)
    return {"$": "numpy", "dtype": value.dtype.name, "value": inner(value.item(), path)}


_ENCODERS: tuple[tuple[Any, Callable[[Any, str, _Encode, Names], Any]], ...] = (
    (enum.Enum, _enum),
    (np.generic, _numpy),  # before float: numpy.float64 is one
    (tuple | list, _sequence),
    (set | frozenset, _set),
    (dict, _dict),
    (nn.Module, lambda value, path, _, names: {"$": "module", "index": names.module(value, path)}),
    (torch.Tensor, lambda value, path, _, names: {"$": "tensor", "key": names.tensor(value, path)}),
    (torch.dtype, lambda value, *_: {"$": "dtype", "name": str(value).removeprefix("torch.")}),
    (torch.device, lambda value, *_: {"$": "device", "name": str(value)}),
    (pathlib.Path, lambda value, *_: {"$": "path", "value": str(value)}),
    (bytes, lambda value, *_: {"$": "bytes", "hex": value.hex()}),
    (complex, lambda value, path, inner, _: _items("complex", (value.real, value.imag), path, inner)),
    (float, lambda value, *_: {"$": "float", "value": repr(value)}),
    (functools.partial, _partial),
    (MethodType, _method),
    (weakref.ReferenceType, _weakref),
)


def decode(encoded: Any, things: Things) -> Any:
    """Build the value that `encode` described.

    Raises
    ------
    IntegrityError
        If it names something that a module may not hold. Malformed JSON raises what Python raises (`TypeError` and such).
    """
    if encoded is None or isinstance(encoded, bool | int | float | str):
        return encoded
    if isinstance(encoded, list):
        return [decode(item, things) for item in encoded]
    kind = encoded["$"]
    if kind in _CONTAINERS:
        return _CONTAINERS[kind]([decode(item, things) for item in encoded["items"]])
    if kind not in _DECODERS:
        raise IntegrityError(f"a module cannot hold a {kind!r}", fix="update cloudai, or capture the module again")
    return _DECODERS[kind](encoded, things)


def _decode_partial(encoded: Mapping[str, Any], things: Things) -> Any:
    func = decode(encoded["func"], things)
    kwargs = {str(name): decode(item, things) for name, item in encoded["kwargs"].items()}
    return functools.partial(func, *decode(encoded["args"], things), **kwargs)


def _decode_method(encoded: Mapping[str, Any], things: Things) -> Any:
    owner = things.module(encoded["of"])
    function = getattr(type(owner), encoded["name"])
    if not isinstance(function, FunctionType):
        raise IntegrityError(f"{encoded['name']!r} is not a method of a module", fix="capture the module again")
    return MethodType(function, owner)


def _decode_enum(encoded: Mapping[str, Any], things: Things) -> Any:
    cls = things.carried_class(encoded["at"])
    if not issubclass(cls, enum.Enum):
        raise IntegrityError(f"{encoded['at']!r} is not an enum", fix="capture the module again")
    return cls[encoded["name"]]


def _decode_dataclass(encoded: Mapping[str, Any], things: Things) -> Any:
    cls = things.carried_class(encoded["at"])
    if not dataclasses.is_dataclass(cls):
        raise IntegrityError(f"{encoded['at']!r} is not a dataclass", fix="capture the module again")
    instance = object.__new__(cls)
    for name, item in encoded["fields"].items():
        object.__setattr__(instance, name, decode(item, things))  # also where it is frozen
    return instance


def _decode_numpy(encoded: Mapping[str, Any], things: Things) -> Any:
    return np.dtype(encoded["dtype"]).type(decode(encoded["value"], things))


def _decode_dtype(encoded: Mapping[str, Any], _things: Things) -> torch.dtype:
    dtype = getattr(torch, encoded["name"])
    if not isinstance(dtype, torch.dtype):
        raise IntegrityError(f"{encoded['name']!r} is not a dtype", fix="capture the module again")
    return dtype


_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "size": torch.Size,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "ordered": OrderedDict,
    "complex": lambda parts: complex(*parts),
}

_DECODERS: dict[str, Callable[[Mapping[str, Any], Things], Any]] = {
    "enum": _decode_enum,
    "numpy": _decode_numpy,
    "module": lambda encoded, things: things.module(encoded["index"]),
    "tensor": lambda encoded, things: things.tensor(encoded["key"]),
    "dtype": _decode_dtype,
    "device": lambda encoded, _: torch.device(str(encoded["name"])),
    "path": lambda encoded, _: pathlib.Path(encoded["value"]),
    "bytes": lambda encoded, _: bytes.fromhex(encoded["hex"]),
    "float": lambda encoded, _: float(encoded["value"]),
    "partial": _decode_partial,
    "method": _decode_method,
    "weakref": lambda encoded, things: weakref.ref(decode(encoded["to"], things)),
    "dataclass": _decode_dataclass,
    "class": lambda encoded, things: things.module_class(encoded["at"]),
    "function": lambda encoded, things: things.function(encoded["at"]),
}
