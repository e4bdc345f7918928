"""Logs of attempts on machines that go away."""

from __future__ import annotations

import pytest

from cloudai.artifacts.store import Store
from cloudai.drivers.protocols import Capabilities, LogLine
from cloudai.errors import DriverError, NotFoundError
from cloudai.training.logs import LogCopies, lines_of


class Place:
    """A driver's side of logs: what its one job has written, until it is gone."""

    def __init__(self, *, here=False):
        self.capabilities = Capabilities(train=True, here=here)
        self.wrote, self.asked, self.gone = [], 0, None

    def logs(self, job_id, *, follow=False):
        self.asked += 1
        if self.gone:
            raise self.gone
        return map(LogLine, list(self.wrote))


RUNS = {"number": 1, "job": "net.1"}
ENDED = RUNS | {"ended": 10.0}


@pytest.fixture
def folder(tmp_path):
    return Store(str(tmp_path))


def read(place, attempt, folder):
    return list(lines_of(place, attempt, folder, follow=False))


@pytest.mark.parametrize("gone", [DriverError("it does not answer", fix="look"), NotFoundError("no such job", fix="look")])
def test_the_log_stays_when_the_place_goes(folder, gone):
    place = Place()
    place.wrote = ["one", "two"]
    LogCopies().keep(place, ENDED, folder, 10.0)
    place.gone = gone
    assert read(place, ENDED, folder) == ["one", "two"]


def test_it_is_copied_now_and_then_while_the_attempt_runs(folder):
    place, copies = Place(), LogCopies()
    place.wrote = ["one"]
    for now in range(0, 200, 10):
        copies.keep(place, RUNS, folder, float(now))
    assert place.asked == 3
    place.gone = DriverError("it does not answer", fix="look")
    assert read(place, RUNS, folder) == ["one"]


def test_a_machine_that_is_gone_takes_nothing_from_the_copy(folder):
    place, copies = Place(), LogCopies()
    place.wrote = ["one"]
    copies.keep(place, RUNS, folder, 0.0)
    copies.keep(place, RUNS, folder, 60.0)
    place.wrote = []
    copies.keep(place, ENDED, folder, 61.0)
    assert read(place, ENDED, folder) == ["one"]


def test_a_running_attempt_is_read_where_it_runs(folder):
    place, copies = Place(), LogCopies()
    place.wrote = ["one"]
    copies.keep(place, RUNS, folder, 0.0)
    copies.keep(place, RUNS, folder, 60.0)
    place.wrote.append("two")
    assert read(place, RUNS, folder) == ["one", "two"]


def test_no_secret_is_copied(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "a-very-secret-value")
    place = Place()
    place.wrote = ["token: a-very-secret-value"]
    LogCopies().keep(place, ENDED, folder, 10.0)
    assert "a-very-secret-value" not in (tmp_path / "logs/0001.txt").read_text()


def test_only_the_end_of_an_endless_log_is_kept(folder, monkeypatch):
    monkeypatch.setattr("cloudai.training.logs._MOST", 8)
    place = Place()
    place.wrote = [f"line {number}" for number in range(100)]
    LogCopies().keep(place, ENDED, folder, 10.0)
    assert read(place, ENDED, folder) == ["line 99"]


def test_a_place_on_this_machine_keeps_its_logs_itself(folder, tmp_path):
    place = Place(here=True)
    place.wrote = ["one"]
    LogCopies().keep(place, ENDED, folder, 10.0)
    assert not (tmp_path / "logs").exists()
    assert read(place, ENDED, folder) == ["one"]


def test_without_a_copy_the_place_says_why_there_is_none(folder):
    place = Place()
    place.gone = DriverError("it does not answer", fix="look")
    LogCopies().keep(place, ENDED, folder, 10.0)
    with pytest.raises(DriverError, match="does not answer"):
        read(place, ENDED, folder)
