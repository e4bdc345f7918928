"""Settings: where each value came from is part of the answer.

The order is: `configure` (a keyword) > the environment (``CLOUDAI_*``) > ``[tool.cloudai]`` in the nearest
``pyproject.toml`` > the user's own ``~/.config/cloudai/config.toml`` > the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

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
    ledger : str
        The PostgreSQL database of a ledger that a team shares, ``postgresql://user@host:port/dbname``, without a password.
        Default: SQLite in ``<home>/ledger.sqlite``.
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
    ray_address : str
        Where the dashboard of a Ray cluster is, for ``on="ray"``, such as ``http://127.0.0.1:8265``. Its token comes from Ray's
        own ``RAY_AUTH_TOKEN`` or ``RAY_AUTH_TOKEN_PATH``. Default: no cluster.
    ray_serve_address : str
        Where deployments on that cluster are asked from here, such as ``http://127.0.0.1:8000``. Default: the dashboard's
        host, at the port where Ray Serve listens.
    ray_ingress : str
        With which ingress Ray Serve begins where cloudai is the first to use it: ``"standard"``, which listens on localhost, or
        ``"fast"``, which listens on every interface of every machine.
    supervisor_idle : str
        After how long without anything to do the supervisor ends itself.
    sources : Mapping[str, str]
        For each setting, where its value came from.
    """

    home: Path
    ledger: str
    store: str
    tracking: str
    local_price_per_hour: float
    currency: str
    run_lease: str
    deployment_lease: str
    ray_address: str
    ray_serve_address: str
    ray_ingress: str
    supervisor_idle: str
    sources: Mapping[str, str] = field(compare=False)

    def __repr__(self) -> str:
        return f"Settings(home={str(self.home)!r})"

    def card(self) -> Card:
        """Show each setting, its value and its source."""
        rows = [(name, str(getattr(self, name)), self.sources[name]) for name in NAMES]
        return Card("Settings", tables=[Table(("setting", "value", "from"), rows)], notes=_misspelt())


_DEFAULTS: dict[str, Any] = {
    "home": "~/.cloudai",
    "ledger": "",
    "store": "",
    "tracking": "",
    "local_price_per_hour": 0.0,
    "currency": "USD",
    "run_lease": "24h",
    "deployment_lease": "12h",
    "ray_address": "",
    "ray_serve_address": "",
    "ray_ingress": "standard",
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
    files = (_project_table(Path.cwd()), _user_table())
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, default in _DEFAULTS.items():
        variable = f"CLOUDAI_{name.upper()}"
        if name in _overrides:
            values[name], sources[name] = _overrides[name], "configure()"
        elif variable in os.environ:
            values[name], sources[name] = os.environ[variable], variable
        else:
            found = ((table[name], where) for table, where in files if name in table)
            values[name], sources[name] = next(found, (default, "default"))
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
    if name == "ray_ingress" and read not in ("standard", "fast"):
        raise SpecError(f"the setting 'ray_ingress' cannot be {read!r} (from {source})", fix="give 'standard' or 'fast'")
    if name in ("store", "tracking", "ray_address", "ray_serve_address") and "@" in str(read):
        from cloudai.specs.confidential import has_credentials

        if has_credentials(str(read)):  # it would be copied into jobs, logs and reprs
            raise SpecError(f"the setting {name!r} holds a user name or password (from {source})", fix=_CREDENTIALS)
    if name == "ledger" and read:
        _check_ledger(read, source)
    return read


def _check_ledger(url: str, source: str) -> None:
    """Raise `SpecError` for an address that cannot be one, or that holds a password: it is shown, logged and handed on."""
    try:
        parts = urlsplit(url)
        secret = parts.password is not None or any("password" in name for name, _ in parse_qsl(parts.query))
        good = parts.scheme in ("postgresql", "postgres") and parts.path.strip("/") != ""
    except ValueError:
        secret, good = "@" in url, False
    if secret:
        fix = "leave it out: PGPASSWORD, PGPASSFILE or ~/.pgpass carry it"
        raise SpecError(f"the setting 'ledger' holds a password (from {source})", fix=fix)
    if not good:
        fix = "write it as postgresql://user@host:5432/dbname, or leave it empty for a ledger in your home"
        raise SpecError(f"the setting 'ledger' cannot be {url!r} (from {source})", fix=fix)


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
    return _known(table, f"{path} has an unknown setting {{!r}} in [tool.cloudai]")


def _user_table() -> tuple[dict[str, Any], str]:
    """Read the user's own file, where there is one."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = Path(folder).expanduser() / "cloudai" / "config.toml"
    if not path.is_file():
        return {}, ""
    import tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        fix = "mend it: one line for each setting, such as currency = 'EUR'"
        raise SpecError(f"{path} cannot be read: {error}", fix=fix) from None
    return _known(table, f"{path} has an unknown setting {{!r}}"), str(path)


def _known(table: Mapping[str, Any], complaint: str) -> dict[str, Any]:
    for name in table:
        if name not in NAMES:
            raise SpecError(complaint.format(name), fix=nearest(name, NAMES))
    return dict(table)


_OTHER_VARIABLES = frozenset({"CLOUDAI_TRACEBACK", "CLOUDAI_METADATA"})  # read elsewhere, and no settings


def _misspelt() -> list[str]:
    """Name the variables that look like a setting and are none: they would be silent otherwise."""
    import difflib

    known = {f"CLOUDAI_{name.upper()}" for name in NAMES} | _OTHER_VARIABLES
    strange = sorted(name for name in os.environ if name.startswith("CLOUDAI_") and name not in known)
    near = [(name, difflib.get_close_matches(name, known, n=1, cutoff=0.8)) for name in strange]
    return [f"{name} is set in the environment and means nothing: did you mean {meant[0]}?" for name, meant in near if meant]
