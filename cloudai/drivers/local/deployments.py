"""Deployments on this machine: a router on a stable port in front of the replicas of each revision."""

from __future__ import annotations

import functools
import http.client
import json
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cloudai.drivers.local.processes import Processes, locked
from cloudai.drivers.local.replicas import DRAIN, Replicas, read_json, write_json
from cloudai.drivers.protocols import DeploymentStatus, Metric, Percent, Revision, RevisionId, RevisionStatus, Sample
from cloudai.drivers.samples import read_all_samples
from cloudai.errors import DriverError, SpecError
from cloudai.files import private_folder
from cloudai.state.tokens import read_token

__all__ = ["Deployments"]

_HOST = "127.0.0.1"
_SHARED_OPTIONS = ("--lease-file", "--token-file", "--news-file")
"""What router and servers of a deployment are given alike."""


class Deployments:
    """The deployments under one folder.

    Each has ``routes.json``, a process folder ``router``, and under ``revisions`` one folder for each, with its replicas.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def apply(self, name: str, revision: Revision) -> RevisionId:
        """Make sure that the revision's replicas and the router run."""
        private_folder(self._root / name)
        self._replicas(name, revision.id).begin(revision.argv, revision.env, max(1, revision.scaling.min_replicas))
        self._start_router(name, revision)
        return revision.id

    def _start_router(self, name: str, revision: Revision) -> None:
        folder = self._root / name
        router = Processes(folder)
        process = router.look("router")
        if process is not None and process.alive:
            return
        port = revision.port or read_json(folder / "router.json").get("port") or _free_port()
        if not (folder / "routes.json").exists():
            write_json(folder / "routes.json", {"traffic": {}, "backends": {}})
        shared = [word for option in _SHARED_OPTIONS for word in _option(revision.argv, option)]
        argv = ["-m", "cloudai.serving.router", "--state", str(folder), "--port", str(port), *shared]
        router.start("router", argv, {}, again=True)

    def scale(self, name: str, revision: RevisionId, replicas: int) -> None:
        """Start the replicas that are missing, let requests go to those that are ready, end those that are too many."""
        if replicas < 0:
            raise SpecError(f"there cannot be {replicas} replicas", fix="give 0 or more")
        mine = self._replicas(name, revision)
        if mine.wanted is None:
            raise DriverError(f"{name!r} has no revision {revision!r}", fix="apply it first")
        mine.fill_up(replicas)
        surplus = mine.mark_surplus(replicas)
        self._publish(name, revision, mine)
        mine.let_end(surplus)

    def _publish(self, name: str, revision: RevisionId, replicas: Replicas) -> None:
        """Let the router know of the replicas that a revision with traffic has now."""
        with locked(self._root / name / "lock"):
            routes = read_json(self._root / name / "routes.json")
            if revision not in routes.get("backends", {}):
                return
            before = routes["backends"][revision]["ports"]
            now = [r.port for r in replicas.alive() if r.port is not None and (r.listening or r.port in before)]
            if not now and replicas.wanted:
                now = (
                    before  # nobody listens there now: the router turns to other revisions, where it would wait for one asleep
                )
            if now != before:
                routes["backends"][revision] = {"ports": now}
                write_json(self._root / name / "routes.json", routes)

    def route(
        self,
        name: str,
        traffic: Mapping[RevisionId, Percent],
        sticky: str = "",
        shadow: Mapping[RevisionId, Percent] | None = None,
    ) -> None:
        """Replace the routing table in one step."""
        if sum(traffic.values()) != 100 or min(traffic.values()) < 0:
            raise SpecError(f"the traffic {dict(traffic)} does not sum to 100", fix="give percentages that sum to 100")
        routed: set[RevisionId] = {*traffic, *(shadow or {})}
        replicas = {revision: self._replicas(name, revision) for revision in routed}
        ports = {rev: [r.port for r in mine.alive() if r.port is not None] for rev, mine in replicas.items()}
        missing = [rev for rev, share in traffic.items() if share and not ports[rev] and replicas[rev].wanted != 0]
        if missing:
            raise DriverError(f"the revision {missing[0]!r} of {name!r} is not up", fix="route to it when it is ready")
        with locked(self._root / name / "lock"):
            backends = {rev: {"ports": mine} for rev, mine in ports.items() if mine or replicas[rev].wanted == 0}
            shadows = {rev: share for rev, share in (shadow or {}).items() if rev in backends}
            table = {"traffic": dict(traffic), "backends": backends, "sticky": sticky, "shadow": shadows}
            write_json(self._root / name / "routes.json", table)

    def retire(self, name: str, revision: RevisionId) -> None:
        """End a revision that has no traffic."""
        if read_json(self._root / name / "routes.json").get("traffic", {}).get(revision):
            raise SpecError(f"the revision {revision!r} of {name!r} has traffic", fix="route its traffic elsewhere first")
        self._replicas(name, revision).retire()

    def inspect(self, name: str) -> DeploymentStatus:
        """Look at the processes, ask them whether they are ready, read the routing table."""
        folder = self._root / name
        routes, state = read_json(folder / "routes.json"), read_json(folder / "router.json")
        router = Processes(folder).look("router")
        ongoing = _ongoing(state) if router is not None and router.alive and state else None
        revisions = tuple(self._look(name, key, routes, ongoing or {}) for key in self._keys(name))
        ready = ongoing is not None and any(r.traffic for r in revisions) and all(r.ready for r in revisions if r.traffic)
        pids = (int(state["pid"]),) if router is not None and router.alive and state else ()
        url = f"http://{_HOST}:{state['port']}" if ongoing is not None else ""
        return DeploymentStatus(name, url, ready, revisions, pids, sticky=routes.get("sticky", ""))

    def _look(self, name: str, key: str, routes: Mapping[str, Any], ongoing: Mapping[str, float]) -> RevisionStatus:
        replicas = self._replicas(name, key)
        alive, asleep = replicas.alive(), replicas.wanted == 0
        ready = {r.port for r in alive if r.port is not None and _answers(r.port, "/v2/health/ready")}
        ports = routes.get("backends", {}).get(key, {}).get("ports")
        # a restarted replica listens on another port: until it is routed to again, it has no traffic
        routed = ports is not None and (not ports or any(r.port in ports for r in alive))
        traffic = int(routes.get("traffic", {}).get(key, 0)) if routed else 0
        answering = len(ready & set(ports or ())) if traffic else len(ready)
        reason = "" if ready or asleep else "not ready yet" if alive else replicas.last_words()
        pids = tuple(r.pid for r in alive if r.pid is not None)
        shadow = int(routes.get("shadow", {}).get(key, 0)) if ready & set(ports or ()) else 0
        return RevisionStatus(
            RevisionId(key),
            bool(ready) or asleep,
            len(alive),
            traffic,
            reason,
            pids,
            ongoing.get(key, 0.0),
            ready_replicas=answering,
            shadow=shadow,
        )

    def delete(self, name: str) -> None:
        """End all processes at once and remove the folder; the kept payloads go with it."""
        folder = self._root / name
        ends: list[Callable[[], None]] = [self._replicas(name, key).stop for key in self._keys(name)]
        ends.append(functools.partial(Processes(folder).stop, "router", grace=DRAIN))
        with ThreadPoolExecutor(len(ends)) as pool:
            list(pool.map(lambda end: end(), ends))
        shutil.rmtree(folder, ignore_errors=True)

    def metrics(self, name: str) -> Iterator[Metric]:
        """Read the metrics of the router and of each live replica."""
        from prometheus_client.parser import text_string_to_metric_families

        router = read_json(self._root / name / "router.json")
        for port, token in [*_way_in(router), *self._live(name)]:
            text = _get(port, "/metrics", token=token).decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    yield Metric(sample.name, sample.value, sample.labels)

    def samples(self, name: str, since: float, limit: int) -> Iterable[Sample]:
        """Read the kept rows of each revision, after asking the live replicas to write theirs down."""
        for port, token in self._live(name):
            _get(port, "/internal/flush", method="POST", token=token)
        revisions = {key: self._replicas(name, key) for key in self._keys(name)}
        folders = {
            f"{key}/{replica}": mine.folder(replica) / "samples" for key, mine in revisions.items() for replica in mine.keys()
        }
        for key, block in read_all_samples(folders, since=since, limit=limit):
            yield Sample(key.rpartition("/")[0], block.times, tuple(block.ids), block.inputs, block.outputs)

    def _live(self, name: str) -> Iterator[tuple[int, str]]:
        """Yield the port and the token of each live replica."""
        for key in self._keys(name):
            for replica in self._replicas(name, key).alive():
                if replica.port is not None:
                    yield replica.port, read_token(Path(replica.token_file)) if replica.token_file else ""

    def _replicas(self, name: str, revision: str) -> Replicas:
        return Replicas(self._root / name / "revisions" / revision)

    def _keys(self, name: str) -> list[str]:
        return Processes(self._root / name / "revisions").keys()


def _ongoing(router: Mapping[str, Any]) -> dict[str, float] | None:
    """Ask a router for the requests of each revision that are being worked on or wait; None where it does not answer."""
    token_file = router.get("token_file")
    try:
        answer = _get(int(router["port"]), "/internal/ongoing", token=read_token(Path(token_file)) if token_file else "")
    except (OSError, SpecError, http.client.HTTPException):
        return None
    return {revision: float(count) for revision, count in json.loads(answer).items()}


def _way_in(state: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield the port and the token of a process, by what it wrote of itself; nothing where it wrote nothing."""
    if "port" in state:
        yield int(state["port"]), read_token(Path(state["token_file"])) if "token_file" in state else ""


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
