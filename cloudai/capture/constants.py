"""Values written as source: what a notebook's constants become in the captured module, and what cannot become source."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import logging
import math
import pathlib
import re
import sys
import typing
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from types import EllipsisType, FunctionType, GenericAlias, ModuleType, UnionType
from typing import Any

__all__ = ["MOST_BYTES", "Uncarriable", "advice_for", "describe", "render", "size_of"]

MOST_BYTES = 64 * 1024
"""The longest source that one constant may become."""

Refer = Callable[[Any, str], str]
"""Gives the expression for a module, class or function, under the label that errors call it by."""

_TOO_LARGE = f"more than {MOST_BYTES // 1024} KiB as source"
_AS_DATA = "pass it as data=, or load it inside the function"


class Uncarriable(Exception):  # noqa: N818 - caught and listed by capture, never shown
    """A value that cannot be written as source."""

    def __init__(self, label: str, value: Any, reason: str = "", fix: str = "") -> None:
        super().__init__(label)
        self.label, self.value, self.reason = label, value, reason
        self.fix = fix or advice_for(value)


def render(value: Any, label: str, refer: Refer) -> str:
    """Write a value as a Python expression.

    Parameters
    ----------
    value : object
        The value; containers are written with all that they hold.
    label : str
        The name that the user knows it by.
    refer : callable
        Gives the expression for a module, class or function inside.

    Raises
    ------
    Uncarriable
        If it, or something in it, cannot be written, or is longer than `MOST_BYTES`.

    Examples
    --------
    >>> render({"sizes": (1, 2.5), "on": True}, "config", lambda value, label: value.__name__)
    "{'sizes': (1, 2.5), 'on': True}"
    """
    return _Renderer(value, label, refer).text(value, label)


class _Renderer:
    def __init__(self, whole: Any, label: str, refer: Refer) -> None:
        self.whole, self.label, self.refer = whole, label, refer
        self.left = MOST_BYTES
        self.open: set[int] = set()

    def text(self, value: Any, label: str) -> str:
        if id(value) in self.open:
            raise Uncarriable(self.label, self.whole, "it contains itself")
        if type(value) in (str, bytes) and len(value) > self.left:
            self._spend(len(value))
        plain = _plain(value)
        if plain is not None:
            self._spend(len(plain))
            return plain
        self.open.add(id(value))
        written = self._container(value, label) or self._made(value, label) or self.refer(value, label)
        self.open.discard(id(value))
        self._spend(2)
        return written

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Uncarriable(self.label, self.whole, _TOO_LARGE, _AS_DATA)

    def _container(self, value: Any, label: str) -> str:
        """Write a plain container, or return an empty text."""
        if type(value) in (list, tuple):
            items = ", ".join(self.text(item, f"{label}[{i}]") for i, item in enumerate(value))
            return f"[{items}]" if type(value) is list else f"({items}{',' * (len(value) == 1)})"
        if type(value) is dict:
            pairs = (f"{self.text(key, f'a key of {label}')}: {self.text(value[key], f'{label}[{key!r}]')}" for key in value)
            return f"{{{', '.join(pairs)}}}"
        if type(value) in (set, frozenset):
            items = ", ".join(sorted(self.text(item, f"an item of {label}") for item in value))
            return f"{{{items}}}" if type(value) is set and items else f"{self.refer(type(value), label)}([{items}])"
        return ""

    def _made(self, value: Any, label: str) -> str:
        """Write what a call, an attribute or a subscript makes, or return an empty text."""
        if isinstance(value, enum.Enum) and value.name in type(value).__members__:
            return f"{self.refer(type(value), label)}.{value.name}"
        if isinstance(value, GenericAlias | UnionType) or typing.get_origin(value) is not None:
            return self._subscripted(value, label)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.dtype):
            return f"{self.refer(torch, label)}.{str(value).removeprefix('torch.')}"
        recipe = _recipe(value)
        if recipe is None:
            return ""
        maker, args, kwargs = recipe
        parts = [self.text(arg, label) for arg in args]
        parts += [f"{name}={self.text(item, f'{label}.{name}')}" for name, item in kwargs.items()]
        return f"{self.refer(maker, label)}({', '.join(parts)})"

    def _subscripted(self, value: Any, label: str) -> str:
        """Write a type such as ``dict[str, int]`` or ``int | None``."""
        origin, args = typing.get_origin(value), typing.get_args(value)
        union = origin in (typing.Union, UnionType)
        inner = ", ".join(self.text(arg, label) for arg in args)
        return f"{self.refer(typing.Union if union else origin, label)}[{inner or '()'}]"


def _plain(value: Any) -> str | None:
    """Write a value that needs no name, or return None."""
    kind = type(value)
    if value is None or kind in (bool, EllipsisType):
        return repr(value)
    if kind is int:
        return repr(value) if value.bit_length() < 4096 else hex(value)  # int() refuses long decimals
    if kind is float:
        return (
            repr(value)
            if math.isfinite(value)
            else "(1e999-1e999)"
            if math.isnan(value)
            else repr(value).replace("inf", "1e999")
        )
    if kind in (str, bytes):
        return repr(value)
    return None


def _recipe(value: Any) -> tuple[Any, Iterable[Any], dict[str, Any]] | None:
    """Return a callable and the arguments that make an equal value."""
    kind = type(value)
    if kind in _RECIPES:
        return kind, *_RECIPES[kind](value)
    if isinstance(value, pathlib.PurePath):
        return pathlib.Path if isinstance(value, pathlib.Path) else kind, (str(value),), {}
    if kind is re.Pattern:
        return re.compile, (value.pattern, value.flags), {}
    if kind is logging.Logger:
        return logging.getLogger, (value.name,), {}
    if kind is typing.TypeVar:
        return kind, (value.__name__, *value.__constraints__), {"bound": value.__bound__} if value.__bound__ else {}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return kind, tuple(value), {}
    if _is_plain_dataclass(value):
        return kind, (), dict(vars(value))
    return _numeric_recipe(value)


_RECIPES: dict[type, Callable[[Any], tuple[Iterable[Any], dict[str, Any]]]] = {
    complex: lambda z: ((z.real, z.imag), {}),
    range: lambda r: ((r.start, r.stop, r.step), {}),
    bytearray: lambda b: ((bytes(b),), {}),
    OrderedDict: lambda d: ((list(d.items()),), {}),
    defaultdict: lambda d: ((d.default_factory, dict(d)), {}),
    functools.partial: lambda p: ((p.func, *p.args), p.keywords),
    dt.date: lambda d: ((d.year, d.month, d.day), {}),
    dt.timedelta: lambda d: ((d.days, d.seconds, d.microseconds), {}),
    decimal.Decimal: lambda d: ((str(d),), {}),
}


def _is_plain_dataclass(value: Any) -> bool:
    """Whether calling the class with the fields gives the same instance again."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type) or hasattr(value, "__post_init__"):
        return False
    fields = dataclasses.fields(value)
    return all(field.init for field in fields) and set(getattr(value, "__dict__", ())) == {field.name for field in fields}


