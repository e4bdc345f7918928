"""More than one worker: a Ray cluster of this machine for the run, or the cluster that the worker itself was sent to.

Ray carries processes, ranks and collectives. Which checkpoint they come back from, how often they may fail, and what a
signal means is ours, the same as for one worker.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from cloudai.artifacts.store import Store
from cloudai.drivers.capacity import Node, room, share_of
from cloudai.drivers.protocols import Needs
from cloudai.errors import MissingExtraError, PlacementError
from cloudai.specs.training import TrainSpec
from cloudai.training.chatter import HUSH
from cloudai.training.job import FAILED, LOST, STOPPED, SUCCEEDED, WORKER_PATIENCE, RunFiles
from cloudai.training.journal import JournalReader
from cloudai.training.ranks import Notice, rank_main
from cloudai.training.sizes import note_size, sizes_of
from cloudai.training.stopping import Stop

__all__ = ["execute_on_ray"]

log = logging.getLogger(__name__)

_ANYWHERE = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",  # the log is a file
}
_HERE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # Ray listens on every interface: nobody without the user's token gets in
    "AUTOSCALER_METRIC_PORT": "-1",  # this endpoint knows no token, so it is not opened
    "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",  # the ranks are on this machine and need no other way
}
_LOOK = 0.2  # seconds between two looks at what the worker was told
_ROOM_NOW = 2.0
"""Seconds in which a cluster that has room gives it."""
_ROOM_SOON = 60.0
"""Seconds that an attempt waits for room for its fewest workers, before it ends and the supervisor asks for a place again."""
_ENDING = 8.0
"""Seconds that ranks, Ray and this process take to end after the last step; 4 to 5 were measured on a quiet machine."""
_MORE_ROOM = "there is room for more workers"


def execute_on_ray(spec: TrainSpec, attempt: int, stop: Stop) -> int:
    """Run the work on several workers, and return the exit code.

    Ray does not restart failed workers here: that is the supervisor's, as for one worker, so that every attempt is counted
    and written down in one place. Only a run that may grow starts its workers again by itself, from a checkpoint that all of
    them write before.

    Raises
    ------
    MissingExtraError
        If Ray is not installed.
    """
    from cloudai.training.execution import write_error

    files = RunFiles(spec, WORKER_PATIENCE)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `_tell` sends it; background jobs of a shell ignore it
    try:
        with _Cluster(spec) as cluster:
            while True:
                code, told = _Fit(cluster, spec, attempt, stop).run(files.folder)
                if not (code == STOPPED and told == _MORE_ROOM):
                    break
    except PlacementError as error:
        write_error(files, error)
        return FAILED
    except KeyboardInterrupt:
        return STOPPED
    if code in (SUCCEEDED, STOPPED):
        return code
    return FAILED if JournalReader(files.folder).error() is not None else LOST


class _Cluster:
    """The cluster that a run is on: the one that the worker was sent to, or one of this machine, alive as long as the block."""

    def __init__(self, spec: TrainSpec) -> None:
        self._spec = spec
        self._share = share_of(Needs(spec.resources.cpus, spec.resources.memory, spec.resources.gpus, spec.resources.gpu_type))

    def __enter__(self) -> _Cluster:
        joins = self._spec.on == "ray"
        os.environ.update(_ANYWHERE if joins else _ANYWHERE | _HERE)
        try:
            import ray
        except ImportError:
            raise MissingExtraError("more than one worker needs Ray", fix='pip install "cloudai[ray]"') from None
        self._ray: Any = ray
        with _shielded(), _own_signals():
            if joins:
                ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=True)
            else:
                quiet = {"worker_process_setup_hook": HUSH}
                ray.init(
                    address="local", num_cpus=self._cores(), include_dashboard=False, log_to_driver=True, runtime_env=quiet
                )
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def _cores(self) -> int:
        """Return how many cores of this machine the run may take."""
        cores = os.cpu_count() or 1
        sizes = [size for size in sizes_of(self._spec) if size * self._spec.resources.cpus <= cores]
        if not sizes:
            smallest = sizes_of(self._spec)[0]
            what = f"{smallest} workers need {smallest * self._spec.resources.cpus:g} cores, this machine has {cores}"
            raise PlacementError(what, fix="ask for fewer workers")
        return math.ceil(sizes[-1] * self._spec.resources.cpus)

    @property
    def share(self) -> dict[str, float]:
        """What one worker takes."""
        return self._share

    def size(self) -> int | None:
        """Return for how many workers there is room now; None where the cluster is too busy for the fewest.

        Raises
        ------
        PlacementError
            If the cluster is too small for the fewest; bare Ray Train would wait for ever.
        """
        sizes = sizes_of(self._spec)
        nodes = [Node(node["Resources"]) for node in self._ray.nodes() if node["Alive"]]
        most = room((node.total for node in nodes), self._share)
        if most < sizes[0]:
            what = f"{sizes[0]} workers need {sizes[0]} × {self._share}, and the cluster has room for {most}"
            raise PlacementError(what, fix="ask for fewer workers, or add machines to the cluster")
        able = [size for size in sizes if size <= most]
        for size in reversed(able[1:]):
            if self.has_room(size, _ROOM_NOW):
                return size
        return able[0] if self.has_room(able[0], _ROOM_SOON) else None

    def has_room(self, workers: int, seconds: float) -> bool:
        """Whether so many workers more would be given room within some seconds; they are given back at once."""
        from ray.util.placement_group import placement_group, remove_placement_group

        with contextlib.suppress(self._ray.exceptions.RayError):  # a cluster that does not answer has none
            group = placement_group([self._share] * workers)
            try:
                return bool(group.wait(seconds))
            finally:
                remove_placement_group(group)
        return False

    def notice(self) -> Any:
        """Start the actor through which the ranks hear, on the machine of this process: they end together."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        return self._ray.remote(Notice).options(num_cpus=0, scheduling_strategy=here).remote()


