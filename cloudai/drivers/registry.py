"""Which drivers there are, found by name and imported when first used.

Whatever goes wrong inside a driver comes out as a `CloudAIError`, also while an iterator of it is being read.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any, cast

from cloudai.display import nearest
from cloudai.drivers.protocols import Driver, ServeDriver, TelemetryDriver, TrainDriver
from cloudai.errors import CloudAIError, DriverError, MissingExtraError, NotFoundError, SpecError

__all__ = ["get", "names", "register", "serve_driver", "telemetry_driver", "train_driver"]

_GROUP = "cloudai.drivers"
_BUILT_IN = {"local": "cloudai.drivers.local:LocalDriver", "simulated": "cloudai.drivers.simulated:SimulatedDriver"}
_registered: dict[str, Callable[[], Driver]] = {}


def register(name: str, factory: Callable[[], Driver]) -> None:
    """Make a driver known in this process, such as one written in a notebook.

    Raises
    ------
    SpecError
        If the name belongs to a built-in driver.
    """
    if name in _BUILT_IN:
        raise SpecError(f"{name!r} is a built-in driver", fix="register yours under another name")
    _registered[name] = factory
    get.cache_clear()


def names() -> list[str]:
    """Return the names of all known drivers."""
    return sorted({*_BUILT_IN, *_registered, *_entry_points()})


@functools.cache
def get(name: str) -> Driver:
    """Return the driver of that name, guarded.

    Raises
    ------
    NotFoundError
        If no driver has that name.
    MissingExtraError
        If the packages that it needs are not installed.
    """
    factory = _registered.get(name)
    try:
        if factory is None and name in _BUILT_IN:
            factory = _load(_BUILT_IN[name])
        elif factory is None and name in _entry_points():
            factory = _entry_points()[name].load()
        if factory is None:
            raise NotFoundError(f"there is no driver {name!r}", fix=nearest(name, names()))
        return cast(Driver, _Guarded(factory(), name))
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "cloudai":
            raise  # ours to mend, not the user's to install
        fix = f'pip install "cloudai[{name}]"'
        raise MissingExtraError(f"the driver {name!r} needs {error.name or error}, which is not installed", fix=fix) from error


def train_driver(name: str) -> TrainDriver:
    """Return a driver that trains; `SpecError` if it does not."""
    return cast(TrainDriver, _able(name, "train"))


def serve_driver(name: str) -> ServeDriver:
    """Return a driver that serves; `SpecError` if it does not."""
    return cast(ServeDriver, _able(name, "serve"))


def telemetry_driver(name: str) -> TelemetryDriver:
    """Return a driver that reads telemetry; `SpecError` if it does not."""
    return cast(TelemetryDriver, _able(name, "telemetry"))


def _able(name: str, act: str) -> Driver:
    driver = get(name)
    if not getattr(driver.capabilities, act):
        able = [other for other in names() if getattr(get(other).capabilities, act)]
        raise SpecError(f"the driver {name!r} cannot {act}", fix=f"use one that can: {', '.join(able)}")
    return driver


def _load(path: str) -> Callable[[], Driver]:
    module, _, attribute = path.partition(":")
    return cast(Callable[[], Driver], getattr(importlib.import_module(module), attribute))


@functools.cache
def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=_GROUP)}


class _Guarded:
    """A driver out of which only `CloudAIError` comes."""

    def __init__(self, driver: Driver, name: str) -> None:
        self._driver = driver
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._driver, attribute)
        return self._guard(value) if callable(value) else value

    def _guard(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                result = method(*args, **kwargs)
            except Exception as error:
                raise self._translated(method.__name__, error) from error
            return self._read(method.__name__, result) if isinstance(result, Iterator) else result

        return call

    def _read(self, act: str, items: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except Exception as error:
                raise self._translated(act, error) from error
            yield item

    def _translated(self, act: str, error: Exception) -> CloudAIError:
        if isinstance(error, CloudAIError):
            return error
        return DriverError(
            f"the driver {self._name!r} failed to {act}: {type(error).__name__}: {error}",
            fix=f"run `cloudai doctor`; if that finds nothing, report it to the maintainer of {self._name!r}",
        )
