"""A deployment: the handle of a service that goes on by itself."""

from __future__ import annotations

import importlib.util
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cloudai.artifacts.filesystems import is_local
from cloudai.artifacts.inputs import arrays_for, only_output
from cloudai.artifacts.known import find_model
from cloudai.artifacts.model import Model
from cloudai.display import Card, Table, duration, money
from cloudai.drivers import registry
from cloudai.errors import MissingExtraError, NotReadyError, RunFailedError, SpecError, StoreError
from cloudai.planning.spending import Span, Spending, spending
from cloudai.serving import client
from cloudai.serving.labels import judged
from cloudai.serving.rollout import Progress
from cloudai.serving.scaling import check_autoscaling, policy_of, price_now, replicas_text
from cloudai.serving.split import Split
from cloudai.serving.steering import order_of, progress_of, routing_of
from cloudai.serving.told import guard_rows, rollout_facts
from cloudai.specs.rollout import Guard, Rollout, RolloutOrder
from cloudai.specs.serving import AutoscalingPolicy, DeploySpec
from cloudai.specs.tls import Tls
from cloudai.state.handles import Handle
from cloudai.state.ledger import Ledger, Record
from cloudai.state.tokens import read_token, renew_token, token_path
from cloudai.training.run import Run

__all__ = ["Deployment", "check_reach", "revision_id"]

_POLL = 0.05  # seconds between two looks while waiting
_MOST_ROWS = 1_000_000  # kept predictions that labels are joined with
_PREDICT_WAIT = 60.0  # seconds that predict() waits for a deployment that is still starting


