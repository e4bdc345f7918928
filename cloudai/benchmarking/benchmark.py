"""A benchmark: the handle of a run that measures, and how such a run is asked for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal

from cloudai import settings
from cloudai.artifacts.model import Model
from cloudai.artifacts.store import content_key
from cloudai.benchmarking.measurement import FILE, Asked, Given, Measurement
from cloudai.benchmarking.result import BenchmarkResult
from cloudai.benchmarking.workloads import Workload, find_workload
from cloudai.display import Card
from cloudai.drivers import registry
from cloudai.drivers.protocols import Needs
from cloudai.errors import DataError, IntegrityError, NotReadyError, SpecError, StoreError
from cloudai.planning import catalog
from cloudai.planning.spending import Price
from cloudai.specs.confidential import redact
from cloudai.specs.resources import Resources
from cloudai.specs.texts import TextTask
from cloudai.specs.training import TrainSpec, Work
from cloudai.state.ledger import Ledger, Record
from cloudai.training.job import RunFiles
from cloudai.training.run import Run
from cloudai.training.work import Prepared

__all__ = ["Benchmark", "prepare_benchmark"]

_ENTRY = "cloudai.benchmarking.work:measure"
"""What the worker calls; named only, since it imports torch."""
_ENDLESS = 10**6
"""Epochs of a window: it ends by itself, long before."""


class Benchmark(Run):
    """A run that measures a workload, made by `cloudai.benchmark` and found again with `cloudai.attach`.

    It goes on when this process ends. Nothing but `wait` blocks.
    """

    def __init__(self, ledger: Ledger, record: Record) -> None:
        self.asked = Asked(**record.spec["config"])
        self._result: BenchmarkResult | None = None
        super().__init__(ledger, record)

    def __repr__(self) -> str:
        return f"Benchmark({self.name!r}, phase={self.phase!r})"

    def _read(self, record: Record) -> None:
        """Read the run's folder; where the result cannot be read, the card says why, and `result` asks again."""
        super()._read(record)
        if record.phase == "succeeded" and self._result is None:
            try:
                self._result = self._read_result(record)
            except (StoreError, IntegrityError) as error:
                self._unread = redact(error.what)

    def _read_result(self, record: Record) -> BenchmarkResult:
        digest = str(record.status.get("outcome") or "")
        content = RunFiles(self.spec).folder.read_verified(FILE, digest)
        measured = Measurement.model_validate(json.loads(content))
        return BenchmarkResult(measured, self._price(record), str(record.status.get("place", "")) or self.spec.on)

    def _price(self, record: Record) -> Price | None:
        """Return what the user said that an hour costs, or else what the place said; None where that is nothing."""
        if self.asked.price is not None:
            return self.asked.price.price()
        said: Mapping[str, Any] | None = record.status.get("price")
        return Price(**said) if said is not None and said["per_hour"] else None

    @property
    def result(self) -> BenchmarkResult:
        """What it found.

        Raises
        ------
        NotReadyError
            If it has not ended yet.
        RunFailedError
            If it ended without success.
        StoreError, IntegrityError
            If it cannot be read, or is not what was measured.
        """
        if self._result is None:
            self.refresh()
        if not self.ended:
            raise NotReadyError(f"the benchmark {self.name!r} is {self.phase}", fix="benchmark.wait() first")
        if self.phase != "succeeded":
            raise self._failure()
        if self._result is None:
            self._result = self._read_result(self._record)
        return self._result

    @property
    def model(self) -> Model:
        """There is none: a benchmark measures."""
        raise NotReadyError(f"the benchmark {self.name!r} makes no model", fix="look at benchmark.result")

    def wait(self, timeout: float | None = None, *, progress: bool = True) -> Benchmark:
        """Wait until it ends; Ctrl-C stops the waiting, not the benchmark. As `Run.wait`."""
        super().wait(timeout, progress=progress)
        return self

    def card(self) -> Card:
        """Show the result, or until there is one where the run is."""
        if self._result is not None:
            return self._result.card()
        card = super().card()
        return Card(f"Benchmark {self.asked.workload.ref}: {self.name}", card.facts, notes=card.notes)


