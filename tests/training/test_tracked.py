"""What a tracker is told of a run, read back from its folder, and the note of what it has not got."""

from __future__ import annotations

import math

import pytest

from cloudai.specs.training import TrainSpec
from cloudai.tracking import Row
from cloudai.training import tracked
from cloudai.training.job import RunFiles
from cloudai.training.journal import Journal
from cloudai.training.tracked import RunSource


@pytest.fixture
def spec(home, tmp_path):
    fields = {"name": "digits-1", "model_name": "digits", "work": {"kind": "function"}, "lease": None}
    return TrainSpec.of(**fields, store=str(tmp_path / "store"), tracking="http://127.0.0.1:1")


def report(spec, attempt, *reported):
    journal = Journal(RunFiles(spec).folder, attempt, {})
    for step, metrics in reported:
        journal.add(step, metrics)
    journal.close()


def told(rows):
    return [(row.step, dict(row.metrics)) for row in rows]


def test_what_a_later_attempt_did_again_alike_is_told_once_and_what_differs_is_told(spec):
    report(spec, 1, (0, {"loss": 3.0}), (1, {"loss": 2.0, "odd": math.nan}), (2, {"loss": 1.0}))
    report(spec, 2, (1, {"loss": 2.0, "odd": math.nan}), (2, {"loss": 1.5, "val": 1.0}), (3, {"loss": 0.5}))
    rows = told(RunSource(spec).rows())
    assert rows[0] == (0, {"loss": 3.0})
    assert rows[2:] == [(2, {"loss": 1.0}), (2, {"loss": 1.5, "val": 1.0}), (3, {"loss": 0.5})]


def test_a_live_attempt_and_a_later_reader_tell_the_same(spec):
    report(spec, 1, (0, {"loss": 3.0}), (1, {"loss": 2.0}))
    source = RunSource(spec, attempt=2)
    before = told(source.rows())
    live = told(source.fresh([Row(1, {"loss": 2.0}, 0.0), Row(2, {"loss": 1.0}, 0.0), Row(2, {"loss": 1.0}, 1.0)]))
    report(spec, 2, (1, {"loss": 2.0}), (2, {"loss": 1.0}), (2, {"loss": 1.0}))
    assert before + live == told(RunSource(spec).rows())


def test_a_run_keeps_its_identity_and_another_of_the_same_name_has_its_own(spec, tmp_path):
    first, again = tracked.first_note(RunFiles(spec).folder), tracked.first_note(RunFiles(spec).folder)
    assert first == again
    other = spec.model_copy(update={"store": str(tmp_path / "other")})
    assert tracked.first_note(RunFiles(other).folder).identity != first.identity


def test_a_run_is_behind_unless_its_last_attempt_says_that_everything_is_there(spec, home):
    folder = RunFiles(spec).folder

    def behind():
        tracked.unmark_behind(home, spec.name)
        tracked.mark_behind(home, spec)
        return tracked.behind(home) == [spec.name]

    assert not behind()  # no worker ever started
    report(spec, 1, (0, {"loss": 1.0}))
    assert behind()
    note = tracked.first_note(folder)
    tracked.write_note(folder, tracked.Note(note.identity, note.started, attempt=1, complete=True))
    assert not behind()
    report(spec, 2, (1, {"loss": 1.0}))
    assert behind()
    folder.write("tracking.json", b"{damaged")
    assert behind()
