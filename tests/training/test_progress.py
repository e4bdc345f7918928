"""What a wait writes: where the run is when that is news, and each anomaly once."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from cloudai.training.anomalies import Anomaly
from cloudai.training.progress import ProgressLine

WAITING = Anomaly("waiting", "training waits for data 40% of the time", "prepare the rows beforehand", 0.0)


class Screen(io.StringIO):
    """A stderr that can be written over, or not."""

    def __init__(self, over):
        super().__init__()
        self._over = over

    def isatty(self):
        return self._over


def shown(step, *anomalies, phase="running", reason="", seconds=60.0):
    status = SimpleNamespace(phase=phase, step=step, total_steps=100, reason=reason)
    cost, ended = SimpleNamespace(seconds=seconds), phase == "succeeded"
    return SimpleNamespace(name="r", status=status, metrics={"loss": 0.5}, anomalies=anomalies, cost=cost, ended=ended)


@pytest.mark.parametrize("over", [True, False])
def test_an_anomaly_is_written_once_on_a_line_of_its_own(over, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen(over))
    line = ProgressLine(enabled=True)
    for step in range(5):
        line.show(shown(step, *[WAITING] * (step > 1)))
    line.close()
    assert screen.getvalue().count("r: training waits for data 40% of the time; prepare the rows beforehand\n") == 1


def test_where_lines_stay_there_are_few_and_every_phase_has_one(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen(over=False))
    line = ProgressLine(enabled=True)
    for step in range(5):
        line.show(shown(step))
    line.show(shown(5, phase="succeeded"))
    assert [text.split(",")[:2] for text in screen.getvalue().splitlines()] == [
        ["r: running", " step 0 of 100"],
        ["r: succeeded", " step 5 of 100"],
    ]


def test_waiting_is_said_once_and_why(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen(over=False))
    monkeypatch.setattr("cloudai.training.progress._EVERY", 0.0)
    line = ProgressLine(enabled=True)
    for seconds in range(5):
        line.show(shown(None, phase="starting", reason="no room", seconds=float(seconds)))
    line.show(shown(None, phase="starting", reason="Ray starts"))
    lines = screen.getvalue().splitlines()
    assert [line.startswith("r: starting, step not started") for line in lines] == [True, True]
    assert [line.partition("(")[2] for line in lines] == ["no room)", "Ray starts)"]


def test_a_line_that_is_written_over_is_never_broken(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen(over=True))
    monkeypatch.setenv("COLUMNS", "40")
    ProgressLine(enabled=True).show(shown(None, phase="recovering", reason="no place is free now " * 9))
    assert len(screen.getvalue().removeprefix("\r\033[K")) == 39


def test_nothing_is_written_where_it_is_not_wanted(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen(over=True))
    line = ProgressLine(enabled=False)
    line.show(shown(1, WAITING))
    line.close()
    assert screen.getvalue() == ""