def prepare_benchmark(
    workload: str,
    *,
    mode: Literal["window", "full"],
    device: Literal["auto", "cpu", "gpu"],
    price_per_hour: float | str | None,
    seconds: float,
    pretrained: str,
    data: Any,
    on: str,
    name: str,
    resources: Resources | None,
    lease: str | float | None,
) -> tuple[Prepared, TrainSpec]:
    """Check what is to be measured, and write nothing.

    Raises
    ------
    SpecError
        If an option is wrong.
    NotFoundError
        If there is no such workload or driver.
    """
    chosen, now = find_workload(workload), settings.current()
    files: dict[str, bytes] = {}
    asked = Asked.of(
        workload=chosen,
        mode=mode,
        seconds=seconds,
        price=_given(price_per_hour, now.currency),
        **_full(chosen, mode, pretrained, data, files),
    )
    task = TextTask(task="question-answering") if mode == "full" else TextTask()
    work = Work(kind="benchmark", entry=_ENTRY, rows=chosen.features, pretrained=_absolute(pretrained), text=task)
    spec = TrainSpec.of(
        name=name,
        model_name=chosen.name,
        work=work,
        on=on,
        config=asked.model_dump(mode="json"),
        loop=chosen.loop(epochs=_ENDLESS if mode == "window" else None),
        resources=_resources(on, device, resources),
        lease=lease,
        store=now.store,
        tracking=now.tracking,
    )
    return Prepared(work, files), spec


def _given(price: float | str | None, currency: str) -> Given | None:
    """Return the price that the user gives, or that of the published machine which they name."""
    if price is None:
        return None
    if isinstance(price, str):
        offer = catalog.offer_of(price)
        return Given.of(per_hour=offer.price_per_hour, currency=offer.currency, source=f"{offer.source}, {offer.as_of}")
    if isinstance(price, bool) or not isinstance(price, int | float) or not (math.isfinite(price) and price >= 0):
        raise SpecError(f"price_per_hour={price!r}", fix="give a number such as 3.06, or a machine such as 'Standard_NC6s_v3'")
    return Given.of(per_hour=float(price), currency=currency, source=f"given as price_per_hour, {date.today().isoformat()}")


def _full(workload: Workload, mode: str, pretrained: str, data: Any, files: dict[str, bytes]) -> dict[str, str]:
    """Return what a full run needs beside the workload, and put its data among the files."""
    if mode != "full":
        if pretrained or data is not None:
            raise SpecError("model= and data= are for mode='full'", fix="leave them out: a window takes random ones")
        return {}
    if workload.task != "spans":
        fix = "take mode='window', or a workload of SQuAD such as 'bert-large-squad'"
        raise SpecError(f"{workload.ref} has no full run", fix=fix)
    if not pretrained or not isinstance(data, tuple | list) or len(data) != 2:
        fix = "pass model='google-bert/bert-large-uncased' and data=('train-v1.1.json', 'dev-v1.1.json')"
        raise SpecError("a full run needs a pretrained model and two files of SQuAD", fix=fix)
    keys = []
    for path in data:
        try:
            content = Path(path).read_bytes()
        except (OSError, TypeError) as error:
            raise DataError(
                f"{path} cannot be read: {error}", fix="give the paths of train-v1.1.json and dev-v1.1.json"
            ) from None
        keys.append(content_key("data", content, ".json"))
        files[keys[-1]] = content
    return {"train": keys[0], "dev": keys[1]}


def _absolute(pretrained: str) -> str:
    folder = Path(pretrained).expanduser()
    return str(folder.absolute()) if pretrained and folder.is_dir() else pretrained


def _resources(on: str, device: str, given: Resources | None) -> Resources:
    """Return all cores of this machine, or what a driver gives by default; with a GPU where one is wanted and can be had."""
    if device not in ("auto", "cpu", "gpu"):
        raise SpecError(f"device={device!r}", fix="take 'auto', 'cpu' or 'gpu'")
    if given is not None:
        if device != "auto":
            raise SpecError("device= and resources= both say where", fix="leave device= out")
        return given
    driver = registry.train_driver(on)
    cpus = float(os.cpu_count() or 1) if driver.capabilities.here else 1.0
    gpus = int(device == "gpu")
    if device == "auto" and driver.capabilities.here:
        gpus = int(any(offer.available for offer in driver.offers(Needs(cpus=cpus, gpus=1))))
    return Resources.of(cpus=cpus, gpus=gpus)
