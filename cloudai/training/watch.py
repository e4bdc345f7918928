"""Looks after a run from inside its first worker: how it fares, what is wrong, and whether a profile is asked for.

A thread of its own looks every few seconds. The loop pays for the meter alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import torch

from cloudai.artifacts.store import Store
from cloudai.tracking import Row
from cloudai.training import anomalies, flops, hardware
from cloudai.training.anomalies import Anomaly
from cloudai.training.journal import Journal, JournalReader
from cloudai.training.meter import NO_FLOPS, Meter
from cloudai.training.performance import Performance
from cloudai.training.profiling import Profiler

__all__ = ["Watch"]

log = logging.getLogger(__name__)

_EVERY = 2.0  # seconds
_EVERY_REMOTE = 10.0  # where a look for requests is one that costs money
_LOOKS = 60
_ROWS = 2000
"""So many rows of metrics are kept in memory; beyond, every second one goes."""


class Watch:
    """Looks every few seconds, and writes what it sees into the journal.

    Parameters
    ----------
    meter : Meter
        What the loop counts with.
    journal : Journal
        Where it is written.
    folder : Store
        The run's folder, for requests and profiles.
    resumed : bool
        Whether the run comes back from a checkpoint, so that there are metrics of earlier attempts.
    """

    def __init__(self, meter: Meter, journal: Journal, folder: Store, *, resumed: bool = False) -> None:
        self._meter, self._journal = meter, journal
        self._rows: list[Row] = list(JournalReader(folder).rows()) if resumed else []
        self._looks: deque[Performance] = deque(maxlen=_LOOKS)
        self._since: dict[str, float] = {}
        self._said: set[str] = set()
        self._peak, self._peak_of = 0.0, ""
        self._profiler = Profiler(folder, meter)
        self._stop = threading.Event()
        self._every = _EVERY if folder.is_local else _EVERY_REMOTE
        self._thread = threading.Thread(target=self._run, name="cloudai-watch", daemon=True)
        self._thread.start()

    def works(self, module: torch.nn.Module, inputs: Sequence[torch.Tensor], dtype: str = "float32") -> None:
        """Work out what a step's arithmetic is, and what the device could do; once, before the first step.

        It takes some milliseconds, and on a processor some 20 more, for its rate is measured.

        Parameters
        ----------
        module : Module
            What is trained, not wrapped.
        inputs : sequence of Tensor
            A batch, as the module is called with it.
        dtype : str
            In which it multiplies: float32, bfloat16 or float16.
        """
        self._meter.flops = flops.of_module(module, inputs)
        if self._meter.flops == NO_FLOPS:
            return
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            tf32 = torch.backends.cuda.matmul.allow_tf32
            self._peak = hardware.peak_of(name, dtype, tf32=tf32)
            self._peak_of = f"the {'tf32' if tf32 and dtype == 'float32' else dtype} peak of {name}"
        elif device.type == "cpu":
            self._peak = hardware.matmul_rate(getattr(torch, dtype))
            self._peak_of = f"what multiplying {dtype} matrices reached here"

    def reported(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of a row of metrics."""
        self._rows.append(Row(step, dict(metrics), time.time()))
        if len(self._rows) > _ROWS:
            self._rows = self._rows[::2]

    def look(self) -> None:
        """Look now."""
        self._looks.append(self._seen())
        wrong = [self._noted(anomaly) for anomaly in anomalies.found(list(self._looks), list(self._rows))]
        self._since = {anomaly.kind: anomaly.since for anomaly in wrong}
        self._journal.update(performance=self._looks[-1].to_json(), anomalies=[anomaly.to_json() for anomaly in wrong])

    def close(self) -> None:
        """Look for the last time; called in the loop's thread, before the journal is closed."""
        self._stop.set()
        self._thread.join()
        self._safely(self._profiler.close)
        self._safely(self.look)

    def _seen(self) -> Performance:
        figures, use = self._meter.figures(), hardware.use()
        return Performance(at=time.time(), peak=self._peak, peak_of=self._peak_of, **asdict(figures), **asdict(use))

    def _noted(self, anomaly: Anomaly) -> Anomaly:
        """Say an anomaly in the log, the first time that there is one of its kind; while it lasts, it began when it began."""
        if anomaly.kind not in self._said:
            self._said.add(anomaly.kind)
            log.warning("%s; %s", anomaly.what, anomaly.fix)
        return replace(anomaly, since=self._since.get(anomaly.kind, anomaly.since))

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self._safely(self.look)
            self._safely(self._profiler.look)

    def _safely(self, act: Callable[[], None]) -> None:
        """Do what a run must not end for."""
        try:
            act()
        except Exception:
            log.exception("how the run fares cannot be told now")
