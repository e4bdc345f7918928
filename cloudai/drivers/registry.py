"""Which drivers there are, found by name and imported when first used.

Whatever goes wrong inside a driver comes out as a `CloudAIError`, also while an iterator of it is being read. A driver that
cannot be loaded says which package it is of and what to do, and never stands in the way of the others.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, cast

from cloudai.display import nearest
from cloudai.drivers.protocols import (
    Capabilities,
    Driver,
    Needs,
    Offer,
    Problem,
    ScaleDriver,
    ServeDriver,
    TelemetryDriver,
    TrainDriver,
)
from cloudai.errors import CloudAIError, DriverError, MissingExtraError, NotFoundError, SpecError

__all__ = [
    "get",
    "guarded",
    "names",
    "offers",
    "problems",
    "register",
    "serve_driver",
    "telemetry_driver",
    "train_driver",
]

_GROUP = "cloudai.drivers"
_BUILT_IN = {
    "local": "cloudai.drivers.local:LocalDriver",
    "ray": "cloudai.drivers.ray.driver:RayDriver",
    "simulated": "cloudai.drivers.simulated:SimulatedDriver",
}
_PROTOCOLS = {"train": TrainDriver, "serve": ServeDriver, "telemetry": TelemetryDriver}
_registered: dict[str, Callable[[], Driver]] = {}


@dataclass(frozen=True)
class _Source:
    """Where a driver comes from, for the errors about it."""

    name: str
    load: Callable[[], Callable[[], Driver]]
    of: str = ""
    """In words, such as ``" of the package cloudai-pocket 0.1"``."""
    fix: str = ""
    """What to do where it cannot be loaded."""
    install: str = ""
    """What to do where it lacks a package."""


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
    """Return the names of all known drivers; none of them is loaded for it."""
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
    DriverError
        If it cannot be loaded, lacks a method, or two packages have a driver of that name.
    """
    if not isinstance(name, str):
        raise SpecError(f"the driver {name!r} is no name", fix=nearest("", names()))
    source = _source(name)
    try:
        driver = source.load()()
    except CloudAIError:
        raise
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "cloudai" and name in _BUILT_IN:
            raise  # ours to mend, not the user's to install
        what = f"the driver {name!r}{source.of} needs {error.name or error}, which is not installed"
        raise MissingExtraError(what, fix=source.install) from error
    except Exception as error:
        what = f"the driver {name!r}{source.of} cannot be loaded: {type(error).__name__}: {error}"
        raise DriverError(what, fix=source.fix) from error
    if lacks := _lacks(driver, name):
        raise DriverError(f"the driver {name!r}{source.of} is not one: {lacks}", fix=source.fix)
    return guarded(driver, name)


def guarded(driver: Driver, name: str) -> Driver:
    """Return a driver out of which only `CloudAIError` comes, also while an iterator of it is being read."""
    return cast(Driver, _Guarded(driver, name))


def train_driver(name: str) -> TrainDriver:
    """Return a driver that trains; `SpecError` if it does not."""
    return cast(TrainDriver, _able(name, "train"))


def serve_driver(name: str) -> ServeDriver:
    """Return a driver that serves; `SpecError` if it does not."""
    return cast(ServeDriver, _able(name, "serve"))


def telemetry_driver(name: str) -> TelemetryDriver:
    """Return a driver that reads telemetry; `SpecError` if it does not."""
    return cast(TelemetryDriver, _able(name, "telemetry"))


def offers(needs: Needs, *, first: str) -> list[Offer]:
    """Return what all drivers that train offer, those of the driver `first` before the others.

    A driver that cannot be asked gives an offer that is not available and says why.
    """
    found: list[Offer] = []
    for name in sorted(names(), key=lambda name: name != first):
        try:
            driver = get(name)
            found += list(driver.offers(needs)) if driver.capabilities.train else []
        except CloudAIError as error:
            found.append(_no_offer(name, error.what))
    return found


def problems() -> list[tuple[str, Problem]]:
    """Return what is amiss with each known driver, by its name: that it cannot be loaded, or what it lacks here."""
    found: list[tuple[str, Problem]] = []
    for name in names():
        try:
            found += [(name, problem) for problem in get(name).check()]
        except CloudAIError as error:
            found.append((name, Problem(error.what, error.fix)))
        if name in _BUILT_IN and (points := _entry_points().get(name)):
            what = f"{_packages(points)} has a driver of a built-in one's name, which is not used"
            found.append((name, Problem(what, "its maintainer has to rename it")))
    return found


