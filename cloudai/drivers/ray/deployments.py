"""Deployments on Ray Serve: what is there is read from the cluster's dashboard, what should be there is ordered of it.

A deployment is one Serve application with our gate, which has a path of its own, and one for each revision, which has none.
Ray Serve keeps all that is to be known of them, so nothing is kept here.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cloudai.drivers.capacity import share_of
from cloudai.drivers.protocols import DeploymentStatus, Metric, Percent, Revision, RevisionId, RevisionStatus, Sample
from cloudai.drivers.ray.api import Api
from cloudai.drivers.ray.desk import Desk, desk_key
from cloudai.drivers.ray.jobs import submission_of
from cloudai.drivers.ray.package import package
from cloudai.drivers.samples import read_all_samples
from cloudai.errors import DriverError, SpecError
from cloudai.specs.serving import ServerLimits
from cloudai.state.tokens import read_token, token_digest

__all__ = ["Deployments", "Found", "gate_config", "revision_order"]

_ALIVE = ("DEPLOYING", "RUNNING", "UNHEALTHY")
"""What Ray Serve says of an application that it keeps up, or means to."""
_DEFAULTS = ServerLimits()
_ANSWERING = ("RUNNING", "UPDATING")
_LOCAL_OPTIONS = ("--token-file", "--lease-file", "--news-file")
"""Options of a server that name files of this machine."""
_FIRST = 60.0
"""Seconds that the dashboard has to say what Ray Serve has: for the first such question it connects to its own cluster."""
_LONGER = 5.0
"""Seconds that the gate waits longer than a server, which says why it is late."""


class Found:
    """What the cluster's dashboard says of one deployment.

    Parameters
    ----------
    app : str
        The name of its own Serve application.
    said : mapping
        What ``GET /api/serve/applications/`` answers.
    """

    def __init__(self, app: str, said: Mapping[str, Any]) -> None:
        applications: Mapping[str, Any] = said.get("applications") or {}
        self.app = app
        self.port = int((said.get("http_options") or {}).get("port") or 0)
        self._gate: Mapping[str, Any] = applications.get(app, {})
        self.revisions = {
            name.removeprefix(f"{app}."): found for name, found in sorted(applications.items()) if name.startswith(f"{app}.")
        }

    @property
    def names(self) -> list[str]:
        """The Serve applications that there are."""
        return [*(f"{self.app}.{revision}" for revision in self.revisions), *([self.app] if self._gate else [])]

    @property
    def gate_is_up(self) -> bool:
        """Whether the gate is there, or on its way."""
        return self._gate.get("status") in _ALIVE

    @property
    def answers(self) -> bool:
        """Whether the gate answers."""
        return bool(_answering(self._gate))

    @property
    def config(self) -> dict[str, Any]:
        """What the gate goes by; empty where there is none."""
        gate = (self._gate.get("deployments") or {}).get("Gate", {})
        return dict((gate.get("deployment_config") or {}).get("user_config") or {})

    @property
    def traffic(self) -> dict[str, int]:
        """The share of each revision that has one."""
        return dict(self.config.get("traffic", {})) if self.gate_is_up else {}

    @property
    def sticky(self) -> str:
        """The header by whose value a revision is chosen."""
        return str(self.config.get("sticky", ""))

    def is_up(self, revision: str) -> bool:
        """Whether a revision is there, or on its way."""
        return self.revisions.get(revision, {}).get("status") in _ALIVE

    def is_ready(self, revision: str) -> bool:
        """Whether a revision answers, or would begin to if it were asked."""
        found = self.revisions.get(revision, {})
        asleep = found.get("status") == "RUNNING" and not _replicas(found)
        return asleep or bool(_answering(found))

    def is_scaled(self, revision: Revision) -> bool:
        """Whether Ray Serve has been told of the number of replicas that a revision of ours may have."""
        deployment = (self.revisions[revision.id].get("deployments") or {}).get("Replica")
        if deployment is None:  # it has only just been asked for
            return True
        told, wanted = deployment["deployment_config"], revision.scaling
        own = told.get("autoscaling_config")
        if wanted.min_replicas == wanted.max_replicas:
            return not own and bool(told.get("num_replicas") == wanted.max_replicas)
        return bool(own) and all(own.get(name) == value for name, value in asdict(wanted).items())

    def status(self, name: str, url: str) -> DeploymentStatus:
        """Put it in the words of the contract."""
        revisions = tuple(self._revision(revision) for revision in self.revisions)
        with_traffic = [revision for revision in revisions if revision.traffic]
        ready = self.answers and bool(with_traffic) and all(revision.ready for revision in with_traffic)
        return DeploymentStatus(name, url if self.answers else "", ready, revisions, _pids(self._gate), sticky=self.sticky)

    def _revision(self, revision: str) -> RevisionStatus:
        found = self.revisions[revision]
        ready = self.is_ready(revision)
        pids = _pids(found)
        coming = found["status"] == "DEPLOYING"  # it has no replica yet, and need not be started again
        replicas = 0 if found["status"] == "DEPLOY_FAILED" else max(len(pids), int(coming))
        reason = "" if ready else _reason(found)
        traffic = self.traffic.get(revision, 0)
        return RevisionStatus(RevisionId(revision), ready, replicas, traffic, reason, pids, ready_replicas=_answering(found))


def _replicas(application: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    deployments = (application.get("deployments") or {}).values()
    return [replica for deployment in deployments for replica in deployment.get("replicas", ())]


def _answering(application: Mapping[str, Any]) -> int:
    """Return how many replicas answer: also while others start, are lost, or are told of a new configuration."""
    alive = application.get("status") in _ALIVE
    return sum(replica.get("state") in _ANSWERING for replica in _replicas(application)) if alive else 0


def _pids(application: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(replica["pid"] for replica in _replicas(application) if replica.get("pid"))


def _reason(application: Mapping[str, Any]) -> str:
    """Return why an application is not ready: what its deployments say, or what it says itself."""
    said = [str(found.get("message") or "") for found in (application.get("deployments") or {}).values()]
    words = " ".join(" ".join([*said, str(application.get("message") or "")]).split())
    return (words or f"Ray Serve says {application['status']}")[-400:]


class Deployments:
    """The deployments on one cluster.

    Parameters
    ----------
    api : Api
        The cluster's dashboard.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def _find(self, name: str) -> Found:
        return Found(submission_of(name), self._api.read("/api/serve/applications/", patience=_FIRST))

    def _desk(self, found: Found) -> Desk:
        return Desk(self._api, found.app, found.port, answers=found.answers)

    def apply(self, name: str, revision: Revision) -> RevisionId:
        """Make sure that the gate and the revision are there, and that the gate knows the present token."""
        found = self._find(name)
        config = gate_config(found.app, revision, found.config)
        wanted: dict[str, Any] = {}
        if not found.is_up(revision.id) or not found.is_scaled(revision):
            started = config["versions"].get(revision.id) if found.is_up(revision.id) else None
            version = started or f"{package().uri}#{secrets.token_hex(4)}"
            config["versions"] = {**config["versions"], revision.id: version}
            wanted["revision"] = {**revision_order(revision), "version": version}
        if not found.gate_is_up or config != found.config:
            wanted["gate"] = config
        if wanted:
            self._desk(found).carry_out(**wanted)
        return revision.id

    def route(self, name: str, traffic: Mapping[RevisionId, Percent], sticky: str) -> None:
        """Give the gate another table, in one step."""
        if sum(traffic.values()) != 100 or min(traffic.values()) < 0:
            raise SpecError(f"the traffic {dict(traffic)} does not sum to 100", fix="give percentages that sum to 100")
        found = self._find(name)
        shares = {str(revision): share for revision, share in traffic.items() if share}
        missing = [revision for revision in shares if not found.is_ready(revision)]
        if missing or not found.gate_is_up:
            what = f"the revision {missing[0]!r} of {name!r} is not up" if missing else f"{name!r} is not up"
            raise DriverError(what, fix="route to it when it is ready")
        if (shares, sticky) != (found.traffic, found.sticky):
            config = {**found.config, "traffic": shares, "sticky": sticky}
            self._desk(found).carry_out(gate=config)

    def retire(self, name: str, revision: RevisionId) -> None:
        """End a revision that has no traffic."""
        found = self._find(name)
        if found.traffic.get(revision):
            raise SpecError(f"the revision {revision!r} of {name!r} has traffic", fix="route its traffic elsewhere first")
        if revision in found.revisions:
            self._desk(found).carry_out(gone=[f"{found.app}.{revision}"])

    def inspect(self, name: str) -> DeploymentStatus:
        """Say what the dashboard says."""
        found = self._find(name)
        return found.status(name, self._desk(found).url)

    def delete(self, name: str) -> None:
        """End the gate and all revisions; the kept payloads go with them."""
        found = self._find(name)
        if found.names:
            self._desk(found).carry_out(gone=found.names)

    def metrics(self, name: str) -> Iterator[Metric]:
        """Read what each gate and each replica counts."""
        from prometheus_client.parser import text_string_to_metric_families

        found = self._find(name)
        for who, text in self._desk(found).metrics(_ready(found)):
            label = {"instance": who} if who else {}
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    yield Metric(sample.name, sample.value, {**label, **sample.labels})

    def samples(self, name: str, since: float, limit: int) -> Iterable[Sample]:
        """Read the kept rows of each replica."""
        found = self._find(name)
        with tempfile.TemporaryDirectory(prefix="cloudai-") as scratch:
            folders: dict[str, Path] = {}
            for number, (key, content) in enumerate(self._desk(found).samples(_ready(found), since, limit)):
                folder = folders.setdefault(key, Path(scratch) / str(number))
                folder.mkdir(exist_ok=True)
                (folder / f"{10**16 - 1}-0-{number}.safetensors").write_bytes(content)
            for key, block in read_all_samples(folders, since=since, limit=limit):
                yield Sample(key.partition("/")[0], block.times, tuple(block.ids), block.inputs, block.outputs)