def _numeric_recipe(value: Any) -> tuple[Any, Iterable[Any], dict[str, Any]] | None:
    """Return the recipe for a numpy scalar, a torch device or a torch size; neither library is imported here."""
    kind = type(value)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(value, numpy.generic) and isinstance(value.item(), bool | int | float | complex):
        return kind, (value.item(),), {}
    if torch is not None and kind is torch.device:
        return kind, (str(value),), {}
    if torch is not None and kind is torch.Size:
        return kind, (tuple(value),), {}
    return None


def size_of(value: Any) -> int:
    """Estimate how many bytes a value takes, in microseconds."""
    try:
        return _measured(value)
    except Exception:  # noqa: BLE001 - a foreign object's own attributes may raise anything
        return sys.getsizeof(0)


def _measured(value: Any) -> int:
    if isinstance(getattr(value, "nbytes", None), int):
        return int(value.nbytes)
    if hasattr(value, "memory_usage"):  # pandas
        usage = value.memory_usage()
        return int(usage.sum() if hasattr(usage, "sum") else usage)
    if hasattr(value, "estimated_size"):  # polars
        return int(value.estimated_size())
    if hasattr(value, "parameters") and hasattr(value, "buffers"):  # torch.nn.Module
        return sum(int(tensor.nbytes) for tensors in (value.parameters(), value.buffers()) for tensor in tensors)
    own = sys.getsizeof(value)
    if isinstance(value, list | tuple | set | frozenset | dict) and value:
        items = value.items() if isinstance(value, dict) else value
        sample = [item for item, _ in zip(items, range(100), strict=False)]
        parts = [sum(map(size_of, item)) if isinstance(value, dict) else size_of(item) for item in sample]
        return own + sum(parts) * len(value) // len(sample)
    return own


def describe(label: str, value: Any) -> str:
    """Name a value with its type and, where it says something, its size.

    Examples
    --------
    >>> describe("table", bytes(48_200_000))
    '‘table’ (bytes, 48.2 MB)'
    """
    size, unit = float(size_of(value)), "bytes"
    if size < 1000 or isinstance(value, type | FunctionType | ModuleType):
        return f"‘{label}’ ({type(value).__name__})"
    for larger in ("kB", "MB", "GB"):
        if size >= 1000:
            size, unit = size / 1000, larger
    return f"‘{label}’ ({type(value).__name__}, {size:.4g} {unit})"


def advice_for(value: Any) -> str:
    """Say what to do about a value that cannot be carried."""
    module = type(value).__module__.partition(".")[0]
    if isinstance(value, FunctionType) and value.__name__ == "<lambda>":
        return "write a def: a lambda has no source of its own"
    if hasattr(value, "parameters") and hasattr(value, "state_dict"):
        return "build it inside the function"
    if any(hasattr(value, name) for name in ("nbytes", "memory_usage", "estimated_size")):
        return _AS_DATA
    if hasattr(value, "fileno"):
        return "open it inside the function"
    if module in ("_thread", "threading", "_asyncio", "socket", "_queue", "queue", "multiprocessing"):
        return "create it inside the function"
    return "create it inside the function, or pass plain values as config="
