"""What the driver orders is carried out here, inside of the cluster: by a job, or by the gate where that is up already.

An order is JSON. Its parts are all optional but ``app``:

- ``app``: the deployment's own Serve application, with the gate;
- ``gate``: what the gate is to go by from now on (see `GateConfig`), its ``max_body`` and ``timeout``, and its ``package``,
  which is where Ray keeps the cloudai that it runs by;
- ``revision``: ``id``, ``argv``, ``env``, ``resources``, ``scaling`` and ``max_in_flight`` of what is to be brought up, and its
  ``version``: its package and, after ``#``, which start of it is meant, so that a known one is only scaled;
- ``gone``: names of Serve applications that are to end;
- ``port`` and ``fast``: where Ray Serve is to listen, and whether by its fast ingress, if it does not run yet.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from cloudai.serving.ray.gate import GateApplication, UnavailableError
from cloudai.serving.ray.replica import Replica
from cloudai.specs.confidential import start_log

__all__ = ["carry_out", "main", "revision_application"]

_HERE, _EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104  the fast ingress of a machine reaches gates on others by it
_GATE, _REVISION = "Gate", "Replica"
_FAST = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
_MOST_AT_THE_GATE = 1100
"""Requests at once for which Ray Serve lets a replica of the gate be asked: more than the gate takes, so that it says 429."""
_GATES = 2
"""Replicas of the gate in a cluster of several machines, so that one may be lost."""
_BROADCAST_PATIENCE = 8.0
"""Seconds that the replicas have to say how they fare; less than the driver waits."""
_TRIES = 1
"""How often a replica that fails at its start is started again by Ray Serve; the supervisor tries again by itself."""
_WELL = {"health_check_period_s": 2.0, "graceful_shutdown_wait_loop_s": 0.2, "graceful_shutdown_timeout_s": 15.0}
"""Seconds: how soon a replica that is gone is noticed, and how long one may answer what it has taken on."""
_DELAYS = {"upscale_delay_s": 3.0, "downscale_delay_s": 60.0}
"""Seconds for which there must be too much or too little to do before the number of replicas is changed."""


def revision_application(app: str, revision: str) -> str:
    """Return the name of a revision's own Serve application; there is no dot in the name of a deployment."""
    return f"{app}.{revision}"


def carry_out(order: Mapping[str, Any]) -> None:
    """Do what was ordered; to do it twice changes nothing."""
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": _EVERYWHERE if order["fast"] else _HERE, "port": int(order["port"])},
        controller_options={"runtime_env": {"env_vars": _FAST}} if order["fast"] else None,
    )
    app = str(order["app"])
    if "revision" in order:
        _bring_up(_revision(order), revision_application(app, order["revision"]["id"]))
    if "gate" in order:
        serve.run(_gate(order), name=app, route_prefix=f"/{app}")
    for name in order.get("gone", ()):
        serve.delete(name, _blocking=False)