class _Fit:
    """One start of all ranks, until they have ended."""

    def __init__(self, cluster: _Cluster, spec: TrainSpec, attempt: int, stop: Stop) -> None:
        self._cluster, self._spec, self._attempt, self._stop = cluster, spec, attempt, stop
        self._notice = cluster.notice()
        self._over = threading.Event()
        self._told = ""

    def run(self, folder: Store) -> tuple[int, str]:
        """Return rank 0's exit code, and what the ranks were told."""
        size = self._cluster.size()
        if size is None:
            log.warning("the cluster had no room for the fewest workers within %g s", _ROOM_SOON)
            return LOST, ""
        note_size(folder, size)
        threading.Thread(target=self._watch, args=(size,), name="cloudai-stop", daemon=True).start()
        try:
            self._train(size)
        except Exception:
            log.exception("Ray Train ended without success")
            return (STOPPED if self._told not in ("", _MORE_ROOM) else LOST), self._told
        finally:
            self._over.set()
        code = self._ask(self._notice.code)
        return (LOST if code is None else code), self._told

    def _train(self, size: int) -> None:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        with tempfile.TemporaryDirectory(prefix="cloudai-ray-") as storage:
            on_gpus = self._spec.resources.gpus > 0
            scaling = ScalingConfig(num_workers=size, use_gpu=on_gpus, resources_per_worker=self._cluster.share)
            TorchTrainer(
                rank_main,
                train_loop_config={"spec": self._spec.model_dump_json(), "attempt": self._attempt, "notice": self._notice},
                torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpus else "gloo"),  # votes lie in memory
                scaling_config=scaling,
                # the name is new each time: Ray would silently go on from a snapshot of the same name
                run_config=RunConfig(name=f"{self._spec.name}-{self._attempt}-{time.time_ns()}", storage_path=storage),
            ).fit()

    def _ask(self, method: Any) -> Any:
        """Return what the notice says; None where it does not answer."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            return ray.get(method.remote(), timeout=10)
        return None

    def _watch(self, size: int) -> None:
        """Tell the ranks when they should end: the worker was told so, or there is room for more of them."""
        looked = time.monotonic()
        while not self._over.wait(_LOOK):
            if reason := self._stop():
                self._tell(reason)
                return
            self._pass_on()
            if time.monotonic() - looked >= self._spec.scaling.check_every:
                looked = time.monotonic()
                if self._may_grow(size):
                    self._tell(_MORE_ROOM)
                    return

    def _pass_on(self) -> None:
        """Let the ranks know that a checkpoint is wanted at once, and hear how soon they must know that they should end."""
        if self._stop.hurries():
            log.warning("telling the workers to write a checkpoint: %s", self._stop.notice)
            self._notice.hurry.remote(self._stop.notice)
        if pace := self._ask(self._notice.pace):
            self._stop.others_take(pace.step + _ENDING)
            self._stop.checkpoint_took(pace.checkpoint)

    def _may_grow(self, size: int) -> bool:
        larger = [more for more in sizes_of(self._spec) if more > size]
        return bool(larger and self._ask(self._notice.begun) and self._cluster.has_room(larger[0] - size, _ROOM_NOW))

    def _tell(self, reason: str) -> None:
        """Let the ranks write a checkpoint at a common step and end; where none has begun, end at once."""
        log.warning("telling the workers to stop: %s", reason)
        self._told = reason
        self._notice.tell.remote(reason, self._stop.notice)
        if not self._ask(self._notice.begun):
            os.kill(os.getpid(), signal.SIGINT)  # what Ray understands: it ends its processes


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    """Keep SIGTERM from the processes started in the block: it may come to our whole group, and the ranks still need them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Put back what SIGTERM does here, which Ray changes."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
