"""Settings: where each value came from is part of the answer.

The order is: `configure` (a keyword) > the environment (``CLOUDAI_*``) > ``[tool.cloudai]`` in the nearest
``pyproject.toml`` > the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cloudai.display import Card, Shown, Table, nearest
from cloudai.errors import SpecError

__all__ = ["Settings", "configure", "current"]

_overrides: dict[str, Any] = {}


@dataclass(frozen=True, repr=False)
class Settings(Shown):
    """The settings in force.

    Attributes
    ----------
    home : Path
        The folder for everything that cloudai writes on this machine (ledger, local store, process folders).
    store : str
        Where artifacts go: a folder or any fsspec URL. Default: ``<home>/store``.
    tracking : str
        Where runs are recorded: MLflow's tracking URI, ``wandb://ENTITY/PROJECT``, another tracker's address, or ``"none"``.
        Default: MLflow on SQLite in ``<home>/mlflow.db``.
    local_price_per_hour : float
        What an hour of this machine costs, in ``currency``. 0 means "not counted", and plans say so.
    currency : str
        The currency that prices are written in.
    run_lease, deployment_lease : str
        For how long a run or a local deployment may go on without anybody renewing it, such as ``"24h"``.
    supervisor_idle : str
        After how long without anything to do the supervisor ends itself.
    sources : Mapping[str, str]
        For each setting, where its value came from.
    """

    home: Path
    store: str
    tracking: str
    local_price_per_hour: float
    currency: str
    run_lease: str
    deployment_lease: str
    supervisor_idle: str
    sources: Mapping[str, str] = field(compare=False)

    def __repr__(self) -> str:
        return f"Settings(home={str(self.home)!r})"

    def card(self) -> Card:
        """Show each setting, its value and its source."""
        rows = [(name, str(getattr(self, name)), self.sources[name]) for name in NAMES]
        return Card("Settings", tables=[Table(("setting", "value", "from"), rows)])


_DEFAULTS: dict[str, Any] = {
    "home": "~/.cloudai",
    "store": "",
    "tracking": "",
    "local_price_per_hour": 0.0,
    "currency": "USD",
    "run_lease": "24h",
    "deployment_lease": "12h",
    "supervisor_idle": "30s",
}
NAMES = tuple(f.name for f in fields(Settings) if f.name != "sources")


def configure(**values: Any) -> Settings:
    """Set settings for this process; ``None`` takes one back.

    Raises
    ------
    SpecError
        If a name is not a setting, or a value cannot be read as one.

    Examples
    --------
    >>> configure(local_price_per_hour=0.05).local_price_per_hour
    0.05
    >>> configure(local_price_per_hour=None).sources["local_price_per_hour"]
    'default'
    """
    for name in values:
        if name not in NAMES:
            raise SpecError(f"there is no setting {name!r}", fix=nearest(name, NAMES))
    before = dict(_overrides)
    _overrides.update(values)
    for name in [name for name, value in _overrides.items() if value is None]:
        del _overrides[name]
    try:
        return current()
    except SpecError:
        _overrides.clear()
        _overrides.update(before)
        raise


def current() -> Settings:
    """Return the settings in force now, each with its source.

    Raises
    ------
    SpecError
        If a value cannot be read, naming the setting and where it came from.
    """
    project, where = _project_table(Path.cwd())
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, default in _DEFAULTS.items():
        variable = f"CLOUDAI_{name.upper()}"
        if name in _overrides:
            values[name], sources[name] = _overrides[name], "configure()"
        elif variable in os.environ:
            values[name], sources[name] = os.environ[variable], variable
        elif name in project:
            values[name], sources[name] = project[name], where
        else:
            values[name], sources[name] = default, "default"
        values[name] = _read(name, values[name], type(default), sources[name])
    home = Path(values["home"]).expanduser().absolute()
    values["home"] = home
    values["store"] = values["store"] or str(home / "store")
    values["tracking"] = values["tracking"] or f"sqlite:///{home / 'mlflow.db'}"
    return Settings(**values, sources=sources)


def _read(name: str, value: Any, kind: Callable[[Any], Any], source: str) -> Any:
    try:
        read = kind(value)
        if name.endswith(("_lease", "_idle")) and value != _DEFAULTS[name]:
            from cloudai.specs.units import parse_duration  # not at import: it brings pydantic

            parse_duration(read)
        if kind is float and not 0 <= read < float("inf"):
            raise ValueError
    except (TypeError, ValueError):
        raise SpecError(
            f"the setting {name!r} cannot be {value!r} (from {source})", fix=f"give a value like {_DEFAULTS[name]!r}"
        ) from None
    if name in ("store", "tracking") and "@" in urlsplit(str(read)).netloc:
        # it would be copied into jobs, logs and reprs
        raise SpecError(f"the setting {name!r} holds a user name or password (from {source})", fix=_CREDENTIALS)
    return read


_CREDENTIALS = "leave them out: MLflow reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, stores their own variables"


def _project_table(start: Path) -> tuple[dict[str, Any], str]:
    """Find ``[tool.cloudai]`` in the nearest pyproject.toml, upwards from `start`."""
    for folder in (start, *start.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            return _read_table(path), str(path)
    return {}, ""


def _read_table(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("cloudai", {})
    except (OSError, tomllib.TOMLDecodeError):
        return {}  # another tool's broken file is not ours to report
    for name in table:
        if name not in NAMES:
            raise SpecError(f"{path} has an unknown setting {name!r} in [tool.cloudai]", fix=nearest(name, NAMES))
    return dict(table)
