"""The entry point of every worker, on every driver: ``python -m cloudai.training.worker --store … --run … --attempt …``."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cloudai.artifacts.store import Store
from cloudai.files import append_to
from cloudai.specs.confidential import start_log
from cloudai.specs.training import TrainSpec
from cloudai.training import notices
from cloudai.training.job import JOB, WORKER_PATIENCE
from cloudai.training.limits import Limits
from cloudai.training.stopping import StopSignal

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one attempt of a run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cloudai.training.worker")
    parser.add_argument("--store", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--digest", default="", help="the SHA-256 of the job: the store may be written by others")
    parser.add_argument("--lease-file", type=Path)
    parser.add_argument("--limits", type=json.loads, help="what it may cost and how long it may take, as JSON")
    args = parser.parse_args(argv)
    gc.disable()  # importing torch makes a million objects that stay: looking through them again and again takes 0.2 s
    faulthandler.enable()
    start_log()
    store = Store(args.store, patience=WORKER_PATIENCE)
    spec = TrainSpec.parse(_job(store, f"runs/{args.run}/{JOB}", args.digest))
    _make_private(spec.tracking)
    note = functools.partial(notices.note, store.at(f"runs/{args.run}"), args.attempt)
    stop = StopSignal(args.lease_file, Limits.from_json(args.limits), notices.here(), note)
    if spec.scaling.largest == 1:
        from cloudai.training.context import Solo
        from cloudai.training.execution import execute

        _collect_again()
        return stop.code(execute(spec, args.attempt, Solo(), stop))
    from cloudai.training.distributed import execute_on_ray

    _collect_again()
    return stop.code(execute_on_ray(spec, args.attempt, stop))


def _job(store: Store, key: str, digest: str) -> bytes:
    return store.read_verified(key, digest) if digest else store.read(key)


def _make_private(tracking: str) -> None:
    """Make the file of a SQLite tracker before its library does: for the user alone."""
    path = Path(tracking.removeprefix("sqlite:///"))
    if tracking.startswith("sqlite:///") and path.parent.is_dir():
        with contextlib.suppress(OSError):  # the tracker will say so itself, and the run goes on
            append_to(path).close()


def _collect_again() -> None:
    """Collect garbage again, leaving out what the imports made."""
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of libraries must not keep a finished worker alive
