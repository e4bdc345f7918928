"""Workers that hang: they are not dead, and they do not step.

The worker of rank 0 writes a heartbeat into its status (`Heartbeat`): that it lives, and how many steps it has done. The
supervisor watches it change (`HangWatch`). A process that stands still altogether, as after SIGSTOP, writes nothing; one that
waits for ever in a collective or for data writes the same number of steps again and again.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cloudai.display import duration
from cloudai.specs.training import TrainSpec
from cloudai.training.limits import Pulse

__all__ = ["HangWatch", "Heartbeat", "patience"]

log = logging.getLogger(__name__)

_AT_LEAST = 300.0
"""Seconds without a step that are no hang: validation, a slow store, a machine that is busy with something else."""
_TIMES_SLOWEST = 20.0
"""A step that takes so many times the slowest pause of the same run is none: epochs and validation are among those pauses."""
_BEGIN = 1800.0
"""Seconds for what is no step: reading the data, fetching weights, compiling, saving the model. As long do collectives of
torch.distributed wait by default (``init_process_group``, ``timeout`` of all backends but NCCL)."""
_BEATS = 10
"""Heartbeats come so often in the time after which silence is a hang."""
_LONGEST_LOOK = 60.0
"""Seconds that count at most between two looks: a supervisor that slept, or could not read, has not seen silence."""
_DUMP_AT = 0.8
"""At this share of the silence the worker writes its stacks into its log, before it is ended."""


def patience(asked: float | None, slowest: float) -> float:
    """Return after how many seconds without a step a worker hangs; `asked` is the user's word, `slowest` its longest pause.

    Examples
    --------
    >>> patience(None, 0.2), patience(None, 60.0), patience(30.0, 60.0)
    (300.0, 1200.0, 30.0)
    """
    return asked if asked is not None else max(_AT_LEAST, _TIMES_SLOWEST * slowest)


class Heartbeat:
    """Writes now and then that the worker lives, and how it steps; in a thread of its own.

    Parameters
    ----------
    pulse : Pulse
        How the worker steps, by `time.monotonic`.
    write : callable
        Takes the heartbeat to where the supervisor reads it.
    asked : float or None
        After how many seconds without a step the run counts as hanging; None for a choice by its own pace.
    """

    def __init__(self, pulse: Pulse, write: Callable[[Mapping[str, Any]], None], asked: float | None) -> None:
        self._pulse, self._write, self._asked = pulse, write, asked
        self._every = (_AT_LEAST if asked is None else asked) / _BEATS
        self._stepping = True
        self._dumped = -1
        self._alive = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cloudai-heartbeat", daemon=True)
        self._thread.start()

    def rest(self) -> None:
        """Say that no more steps are to come: what is left may take its time."""
        self._stepping = False

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(1.0)  # a store that does not answer must not hold up the end

    def _run(self) -> None:
        while True:  # the first at once: silence is noticed only of a worker that has said something
            self._alive += 1
            pulse = self._pulse
            beat = {"alive": self._alive, "steps": pulse.beats, "slowest": pulse.slowest, "stepping": self._stepping}
            self._write(beat)
            silence = time.monotonic() - pulse.last
            limit = patience(self._asked, pulse.slowest)
            if self._stepping and pulse.beats and silence > _DUMP_AT * limit and self._dumped != pulse.beats:
                self._dumped = pulse.beats
                log.warning("no step for %s; this is what all threads do:", duration(silence))
                faulthandler.dump_traceback(sys.stderr)
            if self._stop.wait(self._every):
                return


@dataclass
class HangWatch:
    """What the supervisor has seen of one attempt's heartbeats.

    Parameters
    ----------
    spec : TrainSpec
        The run's.
    """

    spec: TrainSpec
    _looked: float | None = None
    _seen: tuple[Any, ...] = ()
    _steps: tuple[Any, ...] = ()
    _silent: float = 0.0
    _still: float = 0.0

    @property
    def every(self) -> float:
        """Seconds between two looks that are worth a request to the store."""
        return patience(self.spec.failure.hang, 0.0) / (2 * _BEATS)

    def due(self, now: float) -> bool:
        """Whether it is time for a look."""
        return self._looked is None or now - self._looked >= self.every

    def look(self, status: Mapping[str, Any] | None, now: float) -> str:
        """Return why the worker counts as hanging; empty where it does not.

        Parameters
        ----------
        status : Mapping or None
            What the worker of this attempt says; None where it has said nothing.
        now : float
            Unix time.
        """
        passed = 0.0 if self._looked is None else min(max(0.0, now - self._looked), _LONGEST_LOOK)
        self._looked = now
        if status is not None and "beat" not in status:
            return ""  # of one that writes no heartbeats
        beat = (status or {}).get("beat", {})
        seen, steps = (beat.get("alive"),), (beat.get("steps"), beat.get("stepping"))
        self._silent = 0.0 if seen != self._seen else self._silent + passed
        self._still = 0.0 if steps != self._steps else self._still + passed
        self._seen, self._steps = seen, steps
        return self._judge(beat)

    def _judge(self, beat: Mapping[str, Any]) -> str:
        if not beat:
            return f"the worker has not begun after {duration(self._silent)}" if self._silent >= _BEGIN else ""
        limit = patience(self.spec.failure.hang, float(beat.get("slowest", 0.0)))
        if self._silent >= limit:
            return f"the worker hangs: it has written nothing for {duration(self._silent)}"
        own_loop = self.spec.work.kind == "function" and (self.spec.failure.hang is None or not beat.get("steps"))
        if own_loop:
            return ""  # only the user knows how long it may compute without a report
        stepping = beat.get("steps") and beat.get("stepping")
        if self._still >= (limit if stepping else max(_BEGIN, limit)):
            return f"the worker hangs: no step for {duration(self._still)}"
        return ""
