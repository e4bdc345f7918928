"""A profile on demand: a handle asks for it, the live worker makes it, and what it took lies in the run's folder.

The request is one small file, ``profile.json``. The worker looks for it every few seconds, records the next steps with
`torch.profiler`, and leaves ``profiles/ID/trace.json.gz`` (a Chrome trace, for Perfetto), ``operators.txt`` and, last of all,
``result.json``. A worker that dies in between leaves no result, so the next one makes the profile.
"""

from __future__ import annotations

import logging
import re
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudai.artifacts.store import Store
from cloudai.display import Card, Shown, Table
from cloudai.errors import CloudAIError, IntegrityError, NotReadyError, SpecError
from cloudai.training.meter import Meter

if TYPE_CHECKING:
    from cloudai.training.run import Run

__all__ = ["Profiler", "Trace"]

log = logging.getLogger(__name__)

_REQUEST = "profile.json"
_MOST_STEPS = 1000
"""A trace of more steps is larger than any viewer opens."""
_TOP, _SHOWN = 25, 10  # operators in the table, and on the card
_POLL = 0.2  # seconds between two looks while waiting


class Trace(Shown):
    """A profile of some steps of a run, made by `Run.profile`.

    Parameters
    ----------
    run : Run
        The run that it is of.
    mark : str
        What names it among the profiles of the run.
    """

    def __init__(self, run: Run, mark: str) -> None:
        self._run, self._mark = run, mark
        self._folder = run.folder

    @classmethod
    def ask(cls, run: Run, steps: int) -> Trace:
        """Ask the worker of a run for a profile of its next steps.

        Raises
        ------
        SpecError
            If the number of steps is not from 1 to 1000.
        NotReadyError
            If the run has ended, or one is being made.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= _MOST_STEPS:
            raise SpecError(f"steps={steps!r}: a profile has 1 to {_MOST_STEPS} steps", fix="twenty show what repeats")
        run.refresh()
        if run.ended:
            raise NotReadyError(f"the run {run.name!r} is {run.phase}: it takes no steps", fix="profile the next one")
        asked = _asked(run.folder)
        if asked is not None and not run.folder.exists(f"profiles/{asked[0]}/result.json"):
            raise NotReadyError("a profile of this run is being made", fix="wait for it")
        mark = secrets.token_hex(4)
        run.folder.write_json(_REQUEST, {"id": mark, "steps": steps})
        return cls(run, mark)

    def __repr__(self) -> str:
        return f"Trace(run={self._run.name!r}, done={self.done})"

    @property
    def done(self) -> bool:
        """Whether it has been made."""
        return self._folder.exists(self._key("result.json"))

    @property
    def path(self) -> str:
        """Where the Chrome trace lies, as a path or URL; https://ui.perfetto.dev opens it.

        Raises
        ------
        NotReadyError
            If it has not been made yet.
        """
        self._check_done()
        return self._folder.uri(self._key("trace.json.gz"))

    @property
    def table(self) -> str:
        """The operators that took longest, as text.

        Raises
        ------
        NotReadyError
            If it has not been made yet.
        """
        self._check_done()
        return self._folder.read(self._key("operators.txt")).decode()

    def wait(self, timeout: float | None = None) -> Trace:
        """Wait until it has been made.

        Parameters
        ----------
        timeout : float, optional
            Seconds after which to give up waiting.

        Raises
        ------
        NotReadyError
            If the time is over first, or the run ends first.
        """
        clock = self._run.clock
        until = None if timeout is None else clock.now() + timeout
        while not self.done:
            self._run.refresh()
            if self._run.ended and not self.done:
                raise NotReadyError(f"the run is {self._run.phase}, and made no profile before", fix="profile a longer run")
            if until is not None and clock.now() > until:
                fix = "wait longer: it is made at the next steps, and a loop of your own takes one at each report"
                raise NotReadyError("the profile has not been made yet", fix=fix)
            clock.pause(_POLL)
        return self

    def card(self) -> Card:
        """Show where it is, and its first lines."""
        title = f"Profile of {self._run.name}"
        if not self.done:
            return Card(title, [("made", "not yet")])
        facts = [("trace", self.path), ("opens in", "https://ui.perfetto.dev"), ("all operators", "print(….table)")]
        rows = [(str(name), f"{ms:.3g}", str(calls)) for name, ms, calls in self._top()]
        return Card(title, facts, tables=[Table(("operator", "ms by itself", "calls"), rows)])

    def _top(self) -> list[tuple[str, float, int]]:
        """Return the operators that took longest by themselves."""
        found = (self._folder.read_json(self._key("result.json")) or {}).get("top", [])
        try:
            return [(str(name), float(ms), int(calls)) for name, ms, calls in found]
        except (TypeError, ValueError):
            raise IntegrityError(f"the profile of {self._run.name!r} is damaged", fix="ask for another one") from None

    def _key(self, name: str) -> str:
        return f"profiles/{self._mark}/{name}"

    def _check_done(self) -> None:
        if not self.done:
            raise NotReadyError("the profile has not been made yet", fix="wait() for it")


def _asked(folder: Store) -> tuple[str, int] | None:
    """Return the mark and the steps of the last request; None where there is none."""
    request = folder.read_json(_REQUEST)
    if request is None:
        return None
    mark, steps = request.get("id"), request.get("steps")
    if not isinstance(mark, str) or not re.fullmatch("[0-9a-f]{8}", mark) or type(steps) is not int:
        raise IntegrityError(f"{folder.uri(_REQUEST)} is damaged", fix="remove it, or ask for another profile")
    return mark, min(max(1, steps), _MOST_STEPS)


class Profiler:
    """The worker's side: sees a request, records the steps in the loop's thread, and writes in another.

    Parameters
    ----------
    folder : Store
        The run's folder.
    meter : Meter
        Whose steps are recorded.
    """

    def __init__(self, folder: Store, meter: Meter) -> None:
        self._folder, self._meter = folder, meter
        self._mark, self._left = "", 0
        self._recorder: Any = None
        self._recorded: Any = None

    def look(self) -> None:
        """See whether a profile is asked for, and write one that has been recorded; called every few seconds."""
        try:
            if self._recorded is not None:
                self._write()
            elif not self._mark:
                self._take_request()
        except (CloudAIError, OSError, RuntimeError) as error:
            log.warning("the profile cannot be made: %s", error)
            self._mark, self._recorded = "", None

    def close(self) -> None:
        """Write what has been recorded, if it is fewer steps; called in the loop's thread."""
        if self._recorder is not None:
            self._stop()
        if self._recorded is not None:
            self.look()

    def _take_request(self) -> None:
        asked = _asked(self._folder)
        if asked is None or self._folder.exists(f"profiles/{asked[0]}/result.json"):
            return
        self._mark, self._left = asked
        self._meter.after_step = self._step

    def _step(self) -> None:
        """Begin after the step at which it was asked for, and stop after as many more."""
        if self._recorder is None:
            self._start()
        else:
            self._left -= 1
            if self._left == 0:
                self._stop()
        self._meter.begin()  # what recording itself takes is no step

    def _start(self) -> None:
        from torch.profiler import profile

        self._recorder = profile(record_shapes=True, acc_events=True)  # of all that torch knows here: CPU, CUDA
        self._recorder.start()

    def _stop(self) -> None:
        self._meter.after_step = None
        recorder, self._recorder = self._recorder, None
        recorder.stop()
        self._recorded = recorder

    def _write(self) -> None:
        recorded, mark = self._recorded, self._mark
        with tempfile.TemporaryDirectory(prefix="cloudai-profile-") as name:
            path = Path(name) / "trace.json.gz"
            recorded.export_chrome_trace(str(path))
            self._folder.write(f"profiles/{mark}/trace.json.gz", path.read_bytes())
        averages = recorded.key_averages()
        on_gpu = any(event.device_time_total for event in averages)
        own = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # microseconds
        table = averages.table(sort_by=own, row_limit=_TOP)
        self._folder.write(f"profiles/{mark}/operators.txt", table.encode())
        top = sorted(averages, key=lambda event: -getattr(event, own))[:_SHOWN]
        rows = [[event.key, getattr(event, own) / 1e3, event.count] for event in top]
        self._folder.write_json(f"profiles/{mark}/result.json", {"id": mark, "top": rows})
        self._mark, self._recorded = "", None