def _ready(found: Found) -> list[str]:
    return [revision for revision in found.revisions if found.is_ready(revision)] if found.answers else []


def gate_config(app: str, revision: Revision, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the gate is to go by when a revision is brought up: what it `known` already, with the present token.

    Raises
    ------
    SpecError
        Where the revision has no token: Ray Serve may listen on every interface.
    """
    path = _option(revision.argv, "--token-file")
    if not path:
        raise SpecError("nothing is served on Ray without a token", fix="give the revision's command --token-file")
    digests = {"token": token_digest(read_token(Path(path))), "desk": token_digest(desk_key(app))}
    if known:
        return {**known, **digests}
    max_body = int(_option(revision.argv, "--max-body") or _DEFAULTS.max_body)
    timeout = float(_option(revision.argv, "--timeout") or _DEFAULTS.timeout)
    limits = {"max_body": max_body, "timeout": timeout + _LONGER}
    return {"traffic": {}, "versions": {}, "package": package().uri, **limits, **digests}


def revision_order(revision: Revision) -> dict[str, Any]:
    """Return what the cluster is told of a revision: nothing of this machine's files.

    Raises
    ------
    SpecError
        If a port is asked for, which all deployments on Ray Serve share.
    """
    if revision.port:
        raise SpecError("all deployments on Ray Serve have one port", fix="leave port out")
    words = list(revision.argv)
    for option in _LOCAL_OPTIONS:
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    return {
        "id": revision.id,
        "argv": words,
        "env": dict(revision.env),
        "resources": _resources(revision),
        "scaling": asdict(revision.scaling),
        "max_in_flight": int(_option(revision.argv, "--max-in-flight") or _DEFAULTS.max_in_flight),
    }


def _resources(revision: Revision) -> dict[str, Any]:
    share = share_of(revision.needs)
    named = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    return {
        **{named[name]: amount for name, amount in share.items() if name in named},
        "resources": {name: amount for name, amount in share.items() if name not in named},
    }


def _option(argv: Sequence[str], option: str) -> str:
    return argv[argv.index(option) + 1] if option in argv else ""
