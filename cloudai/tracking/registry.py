"""Which trackers there are, found by the scheme of their address and imported when first used."""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from cloudai.display import nearest
from cloudai.errors import MissingExtraError, SpecError
from cloudai.tracking.protocol import Factory, Tracker

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["NONE", "check_address", "parse_address", "schemes", "tracker_for"]

NONE = "none"
"""The address that records nothing."""

_GROUP = "cloudai.trackers"


@dataclass(frozen=True)
class _BuiltIn:
    where: str
    packages: tuple[str, ...]
    extra: str


_MLFLOW = _BuiltIn("cloudai.tracking.mlflow:MlflowTracker", ("mlflow",), "train")
_MLFLOW_SQL = _BuiltIn("cloudai.tracking.mlflow:MlflowTracker", ("mlflow", "sqlalchemy", "alembic"), "train")
_BUILT_IN = {
    "sqlite": _MLFLOW_SQL,
    "postgresql": _MLFLOW_SQL,
    "mysql": _MLFLOW_SQL,
    "mssql": _MLFLOW_SQL,
    "http": _MLFLOW,
    "https": _MLFLOW,
    "databricks": _MLFLOW,
    "wandb": _BuiltIn("cloudai.tracking.wandb:WandbTracker", ("wandb",), "wandb"),
}


def schemes() -> list[str]:
    """Return the schemes of all known trackers."""
    return sorted({*_BUILT_IN, *_entry_points()})


def parse_address(address: str) -> str:
    """Return an address that means the same in every process.

    A relative SQLite path is taken from the working folder, and ``WANDB_MODE=offline`` is written into the address.

    Raises
    ------
    SpecError
        If no tracker has such an address.

    Examples
    --------
    >>> parse_address("http://127.0.0.1:5000")
    'http://127.0.0.1:5000'
    >>> parse_address("wanbd://me/digits")
    Traceback (most recent call last):
    cloudai.errors.SpecError: there is no tracker for 'wanbd://me/digits'
    Fix: did you mean 'wandb'? There is: 'wandb', 'databricks', 'http', 'https', 'mssql', 'mysql', 'postgresql', 'sqlite'
    """
    if address == NONE:
        return NONE
    scheme = _scheme(address)
    if scheme == "sqlite":
        return _absolute(address)
    if scheme == "wandb":
        from cloudai.tracking.wandb import parse

        return parse(address, os.environ).text
    return address


def check_address(address: str) -> None:
    """Make sure that a tracker can be made here, without importing its package or asking it anything.

    Raises
    ------
    SpecError
        If no tracker has such an address, or it lacks its key.
    MissingExtraError
        If the package that it needs is not installed.
    """
    if address == NONE:
        return
    scheme = _scheme(address)
    built_in = _BUILT_IN.get(scheme)
    if built_in is None:
        _check_entry_point(_entry_points()[scheme])
        return
    for package in built_in.packages:
        if not _installed(package):
            fix = f'pip install "cloudai[{built_in.extra}]", or settings.configure(tracking="none")'
            raise MissingExtraError(f"tracking in {address} needs {package}, which is not installed", fix=fix)
    if scheme == "wandb":
        from cloudai.tracking.wandb import check_key, parse

        check_key(parse(address, os.environ), os.environ)


def tracker_for(address: str, folder: Path) -> Tracker:
    """Return the tracker of an address.

    Parameters
    ----------
    address : str
        As `parse_address` returns it.
    folder : Path
        Where the tracker may keep files of this run on this machine; made when it first does.

    Raises
    ------
    SpecError
        If no tracker has such an address, or it is ``"none"``.
    ImportError
        If its package is not installed.
    """
    scheme = _scheme(address)
    built_in = _BUILT_IN.get(scheme)
    if built_in is None:
        return cast(Factory, _entry_points()[scheme].load())(address, folder)
    module, _, name = built_in.where.partition(":")
    return cast(Factory, getattr(importlib.import_module(module), name))(address, folder)


def _scheme(address: str) -> str:
    scheme = urlsplit(address).scheme.partition("+")[0] or address.partition(":")[0]  # sqlite+pysqlite:// is SQLite
    if scheme in _BUILT_IN or (scheme and scheme in _entry_points()):
        return scheme
    if "://" not in address:
        fix = "MLflow keeps runs in a database, sqlite:///mlflow.db, or on a server, http://…; Weights & Biases is wandb://…"
        raise SpecError(f"{address!r} is no address of a tracker", fix=fix)
    raise SpecError(f"there is no tracker for {address!r}", fix=nearest(scheme, schemes()))


def _absolute(address: str) -> str:
    head, mark, path = address.partition(":///")
    if not mark or not path.strip("/") or path.startswith(":memory:"):
        raise SpecError(f"{address!r} names no file", fix="write sqlite:///runs.db, or sqlite:////folder/runs.db from the root")
    return f"{head}:///{Path(path).expanduser().absolute()}"


def _check_entry_point(point: EntryPoint) -> None:
    package = point.module.partition(".")[0]
    if not _installed(package):
        dist = point.dist.name if point.dist else package
        raise MissingExtraError(
            f"the tracker {point.name!r} needs {package}, which is not installed", fix=f"pip install --force-reinstall {dist}"
        )


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


@functools.cache
def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=_GROUP)}
