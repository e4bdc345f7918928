"""Logs of attempts on machines that go away."""

from __future__ import annotations

import pytest

from cloudai.artifacts.store import Store
from cloudai.drivers.protocols import Capabilities, LogLine
from cloudai.errors import DriverError, NotFoundError
from cloudai.training.logs import LogCopies, lines_of


class Place:
    """A driver's side of logs: what its one job has written, and after how many lines it fails to answer."""

    def __init__(self, *wrote, here=False):
        self.capabilities = Capabilities(train=True, here=here)
        self.wrote, self.asked = list(wrote), 0
        self.fails_after, self.error = None, SILENT

    def logs(self, job_id, *, follow=False):
        self.asked += 1
        for number, text in enumerate(self.wrote):
            if number == self.fails_after:
                raise self.error
            yield LogLine(text)
        if self.fails_after is not None:
            raise self.error


SILENT = DriverError("it does not answer", fix="look")
RUNS = {"number": 1, "job": "net.1"}
ENDED = RUNS | {"ended": 10.0}


@pytest.fixture
def folder(tmp_path):
    return Store(str(tmp_path))


def read(place, attempt, folder, *, follow=False):
    return list(lines_of(place, attempt, folder, follow=follow))


@pytest.mark.parametrize("error", [SILENT, NotFoundError("no such job", fix="look")])
def test_the_log_stays_when_the_place_goes(folder, error):
    place = Place("one", "two\x0cand a half", "")
    LogCopies().keep(place, ENDED, folder, 10.0)
    place.fails_after, place.error = 0, error
    assert read(place, ENDED, folder) == ["one", "two\x0cand a half", ""]


def test_it_is_copied_now_and_then_while_the_attempt_runs(folder):
    place, copies = Place("one"), LogCopies()
    for now in range(0, 200, 10):
        copies.keep(place, RUNS, folder, float(now))
    assert place.asked == 3
    place.fails_after = 0
    assert read(place, RUNS, folder) == ["one"]


def test_a_machine_that_is_gone_takes_nothing_from_the_copy(folder):
    place, copies = Place("one"), LogCopies()
    copies.keep(place, RUNS, folder, 0.0)
    copies.keep(place, RUNS, folder, 60.0)
    place.wrote = []
    copies.keep(place, ENDED, folder, 61.0)
    assert read(place, ENDED, folder) == ["one"]


def test_as_long_as_the_place_has_the_log_it_is_read_there(folder):
    place, copies = Place("one"), LogCopies()
    copies.keep(place, RUNS, folder, 0.0)
    copies.keep(place, RUNS, folder, 60.0)
    place.wrote.append("two")
    place.fails_after = 0
    copies.keep(place, ENDED, folder, 61.0)
    place.fails_after = None
    assert read(place, RUNS, folder) == read(place, ENDED, folder) == ["one", "two"]


def test_who_follows_is_told_that_the_place_is_silent(folder):
    place, copies = Place("one"), LogCopies()
    copies.keep(place, RUNS, folder, 0.0)
    copies.keep(place, RUNS, folder, 60.0)
    place.fails_after = 0
    with pytest.raises(DriverError):
        read(place, RUNS, folder, follow=True)


def test_no_line_comes_twice_where_the_place_falls_silent_in_the_middle(folder):
    place = Place("one", "two")
    LogCopies().keep(place, ENDED, folder, 10.0)
    place.fails_after = 1
    lines = lines_of(place, ENDED, folder, follow=False)
    assert next(lines) == "one"
    with pytest.raises(DriverError):
        next(lines)


def test_no_secret_is_copied(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "a-very-secret-value")
    key = ["-----BEGIN RSA PRIVATE KEY-----", "MIIEowIBAAKCAQEA", "-----END RSA PRIVATE KEY-----"]
    LogCopies().keep(Place("token: a-very-secret-value", *key, "after"), ENDED, folder, 10.0)
    written = (tmp_path / "logs/0001.txt").read_text()
    assert "a-very-secret-value" not in written
    assert "MIIEowIBAAKCAQEA" not in written
    assert written.endswith("after\n")


def test_only_the_end_of_an_endless_log_is_kept(folder, monkeypatch):
    monkeypatch.setattr("cloudai.training.logs._MOST", 20)
    place = Place(*(f"line {number}" for number in range(100)))
    LogCopies().keep(place, ENDED, folder, 10.0)
    place.fails_after = 0
    assert read(place, ENDED, folder) == ["(the lines before are left out)", "line 98", "line 99"]


def test_characters_that_cannot_be_written_hold_up_nothing(folder):
    place = Place("a \udcff b")
    LogCopies().keep(place, ENDED, folder, 10.0)
    place.fails_after = 0
    assert read(place, ENDED, folder) == ["a ? b"]


def test_a_place_on_this_machine_keeps_its_logs_itself(folder, tmp_path):
    place = Place("one", here=True)
    LogCopies().keep(place, ENDED, folder, 10.0)
    assert not (tmp_path / "logs").exists()
    assert read(place, ENDED, folder) == ["one"]


def test_without_a_copy_the_place_says_why_there_is_none(folder):
    place = Place("one")
    place.fails_after = 0
    LogCopies().keep(place, ENDED, folder, 10.0)
    with pytest.raises(DriverError, match="does not answer"):
        read(place, ENDED, folder)