def _no_offer(name: str, why_not: str) -> Offer:
    return Offer(name, "nowhere", math.nan, "", "none", date.today().isoformat(), available=False, why_not=why_not)


def _able(name: str, act: str) -> Driver:
    driver = get(name)
    if not getattr(driver.capabilities, act):
        able = ", ".join(other for other in names() if _is_able(other, act)) or "there is none yet"
        raise SpecError(f"the driver {name!r} cannot {act}", fix=f"use one that can: {able}")
    return driver


def _is_able(name: str, act: str) -> bool:
    try:
        return bool(getattr(get(name).capabilities, act))
    except CloudAIError:
        return False


def _source(name: str) -> _Source:
    """Find where the driver comes from: this process first, then cloudai itself, then what is installed."""
    if name in _registered:
        fix = "mend what was given to cloudai.drivers.register"
        return _Source(name, lambda: _registered[name], "", fix, "install it")
    if name in _BUILT_IN:
        fix = "reinstall cloudai"
        return _Source(name, lambda: _load(_BUILT_IN[name]), "", fix, f'pip install "cloudai[{name}]"')
    points = _entry_points().get(name)
    if not points:
        raise NotFoundError(f"there is no driver {name!r}", fix=nearest(name, names()))
    if len(points) > 1:
        raise DriverError(f"{_packages(points)} all have a driver {name!r}", fix="uninstall all but one of them")
    package = _package(points[0])
    fix = f"report it to the maintainer of {package}, or uninstall it: pip uninstall {package}"
    of = f" of the package {package} {getattr(points[0].dist, 'version', '')}".rstrip()
    return _Source(name, points[0].load, of, fix, f"install what {package} needs: pip install --upgrade {package}")


def _lacks(driver: Any, name: str) -> str:
    """Say what an object lacks to be the driver that it says it is; empty where nothing."""
    capabilities = getattr(driver, "capabilities", None)
    if not isinstance(capabilities, Capabilities):
        return f"capabilities is {type(capabilities).__name__}, not cloudai.drivers.protocols.Capabilities"
    if getattr(driver, "name", None) != name:
        return f"it calls itself {getattr(driver, 'name', None)!r}"
    wanted = [("", Driver), *((act, protocol) for act, protocol in _PROTOCOLS.items() if getattr(capabilities, act))]
    wanted += [("be asked to scale", ScaleDriver)] if capabilities.autoscaling == "asked" else []
    for act, protocol in wanted:
        for method in (method for method in vars(protocol) if not method.startswith("_") and callable(vars(protocol)[method])):
            if not callable(getattr(driver, method, None)):
                return f"it has no method {method}()" + (f", and says that it can {act}" if act else "")
    return ""


def _load(path: str) -> Callable[[], Driver]:
    module, _, attribute = path.partition(":")
    return cast(Callable[[], Driver], getattr(importlib.import_module(module), attribute))


@functools.cache
def _entry_points() -> dict[str, list[Any]]:
    """Return the installed entry points by name; of the same package on two paths only the first counts."""
    from importlib.metadata import entry_points

    found: dict[str, dict[str, Any]] = {}
    for point in entry_points(group=_GROUP):
        found.setdefault(point.name, {}).setdefault(_package(point), point)
    return {name: list(points.values()) for name, points in found.items()}


def _package(point: Any) -> str:
    return str(getattr(point.dist, "name", "") or point.value)


def _packages(points: Iterable[Any]) -> str:
    return " and ".join(sorted(f"the package {_package(point)}" for point in points))


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
            lazy = isinstance(result, Iterable) and not isinstance(result, Collection)
            return self._read(method.__name__, result) if lazy else result

        return call

    def _read(self, act: str, items: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from items
        except Exception as error:
            raise self._translated(act, error) from error

    def _translated(self, act: str, error: Exception) -> CloudAIError:
        if isinstance(error, CloudAIError):
            return error
        return DriverError(
            f"the driver {self._name!r} failed to {act}: {type(error).__name__}: {error}",
            fix=f"run `cloudai doctor`; if that finds nothing, report it to the maintainer of {self._name!r}",
        )