class Deployment(Handle):
    """A model as a service, made by `cloudai.deploy` and found again with `cloudai.attach`.

    Changes (`canary`, `promote`, `pause`, `resume`, `rollback`) return at once and are carried out by the supervisor; `wait`
    waits until what is there is what was asked for.
    """

    def __init__(self, ledger: Ledger, record: Record) -> None:
        self.spec = DeploySpec.model_validate(record.spec)
        self.lease_seconds = self.spec.lease
        self._model: Model | None = None
        super().__init__(ledger, record)

    def __repr__(self) -> str:
        return f"Deployment({self.name!r}, phase={self.phase!r})"

    def _read(self, record: Record) -> None:
        """Everything is in the record."""

    @property
    def url(self) -> str:
        """Where it answers; empty while it does not."""
        return str(self._record.status.get("url", ""))

    @property
    def split(self) -> Split:
        """Which revision should have which share of the traffic now."""
        return routing_of(self._record).split

    @property
    def progress(self) -> Progress | None:
        """How far the last rollout by itself has come; None where the traffic was set by hand since."""
        return progress_of(self._record)

    @property
    def grpc_url(self) -> str:
        """Host and port where it speaks gRPC; empty where it does not."""
        return str(self._record.status.get("grpc_url", ""))

    @property
    def revisions(self) -> list[Mapping[str, Any]]:
        """What is up now: id, ready, replicas, those of them that take requests, traffic, reason, pids."""
        return list(self._record.status.get("revisions", []))

    @property
    def traffic(self) -> dict[str, int]:
        """The percentage of the traffic that each revision has now."""
        return {row["id"]: row["traffic"] for row in self.revisions if row["traffic"]}

    @property
    def cost(self) -> Spending:
        """What it has cost up to now."""
        return deployment_spending(self._record, self._ledger.clock.now())

    @property
    def model(self) -> Model:
        """The model of the stable revision.

        Raises
        ------
        NotReadyError
            If its run has not made it yet.
        """
        entry = self._entry(self.split.stable)
        if self._model is None or self._model.digest != entry["digest"]:
            self._model = Model.open(entry["uri"], entry["digest"])
        return self._model

    def _entry(self, revision: str) -> Mapping[str, str]:
        entry: Mapping[str, str] = self._record.desired["revisions"][revision]
        if "run" in entry:
            made = self._ledger.get("run", entry["run"]).status.get("model")
            if made is None:
                raise NotReadyError(f"the run {entry['run']!r} has not made its model yet", fix="wait for the run first")
            return dict(made)
        return entry

    def wait(self, timeout: float = 120.0) -> Deployment:
        """Wait until what is there is what was asked for, a rollout by itself to its end; Ctrl-C stops the waiting only.

        Raises
        ------
        RunFailedError
            If it cannot get there, with the reason: also when the rollout went back by itself.
        NotReadyError
            If the time is over first.
        """
        self._wait_for(self._settled, timeout)
        return self._not_rolled_back()

    def _wait_for(self, there: Callable[[], bool], timeout: float) -> None:
        clock = self._ledger.clock
        deadline = clock.now() + timeout
        try:
            while True:
                self.refresh()
                if there() or (self._deleting and self.ended):
                    return
                if self.ended or (self.phase == "failing" and self._heard):
                    raise self._failure()
                if clock.now() > deadline:
                    raise self._too_long()
                clock.pause(_POLL)
        except KeyboardInterrupt:
            sys.stderr.write(f"Stopped waiting; {self.name} goes on. Come back: cloudai.attach({self.ref!r})\n")

    def _not_rolled_back(self) -> Deployment:
        progress = self.progress
        if progress is not None and progress.phase == "rolled back":
            numbers = f" ({progress.numbers})" if progress.numbers else ""
            what = f"{self._canary_asked} was rolled back: {progress.reason}{numbers}"
            raise RunFailedError(what, fix="mend it and try the next version; print the deployment to see all guards")
        return self

    def _too_long(self) -> NotReadyError:
        progress = self.progress
        if progress is not None and progress.phase in ("held", "paused"):
            why = f": {progress.reason}" if progress.reason else ""
            return NotReadyError(
                f"the rollout of {self._canary_asked} is {progress.phase}{why}", fix="promote() or rollback() it"
            )
        return NotReadyError(f"the deployment {self.name!r} is still {self.phase}", fix="wait longer, or print it")

    @property
    def _canary_asked(self) -> str:
        """The revision that the last rollout by itself is about."""
        return Split.from_json(self._record.desired["rollout"]).canary

    @property
    def _heard(self) -> bool:
        """Whether the phase is about what the user wants now, and not about what was wanted before."""
        return bool(self._record.status.get("wish") == self._record.desired.get("wish"))

    def _settled(self) -> bool:
        routing = routing_of(self._record)
        ready = {row["id"] for row in self.revisions if row["ready"]}
        there = self.traffic == routing.traffic and routing.split.kept <= ready and not routing.rolling
        return there and self._heard and self.phase == "ready" and not self._deleting

    def _answers(self) -> bool:
        return bool(self.url) and self.phase in ("ready", "updating")

    def _failure(self) -> RunFailedError:
        status = self._record.status
        reason = status.get("reason") or "it was deleted"
        return RunFailedError(
            f"the deployment {self.name!r} is {self.phase}: {reason}", fix=status.get("fix") or "deploy again"
        )

    def predict(self, data: Any, *, timeout: float = 30.0) -> Any:
        """Ask the service for predictions.

        Parameters
        ----------
        data : array or mapping of str to array
            One row per example.
        timeout : float
            Seconds for the answer.

        Returns
        -------
        array or dict of str to array
            A bare array where the model has one output.

        Raises
        ------
        RequestError
            If the data does not fit the model's signature; nothing is sent then.
        SpecError
            If the service asks for a client certificate and `Tls` names none.
        NotReadyError
            If the service does not become ready within a minute.
        """
        tls = self._client_tls()
        if not self.url:
            self._wait_for(self._answers, _PREDICT_WAIT)
        if self.ended:
            raise NotReadyError(f"the deployment {self.name!r} is {self.phase}", fix="deploy the model again")
        arrays = arrays_for(self.model.signature, data, self.model.features)
        token = read_token(self.token_file)
        return only_output(client.predict(self.url, self.name, arrays, timeout=timeout, token=token, tls=tls))

    def _client_tls(self) -> Tls | None:
        tls = self.spec.tls
        if tls is not None and tls.client_ca is not None and tls.client_certificate is None:
            what = f"the deployment {self.name!r} asks for a client certificate, and knows none to show"
            raise SpecError(what, fix="deploy it with Tls(client_certificate=…, client_key=…), or ask it with your own client")
        return tls

    def curl(self, data: Any) -> str:
        """Return the shell line that asks for the prediction of the first row of `data`, with the token from its file."""
        arrays = arrays_for(self.model.signature, data, self.model.features)
        rows = {name: np.asarray(array)[:1] for name, array in arrays.items()}
        return client.curl_line(self.url, self.name, rows, token_file=self.token_file, tls=self._client_tls())

    def openai_client(self, **options: Any) -> Any:
        """Return a client of OpenAI's package that asks this service, where its model writes or embeds texts.

        Parameters
        ----------
        **options
            Passed on to ``openai.OpenAI``, such as ``timeout`` in seconds. The client has the token as it is now.

        Raises
        ------
        MissingExtraError
            If the package ``openai`` is not installed.
        NotReadyError
            If the service does not become ready within a minute.
        """
        if importlib.util.find_spec("openai") is None:
            raise MissingExtraError("the package openai is not installed", fix="pip install openai")
        import openai

        if not self.url:
            self.wait(_PREDICT_WAIT)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=read_token(self.token_file), **options)

    @property
    def token_file(self) -> Path:
        """The file of yours alone that holds the token: who sends ``authorization: Bearer <token>`` may ask."""
        return token_path(self._ledger.home, self.name)

    def rotate_token(self) -> None:
        """Make a new token; from the next request on the old one is refused, elsewhere from the supervisor's next look on."""
        renew_token(self.token_file)

    def canary(
        self,
        model: Any = None,
        percent: int | None = None,
        *,
        rollout: Rollout | None = None,
        guards: Sequence[Guard] = (),
    ) -> Deployment:
        """Bring another model up and give it a share of the traffic as soon as it is ready.

        Parameters
        ----------
        model : Model, Run or str, optional
            The model, the run that made it, or its name as for `cloudai.load_model`; without one, only the share of the
            present canary changes.
        percent : int, optional
            Its share, 0 to 100, by hand; by default 10. It takes the present canary out of a rollout by itself.
        rollout : Rollout, optional
            In place of a share: the steps by which it gets the traffic by itself, and is thrown out by itself.
        guards : sequence of Guard, optional
            What throws it out; by default ``Guard(watch="errors")``. Guards without a rollout mean ``Rollout()``.

        Raises
        ------
        SpecError
            If another canary is on trial, the model's signature would break callers, or the driver cannot do it.
        """
        split = self._fresh_split()
        if rollout is None and not guards:
            return self._by_hand(split, model, 10 if percent is None else percent)
        if percent is not None:
            raise SpecError("a share by hand and a rollout by itself are two things", fix="give percent= or rollout=")
        order = RolloutOrder.new(secrets.token_hex(4), rollout or Rollout(), guards, self._ledger.clock.now())
        self._check_driver(order)
        if model is None:
            return self._roll(split.start_canary(split.canary, 0), order)
        revisions, revision = self._with(model)
        return self._roll(split.start_canary(revision, 0), order, revisions=revisions)

    def _by_hand(self, split: Split, model: Any, percent: int) -> Deployment:
        if model is None:
            return self._roll(split.start_canary(split.canary, percent))
        revisions, revision = self._with(model)
        return self._roll(split.start_canary(revision, percent), revisions=revisions)

    def _with(self, model: Any) -> tuple[dict[str, Any], str]:
        """Return the revisions with that of a model that may become a canary, and its name."""
        model = self._opened(model)
        if model.digest == self.model.digest:
            raise SpecError(
                f"{model.name} {model.version} is the stable revision already", fix="deploy another version as the canary"
            )
        if model.signature != self.model.signature:
            what = f"{model.name} {model.version} takes and gives {model.signature}"
            raise SpecError(f"{what}, callers of {self.name!r} use {self.model.signature}", fix="deploy it under another name")
        check_reach(self.spec.on, model.uri)
        revisions: dict[str, Any] = dict(self._record.desired["revisions"])
        revision = revision_id(model, revisions)
        return {**revisions, revision: model_entry(model)}, revision

    def _check_driver(self, order: RolloutOrder) -> None:
        able = registry.serve_driver(self.spec.on).capabilities
        if not able.telemetry:
            raise SpecError(f"the driver {self.spec.on!r} cannot say how a version fares", fix="roll out by hand: percent=")
        if order.rollout.sticky and not able.sticky:
            raise SpecError(f"the driver {self.spec.on!r} cannot keep requests with a version", fix="leave sticky= out")
        if order.rollout.shadow and not able.shadow:
            raise SpecError(f"the driver {self.spec.on!r} cannot mirror requests", fix="leave shadow= out")

    def _opened(self, model: Any) -> Model:
        if isinstance(model, str):
            return find_model(self._ledger, model)
        if isinstance(model, Model):
            return model.verify()
        if isinstance(model, Run):
            return model.model
        raise SpecError(f"cannot deploy {type(model).__name__}", fix="give a Model, a Run or a model's name")

    def promote(self) -> Deployment:
        """Give the canary all the traffic; the revision before it stays up to go back to."""
        return self._roll(self._fresh_split().promote())

    def rollback(self) -> Deployment:
        """Go back to the stable revision, or from a promoted one to the one before."""
        return self._roll(self._fresh_split().rollback())

    def pause(self) -> Deployment:
        """Let a rollout by itself stay at its step; its guards go on watching, and can still throw the version out.

        Raises
        ------
        SpecError
            If there is no rollout by itself under way.
        """
        return self._reorder(paused=True)

    def resume(self) -> Deployment:
        """Let a paused or held rollout go on: its step begins anew.

        Raises
        ------
        SpecError
            If there is no rollout by itself under way.
        """
        return self._reorder(paused=False)

    def label(self, labels: Mapping[str, Any]) -> int:
        """Say what the right predictions were, for the guard on accuracy; give each label once.

        Parameters
        ----------
        labels : mapping of str to int or str
            By the request's id, which an answer's header ``x-request-id`` names: the class, as the model numbers or names it.

        Returns
        -------
        int
            How many of them belong to predictions that were kept since the last rollout by itself was asked for.

        Raises
        ------
        SpecError
            If there is no rollout by itself under way.
        CloudAIError
            If the service does not answer.
        """
        order = self._order_under_way()
        driver = registry.telemetry_driver(self.spec.on)
        since = datetime.fromtimestamp(order.asked, UTC)
        counts = judged(driver.samples(self.name, since=since, limit=_MOST_ROWS), labels)
        known = self._record.desired.get("labelled") or {}
        added = {rev: [a + b for a, b in zip(known.get(rev, (0, 0)), pair, strict=True)] for rev, pair in counts.items()}
        self._want(labelled={**known, **added})
        return sum(rows for rows, _ in counts.values())

    def _order_under_way(self) -> RolloutOrder:
        self._fresh_split()
        order, progress = order_of(self._record), self.progress
        if order is None or (progress is not None and progress.ended):
            raise SpecError("no rollout by itself is under way", fix="start one: deployment.canary(model, rollout=…)")
        return order

    def _reorder(self, *, paused: bool) -> Deployment:
        order = self._order_under_way()
        change = {"paused": paused, "resumed": order.resumed + (not paused)}
        self._want(order=order.model_copy(update=change).model_dump(mode="json"))
        return self

    def _fresh_split(self) -> Split:
        self.refresh()
        if self.ended or self._deleting:
            raise NotReadyError(f"the deployment {self.name!r} is deleted", fix="deploy the model again")
        return self.split

    @property
    def _deleting(self) -> bool:
        return bool(self._record.desired.get("delete"))

    def _roll(self, split: Split, order: RolloutOrder | None = None, **change: object) -> Deployment:
        self._wish(rollout=split.to_json(), order=None if order is None else order.model_dump(mode="json"), **change)
        return self

    def _wish(self, **change: object) -> None:
        """Want something else; the supervisor says with the phase which wish it is about."""
        self._want(**change, wish=secrets.token_hex(4))

    @property
    def autoscaling(self) -> AutoscalingPolicy:
        """The policy by which its replicas are counted, as asked for last."""
        return policy_of(self._record)

    def scale(self, to: int | AutoscalingPolicy) -> Deployment:
        """Keep so many replicas of each revision up from now on, or as many as a policy says.

        Raises
        ------
        SpecError
            If there cannot be so many, or the place cannot do it.
        """
        self._fresh_split()
        policy = to if isinstance(to, AutoscalingPolicy) else AutoscalingPolicy.fixed(to)
        check_autoscaling(policy, registry.serve_driver(self.spec.on))
        self._wish(autoscaling=policy.model_dump(mode="json"))
        return self

    def delete(self) -> None:
        """Take it down, and its kept payloads with it. Nothing happens where it is down."""
        if not self.ended:
            self._want(delete=True)

    def card(self) -> Card:
        """Show where it answers, which revision has which traffic, and what it costs."""
        status = self._record.status
        reason = f": {status['reason']}" if status.get("reason") else ""
        price = price_now(status) or {"per_hour": 0.0, "currency": ""}
        facts = [
            ("phase", self.phase + reason),
            ("url", self.url or "none yet"),
            *([("gRPC", self.grpc_url)] if self.grpc_url else []),
            ("cost per hour", money(price["per_hour"], price["currency"]) if price["currency"] else "none yet"),
            ("spent", str(self.cost)),
            ("replicas", replicas_text(self.autoscaling)),
            ("lease", f"{duration(self.spec.lease)} without a live handle" if self.spec.lease else "for ever"),
            *self._rollout_facts(),
        ]
        rows = [
            (row["id"], f"{row['traffic']} %", _ready(row), _replicas(row), self._role(row["id"])) for row in self.revisions
        ]
        tables = [Table(("revision", "traffic", "ready", "replicas", "role"), rows)] if rows else []
        order, progress = order_of(self._record), self.progress
        if order is not None and progress is not None:
            tables.append(Table(("guard", "evidence", "effect"), guard_rows(order, progress)))
        note = f"as of {self.age}; cloudai.attach({self.ref!r}) brings it back"
        return Card(f"Deployment {self.name}", facts, tables=tables, notes=[note])

    def _rollout_facts(self) -> list[tuple[str, str]]:
        order, progress = order_of(self._record), self.progress
        if order is None:
            return []
        if progress is None:
            return [("rollout", "about to begin")]
        return rollout_facts(self._canary_asked, order, progress, self._ledger.clock.now())

    def _role(self, revision: str) -> str:
        state = self.split
        roles = {state.stable: "stable", state.canary: "canary", state.previous: "previous, to go back to"}
        return roles.get(revision, "ending")

    def metrics(self, version: str | None = None) -> dict[str, float]:
        """Read the service's own counters now: requests, errors, and the mean latency in seconds.

        Parameters
        ----------
        version : str, optional
            Of this version of the model alone, such as a canary's; by default of all revisions together.

        Raises
        ------
        CloudAIError
            If the service does not answer.
        """
        driver = registry.telemetry_driver(self.spec.on)
        totals: dict[str, float] = {}
        for metric in driver.metrics(self.name, since=datetime.fromtimestamp(self._record.created, UTC)):
            if "le" not in metric.labels and version in (None, metric.labels.get("version")):
                totals[metric.name] = totals.get(metric.name, 0.0) + metric.value
        count = totals.get("ml_inference_latency_count", 0.0)
        return {
            "requests": count,
            "errors": totals.get("ml_inference_errors_total", 0.0),
            "mean_latency_seconds": totals.get("ml_inference_latency_sum", 0.0) / count if count else 0.0,
        }


