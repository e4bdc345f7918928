"""Weights & Biases as a tracker, online or offline; wandb is imported only here.

The address is ``wandb://ENTITY/PROJECT``. The key comes from ``WANDB_API_KEY`` or the netrc file, where wandb itself finds it,
and is written nowhere. What wandb writes on this machine lies in the run's own folder.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cloudai.errors import SpecError
from cloudai.tracking.protocol import Row, TrackedModel, TrackedRun

__all__ = ["WandbAddress", "WandbTracker", "check_key", "parse"]

_PROBE = 4.0  # seconds
_SERVER = "https://api.wandb.ai"
_open: dict[str, Any] = {}
"""Runs of this process by their id."""

_FIX = "write wandb://ENTITY/PROJECT, such as wandb://my-team/digits"


@dataclass(frozen=True)
class WandbAddress:
    """Where in Weights & Biases, and whether only files are written, for ``wandb sync``."""

    entity: str
    project: str
    offline: bool

    @property
    def text(self) -> str:
        """The address as it is kept in a run's spec."""
        return f"wandb://{self.entity}/{self.project}" + ("?mode=offline" if self.offline else "")


def parse(address: str, environment: Mapping[str, str]) -> WandbAddress:
    """Read an address; ``WANDB_MODE`` counts where the address does not say the mode.

    Raises
    ------
    SpecError
        If it does not name a project.

    Examples
    --------
    >>> parse("wandb://my-team/digits", {"WANDB_MODE": "offline"}).text
    'wandb://my-team/digits?mode=offline'
    """
    parts = urlsplit(address)
    project = parts.path.strip("/")
    asked = parse_qs(parts.query)
    unknown = [name for name in asked if name != "mode"]
    if not project or not re.fullmatch(r"[\w.-]+", project) or not re.fullmatch(r"[\w.-]*", parts.netloc) or unknown:
        raise SpecError(f"{address!r} names no project of Weights & Biases", fix=_FIX)
    mode = asked.get("mode", [environment.get("WANDB_MODE", "online")])[0]
    if mode not in ("online", "offline"):
        raise SpecError(f"Weights & Biases has no mode {mode!r} that tracks", fix="use online or offline, or tracking='none'")
    return WandbAddress(parts.netloc, project, mode == "offline")


def check_key(address: WandbAddress, environment: Mapping[str, str]) -> None:
    """Make sure that there is a key where one is needed, without looking at it.

    Raises
    ------
    SpecError
        If there is none.
    """
    if address.offline or environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return
    host = urlsplit(_server(environment)).hostname or ""
    path = environment.get("NETRC") or "~/.netrc"
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(Path(path).expanduser()).authenticators(host):
            return
    raise SpecError(
        f"there is no key for Weights & Biases at {host}", fix="set WANDB_API_KEY, or run `wandb login`; or WANDB_MODE=offline"
    )


def _server(environment: Mapping[str, str]) -> str:
    return (environment.get("WANDB_BASE_URL") or _SERVER).rstrip("/")


class WandbTracker:
    """Records in Weights & Biases.

    The id of its run is the run's identity, so whoever starts again goes on with it. Online, steps that the server has are not
    sent again; offline, the files are written anew from the first row, so that there is one folder to ``wandb sync``.

    Parameters
    ----------
    address : str
        As `parse` gives it.
    folder : Path
        Where wandb writes.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self._address = parse(address, os.environ)
        self._folder = folder
        self._run: Any = None
        self._step = 0

    def check(self) -> str:
        """Say where files go, or ask the server whether it is well."""
        if self._address.offline:
            return "offline: files for `wandb sync`"
        check_key(self._address, os.environ)
        from urllib.request import urlopen

        with urlopen(f"{_server(os.environ)}/healthz", timeout=_PROBE) as answer:  # noqa: S310  the user's own server
            return f"a server that answers {answer.status}"

    def start(self, run: TrackedRun) -> None:
        """Begin a run, or go on with the one of that id."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            os.environ.setdefault(name, str(self._folder))
        import wandb

        if run.identity in _open:
            _open.pop(run.identity).finish()  # of a tracker that failed in this process: wandb takes an id once at a time
        if self._address.offline:
            self._remove_earlier(run.identity)
        self._run = wandb.init(
            entity=self._address.entity or None,
            project=self._address.project,
            group=run.experiment,
            id=run.identity,
            name=run.name,
            config={**run.params, **run.tags},
            dir=self._folder,
            resume="allow",
            settings=self._settings(wandb),
        )
        _open[run.identity] = self._run
        self._step = int(self._run.starting_step)

    def _settings(self, wandb: Any) -> Any:
        """Return settings that keep out what nobody asked for: the user's code, packages, machine and console."""
        return wandb.Settings(
            mode="offline" if self._address.offline else "online",
            reinit="create_new",  # a run of the user's own goes on beside ours
            init_timeout=20,
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )

    def _remove_earlier(self, identity: str) -> None:
        for folder in (self._folder / "wandb").glob("offline-run-*"):
            if (folder / f"run-{identity}.wandb").exists():
                shutil.rmtree(folder, ignore_errors=True)

    def log(self, rows: Sequence[Row]) -> None:
        """Record metrics; wandb takes steps in their order only."""
        for row in rows:
            if row.step >= self._step:
                self._run.log(dict(row.metrics), step=row.step)
                self._step = row.step

    def register(self, model: TrackedModel) -> None:
        """Log the model as an artifact that names it; the same digest is the same version there.

        The reference is in cloudai's own words, since wandb would look for the files, with packages that may not be installed.
        """
        import wandb

        about = {"version": model.version, "digest": model.digest, "uri": model.uri}
        artifact = wandb.Artifact(model.name, "model", metadata=about)
        artifact.add_reference(f"cloudai://{model.name}/{model.version}?sha256={model.digest}", name="model")
        self._run.log_artifact(artifact, aliases=[f"v{model.version.replace('.', '-')}"])
        self._run.summary["cloudai.model"] = f"{model.name}@{model.version}"

    def end(self, succeeded: bool, at: float) -> None:
        """End the run; wandb takes the time of this call."""
        self._run.finish(0 if succeeded else 1)
