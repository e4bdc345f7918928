"""MLflow as a tracker: SQLite without a server, or any tracking server; mlflow is imported only here."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cloudai.tracking.protocol import Row, TrackedModel, TrackedRun

__all__ = ["MlflowTracker"]

_METRICS = 1000  # what MLflow takes in one request
_PARAMS = 100
_LONGEST = 500  # characters of a parameter
_PROBE = 4.0  # seconds
_ABANDONED = 600.0  # seconds after which nobody is still making a database
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # whoever feeds us tries again by itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class MlflowTracker:
    """Records in MLflow.

    A run is found again by its tag ``cloudai.id``. MLflow holds a metric once for each step, time and value, so rows that
    are sent again change nothing.

    Parameters
    ----------
    address : str
        MLflow's tracking URI.
    folder : Path
        Not used: MLflow keeps nothing beside the address.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self._uri = address
        self._connected: Any = None
        self._run = ""

    @property
    def _client(self) -> Any:
        if self._connected is None:
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            from mlflow.tracking import MlflowClient

            _make_database(self._uri)
            self._connected = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        return self._connected

    def check(self) -> str:
        """Ask a server whether it is well, or look into the database."""
        parts = urlsplit(self._uri)
        if parts.scheme in ("http", "https"):
            from urllib.request import urlopen

            with urlopen(f"{self._uri.rstrip('/')}/health", timeout=_PROBE) as answer:  # noqa: S310  checked just above
                return f"a server that answers {answer.status}"
        path = _file(self._uri)
        if path is None:
            return "a database that only MLflow can ask"
        if not path.exists():
            return f"a database that the first run makes, {path}"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_PROBE)) as db:
            runs = db.execute("SELECT count(*) FROM runs").fetchone()[0]
        return f"a database with {runs} runs"

    def start(self, run: TrackedRun) -> None:
        """Begin an MLflow run, or go on with the one that has the same identity."""
        from mlflow.entities import Param

        experiment = self._experiment(run.experiment)
        found = self._runs_of(experiment, run.identity)
        if not found:
            tags = {**run.tags, "cloudai.id": run.identity}
            self._client.create_run(experiment, int(run.started_at * 1000), tags, run.name)
            found = self._runs_of(experiment, run.identity)  # a request that was tried again may have made two
        self._run = found[0].info.run_id
        for other in found[1:]:
            self._client.delete_run(other.info.run_id)
        if found[0].info.status != "RUNNING":
            self._client.update_run(self._run, status="RUNNING")
        params = (Param(_key(name), value[:_LONGEST]) for name, value in run.params.items())
        while some := list(islice(params, _PARAMS)):
            self._client.log_batch(self._run, params=some)

    def log(self, rows: Sequence[Row]) -> None:
        """Record metrics, at most 1000 in one request."""
        metrics = _metrics(rows)
        while some := list(islice(metrics, _METRICS)):
            self._client.log_batch(self._run, metrics=some)

    def register(self, model: TrackedModel) -> None:
        """Add the model to the registry, its semantic version as a tag and as an alias (which may hold no dots)."""
        self._client.set_tag(self._run, "cloudai.model", f"{model.name}@{model.version}")
        self._make_registered(model.name)
        found = self._versions_of(model)
        if not found:
            tags = {"cloudai.version": model.version, "cloudai.digest": model.digest, "cloudai.uri": model.uri}
            self._client.create_model_version(model.name, self._source(model), self._run, tags=tags)
            found = self._versions_of(model)
        for other in found[1:]:
            self._client.delete_model_version(model.name, str(other.version))
        self._client.set_registered_model_alias(model.name, f"v{model.version.replace('.', '-')}", str(found[0].version))

    def end(self, succeeded: bool, at: float) -> None:
        """End the MLflow run."""
        self._client.set_terminated(self._run, "FINISHED" if succeeded else "FAILED", int(at * 1000))

    def _source(self, model: TrackedModel) -> str:
        """Return where the model lies; a server refuses folders, which could be its own, so there it is only named."""
        local = urlsplit(model.uri).scheme in ("", "file") and self._uri.startswith("http")
        return f"cloudai://{model.name}/{model.version}" if local else model.uri

    def _experiment(self, name: str) -> str:
        """Return the id of an experiment, which others may be making at this moment."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _runs_of(self, experiment: str, identity: str) -> list[Any]:
        query = f"tags.`cloudai.id` = '{identity}'"
        return list(self._client.search_runs([experiment], query, order_by=["attributes.start_time", "attributes.run_id"]))

    def _make_registered(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException:
            self._client.get_registered_model(name)  # it was there already; else this raises

    def _versions_of(self, model: TrackedModel) -> list[Any]:
        found = self._client.search_model_versions(f"name='{model.name}' and run_id='{self._run}'")
        same = [entry for entry in found if entry.tags.get("cloudai.version") == model.version]
        return sorted(same, key=lambda entry: int(entry.version))


def _metrics(rows: Sequence[Row]) -> Iterator[Any]:
    from mlflow.entities import Metric

    for row in rows:
        for name, value in row.metrics.items():
            yield Metric(_key(name), float(value), int(row.at * 1000), row.step)


def _key(name: str) -> str:
    """Return a name with only the characters that MLflow takes; one that it refuses would keep the rest out, too."""
    return re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII).strip("/. ")[:250] or "_"


def _file(uri: str) -> Path | None:
    """Return the file of a SQLite address, or None where it is another."""
    return Path(uri.partition(":///")[2].partition("?")[0]) if uri.startswith("sqlite") else None


def _make_database(uri: str) -> None:
    """Make MLflow's tables under another name first, so that one who is killed meanwhile leaves no half-made database.

    Without this, two processes that start at once would both make the tables, and one of them would fail.
    """
    path = _file(uri)
    if path is None:
        return
    for left in path.parent.glob(f".{path.name}.*.tmp*"):
        with contextlib.suppress(FileNotFoundError):  # another process removes them, too
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()  # of one who was killed
    if path.exists():
        return
    from mlflow.tracking import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        MlflowClient(tracking_uri=f"sqlite:///{draft}", registry_uri=f"sqlite:///{draft}").search_experiments(max_results=1)
        draft.chmod(0o600)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename, it never replaces what another has made
    finally:
        for left in path.parent.glob(f"{draft.name}*"):
            left.unlink()