def _ready(row: Mapping[str, Any]) -> str:
    return "asleep" if row["ready"] and not row["replicas"] else "yes" if row["ready"] else "no"


def _replicas(row: Mapping[str, Any]) -> str:
    answering = row.get("ready_replicas", 0)
    return f"{row['replicas']}, {answering} ready" if 0 < answering < row["replicas"] else str(row["replicas"])


def check_reach(on: str, url: str) -> None:
    """Refuse a model in a folder of this machine for a place that is others.

    Raises
    ------
    StoreError
        If so.
    """
    if registry.get(on).capabilities.elsewhere and is_local(url):
        fix = "make it where the store is one that both can reach, such as s3://bucket/cloudai (CLOUDAI_STORE)"
        raise StoreError(f"replicas on {on!r} run on other machines and cannot reach the model in {url}", fix=fix)


def deployment_spending(record: Record, now: float) -> Spending:
    """Return what a deployment's record says that it has cost up to `now`, a unix time."""
    status = record.status
    span = Span(status.get("started"), status.get("ended"), price_now(status), status.get("billed"), status.get("billed_at"))
    return spending([span], now)


def model_entry(model: Model) -> dict[str, str]:
    """Return what the ledger keeps of a model."""
    return {"name": model.name, "version": model.version, "uri": model.uri, "digest": model.digest}


def revision_id(model: Model, known: Mapping[str, Mapping[str, str]]) -> str:
    """Return the name of a model's revision; a second model of the same version gets a part of its digest."""
    name = f"v{model.version}"
    taken = name in known and known[name].get("digest") not in (None, model.digest)
    return f"{name}-{model.digest[:6]}" if taken else name
