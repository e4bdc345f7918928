"""More than one worker: Ray Train carries processes, ranks, restarts and collectives; the rest is ours, as for one.

Ray Train's own checkpoints are not used: ours lie on the store and are found there by whichever process comes next.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from cloudai.errors import MissingExtraError, PlacementError
from cloudai.specs.confidential import start_log
from cloudai.specs.training import TrainSpec
from cloudai.training.job import RunFiles
from cloudai.training.journal import JournalReader

__all__ = ["execute_on_ray"]

log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AUTH_MODE": "token",  # Ray listens on every interface: nobody without the user's token gets in
    "AUTOSCALER_METRIC_PORT": "-1",  # this endpoint knows no token, so it is not opened
    "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",  # the ranks are on this machine and need no other way
}


def execute_on_ray(spec: TrainSpec, attempt: int, stop_reason: Callable[[], str]) -> int:
    """Run the work on a Ray cluster of this machine, alive for this attempt only, and return the exit code.

    Ray does not restart failed workers here: that is the supervisor's, as for one worker, so that every attempt is counted
    and written down in one place.

    Raises
    ------
    MissingExtraError
        If Ray is not installed.
    PlacementError
        If this machine has fewer cores; bare Ray Train would wait for ever.
    """
    os.environ.update(_ENVIRONMENT)
    try:
        import ray
        from ray.train.torch import TorchTrainer
    except ImportError:
        raise MissingExtraError("more than one worker needs Ray", fix='pip install "cloudai[ray]"') from None
    from ray.train import RunConfig, ScalingConfig

    workers, cpus = spec.scaling.num_workers, spec.resources.cpus
    _preflight(workers, cpus)
    _end_when(stop_reason)
    ray.init(num_cpus=math.ceil(workers * cpus), include_dashboard=False, log_to_driver=True)
    try:
        with tempfile.TemporaryDirectory(prefix="cloudai-ray-") as folder:
            TorchTrainer(
                _rank_main,
                train_loop_config={"spec": spec.model_dump_json(), "attempt": attempt},
                scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": cpus}),
                # the name is new each time: Ray would silently go on from a snapshot of the same name
                run_config=RunConfig(name=f"{spec.name}-{attempt}", storage_path=folder),
            ).fit()
    except Exception:
        log.exception("Ray Train ended without success")
    finally:
        ray.shutdown()
    return _exit_code(spec)


def _preflight(workers: int, cpus: float) -> None:
    cores = os.cpu_count() or 1
    if workers * cpus > cores:
        raise PlacementError(
            f"{workers} workers need {workers * cpus:g} cores, this machine has {cores}", fix="ask for fewer workers"
        )


def _end_when(stop_reason: Callable[[], str]) -> None:
    """End this process, and with it Ray's, when the worker is told to stop; the last checkpoint stays."""

    def watch() -> None:
        while not stop_reason():
            time.sleep(0.5)
        log.warning("stopped: %s", stop_reason())
        os.kill(os.getpid(), signal.SIGINT)  # what Ray understands: it ends its processes

    threading.Thread(target=watch, name="cloudai-stop", daemon=True).start()


def _exit_code(spec: TrainSpec) -> int:
    from cloudai.training.execution import FAILED, LOST, SUCCEEDED

    reader = JournalReader(RunFiles(spec).folder)
    if reader.result() is not None:
        return SUCCEEDED
    return FAILED if reader.error() is not None else LOST


def _rank_main(config: dict[str, Any]) -> None:
    """Run in each Ray worker: one rank's part. A rank that fails must say so to Ray, or the others would wait for it."""
    from cloudai.training.execution import SUCCEEDED, execute

    start_log()
    code = execute(TrainSpec.parse(config["spec"]), config["attempt"], RayGroup(), lambda: "")
    if code != SUCCEEDED:
        raise RuntimeError(f"this rank ended with code {code}")


class RayGroup:
    """The workers of a run as Ray Train and torch.distributed know them."""

    def __init__(self) -> None:
        import ray.train
        import torch.distributed

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self._dist = torch.distributed

    def gather(self, value: str) -> list[str]:
        """Return every rank's value on all ranks, as bytes: torch's own gathering of objects would read pickles."""
        import torch

        mine = torch.tensor(list(value.encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        self._dist.all_gather(sizes, torch.tensor([len(mine)]))
        padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        padded[: len(mine)] = mine
        parts = [torch.zeros_like(padded) for _ in sizes]
        self._dist.all_gather(parts, padded)
        return [bytes(part[: int(size)].tolist()).decode() for part, size in zip(parts, sizes, strict=True)]

    def any(self, flag: bool) -> bool:
        """Return whether any rank says yes."""
        import torch

        votes = torch.tensor([int(flag)])
        self._dist.all_reduce(votes, op=self._dist.ReduceOp.MAX)
        return bool(votes.item())

    def device(self, spec: TrainSpec) -> Any:
        """Return the device that Ray has given to this rank."""
        import ray.train.torch

        return ray.train.torch.get_device()

    def wrap(self, module: Any) -> Any:
        """Return the module under DistributedDataParallel."""
        from torch.nn.parallel import DistributedDataParallel

        has_weights = any(parameter.requires_grad for parameter in module.parameters())
        return DistributedDataParallel(module) if has_weights else module
