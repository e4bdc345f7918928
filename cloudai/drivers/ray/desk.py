"""How a deployment on Ray Serve is given orders and asked how it fares: at its gate where that answers, or else by a job.

What an order may hold is said in `cloudai.serving.ray.orders`, where it is carried out.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

from cloudai import settings
from cloudai.drivers.protocols import Job, Needs
from cloudai.drivers.ray.api import Answer, Api, failed, job_path, token
from cloudai.drivers.ray.jobs import bring_package, job_request, job_status
from cloudai.errors import DriverError, PlacementError

__all__ = ["Desk", "desk_key", "serve_address"]

_PORT = 8000
"""Where Ray Serve listens unless the setting says otherwise."""
_PATIENCE = 20.0
"""Seconds that the gate has to say how the replicas fare."""
_LONG = 60.0
"""Seconds that the gate has to carry out an order."""
_JOB_PATIENCE = 240.0
"""Seconds that a job has: the first one starts Ray Serve."""
_POLL = 0.2


def desk_key(app: str) -> str:
    """Return the key that the driver shows at the gate: who has the cluster's token can make it, nobody else.

    Raises
    ------
    PlacementError
        Where there is no such token: who reaches that cluster could do anything with a deployment.
    """
    known = token()
    if not known:
        fix = "start the cluster with RAY_AUTH_MODE=token, and set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH here"
        raise PlacementError("there is no token for the Ray cluster here, and nothing is served on one without", fix=fix)
    return hmac.new(known.encode(), f"cloudai desk of {app}".encode(), hashlib.sha256).hexdigest()


def serve_address(dashboard: str, port: int) -> str:
    """Return where Ray Serve is asked from here: as set, or on the dashboard's host."""
    host = urlsplit(dashboard).hostname or ""
    return settings.current().ray_serve_address.rstrip("/") or f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Desk:
    """The way to one deployment.

    Parameters
    ----------
    api : Api
        The cluster's dashboard.
    app : str
        The deployment's own Serve application.
    port : int
        Where Ray Serve listens; 0 where it does not run.
    answers : bool
        Whether the gate answers.
    """

    def __init__(self, api: Api, app: str, port: int, *, answers: bool) -> None:
        self._api, self._app, self._answers = api, app, answers
        self._address = serve_address(api.address, port or _PORT)

    @property
    def url(self) -> str:
        """Where the deployment is asked."""
        return f"{self._address}/{self._app}"

    def carry_out(self, **parts: Any) -> None:
        """Have an order carried out, and return when it is.

        Raises
        ------
        DriverError
            If it cannot be.
        """
        now = settings.current()
        port = urlsplit(now.ray_serve_address).port or _PORT
        order = {"app": self._app, "port": port, "fast": now.ray_ingress == "fast", **parts}
        key = desk_key(self._app)
        bring_package(self._api)
        try:
            answer = self._ask("orders", key, json.dumps(order).encode()) if self._answers else None
        except OSError:  # who reaches the dashboard need not reach Ray Serve
            answer = None
        if answer is None:
            self._by_job(order)
        elif not answer.ok:
            raise failed(f"change the deployment {self._app!r}", answer)

    def _by_job(self, order: Mapping[str, Any]) -> None:
        words = json.dumps(order, sort_keys=True).encode()
        submission = f"{self._app}-{hashlib.sha256(words).hexdigest()[:12]}"  # the same order is one job, whoever gives it
        argv = ("-m", "cloudai.serving.ray.orders", base64.b64encode(words).decode())
        answer = self._api.post("/api/jobs/", job_request(Job(self._app, argv, needs=Needs(cpus=0)), submission))
        if not answer.ok and not self._api.get(job_path(submission)).ok:
            raise failed(f"take an order for {self._app!r}", answer)
        phase = self._wait_for(submission)
        log = self._api.get(job_path(submission, "logs"))
        self._api.delete(job_path(submission))  # so that the order may be given again
        if phase not in ("succeeded", ""):
            said = [line for line in str(log.json().get("logs") or "").splitlines() if line.strip()] if log.ok else []
            what = f"the Ray cluster failed to change {self._app!r}: {' '.join(said[-2:])[-400:] or phase}"
            raise DriverError(what, fix="see the cluster's dashboard, and the logs of Ray Serve there")

    def _wait_for(self, submission: str) -> str:
        """Return how a job ended; nothing where another process, which waited too, has put it away."""
        deadline = time.monotonic() + _JOB_PATIENCE
        while time.monotonic() < deadline:
            answer = self._api.get(job_path(submission))
            if answer.missing:
                return ""
            if not answer.ok:
                raise failed(f"look at an order for {self._app!r}", answer)
            if (phase := job_status(answer.json()).phase) not in ("starting", "running"):
                return phase
            time.sleep(_POLL)
        raise DriverError(f"the Ray cluster takes too long to change {self._app!r}", fix="see whether it has room for a job")

    def metrics(self, revisions: Sequence[str]) -> list[tuple[str, str]]:
        """Return what the gates and the replicas of these revisions count, in Prometheus' format, each with who counts.

        That is empty where it stands in the text itself.
        """
        return [(str(who), str(text)) for who, text in self._read("metrics", revisions).json()] if revisions else []

    def samples(self, revisions: Sequence[str], since: float, limit: int) -> Iterator[tuple[str, bytes]]:
        """Yield the files of kept rows, each with ``revision/replica``."""
        from safetensors.numpy import load

        if not revisions or limit <= 0:
            return
        found = self._read("samples", revisions, since=repr(since), limit=limit)
        for name, content in load(found.body).items():
            yield name.rpartition("/")[0], content.tobytes()

    def _read(self, what: str, revisions: Sequence[str], **more: Any) -> Answer:
        query = urlencode([*(("revision", revision) for revision in revisions), *more.items()])
        try:
            answer = self._ask(f"{what}?{query}", desk_key(self._app))
        except OSError as error:
            fix = "set ray_serve_address to where Ray Serve is reached from here, such as the end of a tunnel to it"
            raise DriverError(f"Ray Serve at {self._address} does not answer ({type(error).__name__})", fix=fix) from None
        if not answer.ok:
            raise failed(f"say how {self._app!r} fares", answer)
        return answer

    def _ask(self, path: str, key: str, body: bytes | None = None) -> Answer:
        parts = urlsplit(self._address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=_PATIENCE if body is None else _LONG)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        try:
            connection.request("GET" if body is None else "POST", f"/{self._app}/internal/{path}", body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        except http.client.HTTPException as error:
            raise ConnectionError(repr(error)) from None
        finally:
            connection.close()
