"""Experiment tracking behind a small protocol; MLflow is the built-in tracker, and mlflow is imported only here.

Tracking runs in a thread of the worker, in batches, after the first step: it is never between the user and a result. A
tracker that is down does not stop a run; what it missed is sent with the next batch.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from cloudai.errors import MissingExtraError

__all__ = ["BackgroundTracker", "MlflowTracker", "NoTracker", "Tracker", "tracker_for"]

log = logging.getLogger(__name__)

Rows = Sequence[tuple[int, Mapping[str, float], float]]
"""Metrics as (step, values, unix time)."""

_INTERVAL = 2.0  # seconds between two batches
_BATCH = 1000  # MLflow takes at most 1000 metrics in one request
_LAST_TRY = 15.0  # seconds that a finished run waits for its tracker


class Tracker(Protocol):
    """Where a run's parameters, metrics and model are recorded."""

    def start(self, run: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Begin the record of a run, or go on with it where it was begun before."""
        ...

    def log(self, rows: Rows) -> None:
        """Record rows of metrics."""
        ...

    def register(self, name: str, version: str, uri: str, digest: str) -> None:
        """Record the model that the run made; repeatable."""
        ...

    def end(self, succeeded: bool) -> None:
        """End the record."""
        ...


class NoTracker:
    """Records nothing: ``tracking="none"``."""

    def start(self, run: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def log(self, rows: Rows) -> None:
        """Do nothing."""

    def register(self, name: str, version: str, uri: str, digest: str) -> None:
        """Do nothing."""

    def end(self, succeeded: bool) -> None:
        """Do nothing."""


class MlflowTracker:
    """Records in MLflow: SQLite without a server by default, or any tracking server.

    Raises
    ------
    MissingExtraError
        If mlflow is not installed.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise MissingExtraError("tracking needs mlflow", fix='pip install "cloudai[train]"') from None
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._experiment = experiment
        self._run = ""

    def start(self, run: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Begin an MLflow run; one that carries the same tag ``cloudai.run`` is taken up again."""
        experiment = self._client.get_experiment_by_name(self._experiment)
        identity = experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        found = self._client.search_runs([identity], f"tags.`cloudai.run` = '{tags['cloudai.run']}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            return
        self._run = self._client.create_run(identity, run_name=run, tags=dict(tags)).info.run_id
        from mlflow.entities import Param

        self._client.log_batch(self._run, params=[Param(key, value[:500]) for key, value in params.items()])

    def log(self, rows: Rows) -> None:
        """Record metrics, at most 1000 in one request."""
        from mlflow.entities import Metric

        metrics = [Metric(name, value, int(at * 1000), step) for step, values, at in rows for name, value in values.items()]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run, metrics=metrics[first : first + _BATCH])

    def register(self, name: str, version: str, uri: str, digest: str) -> None:
        """Add the model to the registry, its semantic version as a tag and as an alias (which may hold no dots)."""
        from mlflow.exceptions import MlflowException

        self._client.set_tag(self._run, "cloudai.model", f"{name}@{version}")
        try:
            self._client.create_registered_model(name)
        except MlflowException:
            self._client.get_registered_model(name)  # it was there already; else this raises
        known = self._client.search_model_versions(f"name='{name}'")
        if any(entry.tags.get("cloudai.version") == version for entry in known):
            return
        tags = {"cloudai.version": version, "cloudai.digest": digest}
        entry = self._client.create_model_version(name, uri, self._run, tags=tags)
        self._client.set_registered_model_alias(name, f"v{version.replace('.', '-')}", str(entry.version))

    def end(self, succeeded: bool) -> None:
        """End the MLflow run."""
        self._client.set_terminated(self._run, "FINISHED" if succeeded else "FAILED")


def tracker_for(uri: str, experiment: str) -> Tracker:
    """Return the tracker of a tracking URI; ``"none"`` gives one that records nothing."""
    return NoTracker() if uri == "none" else MlflowTracker(uri, experiment)


class BackgroundTracker:
    """Feeds a tracker from a thread; nothing that the tracker does or fails to do holds up the caller.

    Parameters
    ----------
    uri, experiment : str
        As for `tracker_for`; the tracker is made in the thread, since importing mlflow takes a second.
    """

    def __init__(self, uri: str, experiment: str, run: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        self._make: Callable[[], Tracker] = lambda: tracker_for(uri, experiment)
        self._begin = (run, params, tags)
        self._tracker: Tracker | None = None
        self._rows: list[tuple[int, Mapping[str, float], float]] = []
        self._model: tuple[str, str, str, str] | None = None
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._succeeded = False
        self._thread = threading.Thread(target=self._run, name="cloudai-tracker", daemon=True)
        self.problem = ""
        """Why the tracker is behind; empty where it is not."""

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue a row of metrics."""
        with self._lock:
            self._rows.append((step, dict(metrics), time.time()))
        if not self._thread.ident:
            self._thread.start()

    def close(self, succeeded: bool, model: tuple[str, str, str, str] | None = None) -> None:
        """Send the rest and end the record, within a few seconds even where the tracker hangs."""
        self._succeeded, self._model = succeeded, model
        self._ending.set()
        if not self._thread.ident:
            self._thread.start()
        self._thread.join(_LAST_TRY)
        if self._thread.is_alive():
            self.problem = self.problem or "it does not answer"

    def _run(self) -> None:
        while not self._ending.is_set():
            self._try(self._send)
            self._ending.wait(_INTERVAL)
        self._try(self._finish)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
            self.problem = ""
        except Exception as error:  # noqa: BLE001  a tracker may fail in any way; the run goes on
            self.problem = f"{type(error).__name__}: {error}"
            log.warning("tracking is behind: %s", self.problem)

    def _send(self) -> None:
        if self._tracker is None:
            tracker = self._make()
            tracker.start(*self._begin)
            self._tracker = tracker
        with self._lock:
            rows = list(self._rows)
        self._tracker.log(rows)
        with self._lock:
            del self._rows[: len(rows)]

    def _finish(self) -> None:
        self._send()
        assert self._tracker is not None
        if self._model is not None:
            self._tracker.register(*self._model)
        self._tracker.end(self._succeeded)