def _bring_up(target: serve.Application, name: str) -> None:
    """Let Ray Serve start an application, and do not wait for it."""
    serve.run_many(
        [serve.RunTarget(target, name=name, route_prefix=None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _revision(order: Mapping[str, Any]) -> serve.Application:
    revision = order["revision"]
    package = revision["version"].partition("#")[0]
    made = _deployment(Replica).options(
        name=_REVISION,
        ray_actor_options={**revision["resources"], "runtime_env": _runtime_env(order, package, revision["env"])},
        max_ongoing_requests=revision["max_in_flight"],
        max_queued_requests=revision["max_in_flight"],
        max_constructor_retry_count=_TRIES,
        **_WELL,
        **_scaling(**revision["scaling"]),
    )
    target: serve.Application = _of_version(made, revision["version"]).bind(revision["argv"])
    return target


def _deployment(kind: type) -> Any:
    return serve.deployment(kind)


def _scaling(*, min_replicas: int, max_replicas: int, target_ongoing_requests: float) -> dict[str, Any]:
    if min_replicas == max_replicas:
        return {"num_replicas": min_replicas}
    config = {"min_replicas": min_replicas, "max_replicas": max_replicas, "initial_replicas": max(1, min_replicas)}
    return {"autoscaling_config": {**config, **_DELAYS, "target_ongoing_requests": target_ongoing_requests}}


def _gate(order: Mapping[str, Any]) -> serve.Application:
    app, gate = order["app"], order["gate"]
    made = _deployment(serve.ingress()(Gate)).options(
        name=_GATE,
        num_replicas=_GATES if _machines() > 1 else 1,
        ray_actor_options={"num_cpus": 0, "runtime_env": _runtime_env(order, gate["package"], {})},
        max_ongoing_requests=_MOST_AT_THE_GATE,
        user_config=gate,
        **_WELL,
    )
    target: serve.Application = _of_version(made, gate["package"]).bind(app, gate["max_body"], gate["timeout"])
    return target


def _of_version(made: Any, version: str) -> Any:
    """Let Ray Serve tell what runs in this version of its new configuration, and not replace it.

    It does so for configurations given to its REST interface, where each such gives all applications of the cluster at once,
    others' too. For single ones it keeps versions to itself: should it not take ours any more, replicas are replaced in turn.
    """
    try:
        return made.options(version=version, _internal=True)
    except (TypeError, ValueError):
        return made


def _machines() -> int:
    return sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]


def _runtime_env(order: Mapping[str, Any], package: str, env: Mapping[str, str]) -> dict[str, Any]:
    return {"working_dir": package, "env_vars": {**env, **(_FAST if order["fast"] else {})}}


class Gate:
    """What Ray Serve runs in front of the revisions."""

    def __init__(self, app: str, max_body: int, timeout: float) -> None:
        start_log()
        self._application = GateApplication(_Handles(app), carry_out, max_body=max_body, timeout=timeout)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Go by another configuration: Ray Serve calls it at the start and after each change."""
        self._application.configure(config)

    def count(self) -> tuple[str, str]:
        """Return who counts here, and what was counted."""
        return self._application.count()

    def __serve_build_asgi_app__(self) -> Any:
        async def application(scope: Any, receive: Any, send: Any) -> None:  # uvicorn takes a function for ASGI 3, no method
            await self._application.below_prefix(scope, receive, send)

        return application


class _Handles:
    """Asks the replicas of revisions by Ray Serve's handles, which know at each moment who is there and who is idle."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._known: dict[str, DeploymentHandle[Any]] = {}

    def _handle(self, revision: str) -> DeploymentHandle[Any]:
        if revision not in self._known:
            self._known[revision] = serve.get_deployment_handle(_REVISION, revision_application(self._app, revision))
        return self._known[revision]

    async def ask(self, revision: str, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Any]:
        begun = False
        try:
            parts: Any = self._handle(revision).options(stream=True, method_name="answer").remote(dict(scope), body)
            async for part in parts:
                begun = True
                yield part
        except BackPressureError as error:
            raise UnavailableError("its replicas are busy", busy=True) from error
        except RayServeException as error:
            if begun:
                raise ConnectionError(f"{error!r}"[:300]) from None
            raise UnavailableError(f"{error!r}"[:300], busy=False) from None
        except RayError as error:
            raise ConnectionError(f"{error!r}"[:300]) from None

    async def ask_all(self, revision: str, method: str, *arguments: Any) -> list[Any]:
        handle = self._handle(revision) if revision else serve.get_deployment_handle(_GATE, self._app)
        calls = handle.broadcast(method, *arguments)
        said = await calls.results_async(timeout_s=_BROADCAST_PATIENCE, return_exceptions=True)
        return [value for value in said if not isinstance(value, BaseException)]


def main() -> None:
    """Carry out the order of the command line: base64 of JSON, so that nothing on the way changes it."""
    carry_out(json.loads(base64.b64decode(sys.argv[1])))


if __name__ == "__main__":
    main()
