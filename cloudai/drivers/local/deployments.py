"""Deployments on this machine: a router on a stable port in front of one process for each revision."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloudai.drivers.local.processes import Processes
from cloudai.drivers.protocols import DeploymentStatus, Metric, Percent, Revision, RevisionId, RevisionStatus, Sample
from cloudai.drivers.samples import read_all_samples
from cloudai.errors import DriverError, SpecError
from cloudai.files import private_folder, replace_file
from cloudai.state.tokens import read_token

__all__ = ["Deployments"]

_HOST = "127.0.0.1"
_DRAIN = 15.0
"""Seconds that a process has to answer what it has taken on."""


class Deployments:
    """The deployments under one folder.

    Each has ``routes.json``, ``port``, a process folder ``router`` and one for each revision under ``revisions``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def apply(self, name: str, revision: Revision) -> RevisionId:
        """Make sure that the revision's process and the router run."""
        folder = self._root / name
        private_folder(folder)
        state = ["--state", str(self._revisions(name).folder(revision.id))]
        env = {**revision.env, "CLOUDAI_SCRATCH": state[1]}
        self._revisions(name).start(revision.id, [*revision.argv, *state], env, again=True)
        self._start_router(name, revision)
        return revision.id

    def _start_router(self, name: str, revision: Revision) -> None:
        folder = self._root / name
        router = Processes(folder)
        process = router.look("router")
        if process is not None and process.alive:
            return
        port = revision.port or _read_json(folder / "router.json").get("port") or _free_port()
        if not (folder / "routes.json").exists():
            _write_json(folder / "routes.json", {"traffic": {}, "backends": {}})
        shared = [word for option in ("--lease-file", "--token-file") for word in _option(revision.argv, option)]
        argv = [
            "-m",
            "cloudai.serving.router",
            "--state",
            str(folder),
            "--port",
            str(port),
            *shared,
            *_steady(revision.router, folder),
        ]
        router.start("router", argv, revision.env, again=True)

    def route(self, name: str, traffic: Mapping[RevisionId, Percent]) -> None:
        """Replace the routing table in one step."""
        if sum(traffic.values()) != 100 or min(traffic.values()) < 0:
            raise SpecError(f"the traffic {dict(traffic)} does not sum to 100", fix="give percentages that sum to 100")
        ports = {rev: self._port(name, rev) for rev in traffic}
        missing = [rev for rev, port in ports.items() if port is None and traffic[RevisionId(rev)]]
        if missing:
            raise DriverError(f"the revision {missing[0]!r} of {name!r} is not up", fix="route to it when it is ready")
        backends = {rev: {"port": port} for rev, port in ports.items() if port is not None}
        _write_json(self._root / name / "routes.json", {"traffic": dict(traffic), "backends": backends})

    def retire(self, name: str, revision: RevisionId) -> None:
        """End a revision that has no traffic."""
        if _read_json(self._root / name / "routes.json").get("traffic", {}).get(revision):
            raise SpecError(f"the revision {revision!r} of {name!r} has traffic", fix="route its traffic elsewhere first")
        self._revisions(name).stop(revision, grace=_DRAIN)

    def inspect(self, name: str) -> DeploymentStatus:
        """Look at the processes, ask them whether they are ready, read the routing table."""
        folder = self._root / name
        routes = _read_json(folder / "routes.json")
        router = Processes(folder).look("router")
        state = _read_json(folder / "router.json")
        up = router is not None and router.alive and _answers(_own_port(state), "/v2/health/live")
        revisions = tuple(self._look(name, key, routes) for key in self._revisions(name).keys())
        ready = up and any(r.ready for r in revisions if r.traffic) and all(r.ready for r in revisions if r.traffic)
        pids = (router.pid,) if router is not None and router.alive and router.pid else ()
        grpc_url = state.get("grpc_url", "") if up else ""
        return DeploymentStatus(name, state["url"] if up else "", ready, revisions, pids, grpc_url=grpc_url)

    def _look(self, name: str, key: str, routes: Mapping[str, Any]) -> RevisionStatus:
        processes = self._revisions(name)
        process = processes.look(key)
        alive = process is not None and process.alive
        port = self._port(name, key)
        ready = bool(port and _answers(port, "/v2/health/ready"))
        # a restarted revision listens on another port: until it is routed to again, it has no traffic
        routed = port is not None and routes.get("backends", {}).get(key, {}).get("port") == port
        traffic = int(routes.get("traffic", {}).get(key, 0)) if routed else 0
        reason = "" if ready else "not ready yet" if alive else self._last_words(name, key)
        pids = (process.pid,) if alive and process is not None and process.pid else ()
        return RevisionStatus(RevisionId(key), ready, int(alive), traffic, reason, pids)

    def _port(self, name: str, key: str) -> int | None:
        """Return the port of a live revision; what a dead one wrote does not count."""
        processes = self._revisions(name)
        process, state = processes.look(key), _read_json(processes.folder(key) / "server.json")
        same = process is not None and process.alive and state.get("pid") == process.pid
        return int(state["port"]) if same else None

    def _last_words(self, name: str, key: str) -> str:
        lines = [line for line in self._revisions(name).log_lines(key, follow=False) if line.strip()]
        return " ".join(lines[-2:])[-400:] or "the process ended without a word"

    def delete(self, name: str) -> None:
        """End all processes at once and remove the folder; the kept payloads go with it."""
        folder = self._root / name
        ends = [(Processes(folder), "router"), *((self._revisions(name), key) for key in self._revisions(name).keys())]
        threads = [threading.Thread(target=p.stop, args=(key,), kwargs={"grace": _DRAIN}) for p, key in ends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shutil.rmtree(folder, ignore_errors=True)

    def metrics(self, name: str) -> Iterator[Metric]:
        """Read the metrics of each live revision."""
        from prometheus_client.parser import text_string_to_metric_families

        for port, token in self._live(name):
            text = _get(port, "/metrics", token=token).decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    yield Metric(sample.name, sample.value, sample.labels)

    def samples(self, name: str, since: float, limit: int) -> Iterable[Sample]:
        """Read the kept rows of each revision, after asking the live ones to write theirs down."""
        for port, token in self._live(name):
            _get(port, "/internal/flush", method="POST", token=token)
        revisions = self._revisions(name)
        folders = {key: revisions.folder(key) / "samples" for key in revisions.keys()}
        for key, block in read_all_samples(folders, since=since, limit=limit):
            yield Sample(key, block.times, tuple(block.ids), block.inputs, block.outputs)

    def _live(self, name: str) -> Iterator[tuple[int, str]]:
        """Yield the port and the token of each live revision."""
        for key in self._revisions(name).keys():
            if (port := self._port(name, key)) is not None:
                token_file = _read_json(self._revisions(name).folder(key) / "server.json").get("token_file")
                yield port, read_token(Path(token_file)) if token_file else ""

    def _revisions(self, name: str) -> Processes:
        return Processes(self._root / name / "revisions")


def _steady(options: Sequence[str], folder: Path) -> Sequence[str]:
    """Return a router's options, with the gRPC port that it had before where any port will do."""
    before = _read_json(folder / "router.json").get("grpc_port")
    free = before is not None and list(_option(options, "--grpc-port")) == ["--grpc-port", "0"]
    return [*options, "--grpc-port", str(before)] if free else options


def _own_port(router: Mapping[str, Any]) -> int:
    """Return the port of a router on which no TLS stands between it and a driver of this machine; 0 where there is none."""
    return int(router.get("inner_port") or router.get("port") or 0)


def _answers(port: int, path: str) -> bool:
    try:
        _get(port, path)
    except (OSError, http.client.HTTPException):
        return False
    return True


def _option(argv: Sequence[str], option: str) -> Sequence[str]:
    """Return an option of a command line with its value, or nothing where it is not given."""
    return argv[argv.index(option) :][:2] if option in argv else ()


def _get(port: int, path: str, method: str = "GET", token: str = "") -> bytes:
    connection = http.client.HTTPConnection(_HOST, port, timeout=5)
    try:
        connection.request(method, path, headers={"authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise http.client.HTTPException(f"{path} answered {response.status}")
    return body


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    replace_file(path, json.dumps(value).encode())
