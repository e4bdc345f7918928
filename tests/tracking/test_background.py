"""The thread that feeds a tracker: whatever the tracker does, the caller goes on, and the tracker has everything in the end."""

from __future__ import annotations

import threading
import time

import pytest

from cloudai.tracking import Row, TrackedRun, background
from cloudai.tracking.background import BackgroundTracker
from tests.conftest import wait_until

RUN = TrackedRun("a" * 32, "run", "experiment")


def rows(first, end):
    return [Row(step, {"loss": 1.0}, float(step)) for step in range(first, end)]


class Kept:
    """A tracker in memory that can be down; what it has survives the object, as a server's record would."""

    def __init__(self):
        self.rows, self.model, self.ended, self.starts = {}, None, None, 0
        self.down: BaseException | None = None

    def _answer(self):
        if self.down is not None:
            raise self.down

    def start(self, run):
        self._answer()
        self.starts += 1

    def log(self, sent):
        self._answer()
        self.rows |= {row.step: row for row in sent}

    def register(self, model):
        self._answer()
        self.model = model

    def end(self, succeeded, at):
        self._answer()
        self.ended = (succeeded, at)


class Journal:
    """A source in memory: what has been reported, as the store has it."""

    def __init__(self, tracker):
        self.tracker, self.written = tracker, []

    def begin(self):
        return self.tracker, RUN

    def rows(self):
        return list(self.written)

    def fresh(self, reported):
        return reported

    def report(self, feeder, reported):
        self.written += reported
        feeder.add(reported)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(background, "_INTERVAL", 0.01)
    monkeypatch.setattr(background, "_LONGEST_PAUSE", 0.05)


@pytest.fixture
def tracker():
    return Kept()


@pytest.fixture
def journal(tracker):
    return Journal(tracker)


def test_what_was_missed_while_it_was_down_is_sent_later(tracker, journal):
    said = []
    feeder = BackgroundTracker(journal, said.append)
    journal.report(feeder, rows(0, 10))
    wait_until(lambda: len(tracker.rows) == 10)
    tracker.down = ConnectionError("nobody\nanswers")
    journal.report(feeder, rows(10, 20))
    wait_until(lambda: feeder.problem)
    tracker.down = None
    wait_until(lambda: not feeder.problem)
    journal.report(feeder, rows(20, 30))
    feeder.close(True, 5.0)
    assert feeder.wait(5)
    assert sorted(tracker.rows) == list(range(30))
    assert tracker.ended == (True, 5.0)
    assert said == ["ConnectionError: nobody answers", ""]


@pytest.mark.parametrize("error", [RuntimeError("x"), SystemExit(3), MemoryError(), RecursionError(), AssertionError()])
def test_whatever_it_raises_is_said_and_stops_nothing(tracker, journal, error):
    tracker.down = error
    feeder = BackgroundTracker(journal)
    journal.report(feeder, rows(0, 1))
    feeder.close(True, 0.0)
    assert not feeder.wait(5)
    assert feeder.problem.startswith(type(error).__name__)


def test_one_that_hangs_holds_up_nobody(tracker, journal):
    hang = threading.Event()
    tracker.log = lambda sent: hang.wait(20)
    feeder = BackgroundTracker(journal)
    journal.report(feeder, rows(0, 1))
    began = time.monotonic()
    feeder.close(True, 0.0)
    assert not feeder.wait(0.2)
    assert time.monotonic() - began < 2
    assert feeder.problem == "it did not answer in time"
    hang.set()


def test_patience_is_for_the_next_answer_not_for_all_of_them(tracker, journal):
    log = tracker.log
    tracker.log = lambda sent: (time.sleep(0.3), log(sent))
    journal.written = rows(0, 4500)
    feeder = BackgroundTracker(journal)
    feeder.close(True, 0.0)
    assert feeder.wait(60, patience=1.0)  # five answers of 0.3 s each
    assert len(tracker.rows) == 4500


def test_what_waits_in_memory_is_bounded_and_read_again_from_the_source(tracker, journal, monkeypatch):
    monkeypatch.setattr(background, "_MOST", 100)
    hang, log = threading.Event(), tracker.log
    feeder = BackgroundTracker(journal)
    journal.report(feeder, rows(0, 1))
    wait_until(lambda: tracker.rows)
    tracker.log = lambda sent: (hang.wait(20), log(sent))
    for step in range(1, 500):
        journal.report(feeder, rows(step, step + 1))
        assert len(feeder._rows) <= 100
    hang.set()
    feeder.close(True, 0.0)
    assert feeder.wait(5)
    assert sorted(tracker.rows) == list(range(500))


def test_rows_that_are_reported_while_it_starts_are_not_missed(tracker, journal):
    start = tracker.start
    tracker.start = lambda run: (time.sleep(0.05), start(run))
    feeder = BackgroundTracker(journal)
    for step in range(100):
        journal.report(feeder, rows(step, step + 1))
        time.sleep(0.001)
    feeder.close(True, 0.0)
    assert feeder.wait(5)
    assert sorted(tracker.rows) == list(range(100))
