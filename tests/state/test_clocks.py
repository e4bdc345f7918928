"""A clock that was set back: nothing new is written by it, and nothing shows a time that cannot be."""

from __future__ import annotations

import time

import pytest

import cloudai
from cloudai.errors import LedgerError
from cloudai.planning.spending import Span, spending
from cloudai.state import lease
from cloudai.state.handles import Handle
from cloudai.state.ledger import Ledger, use_ledger


class Set:
    """A clock that somebody sets."""

    def __init__(self, at=2_000_000_000.0):
        self.at = at

    def now(self):
        return self.at

    def pause(self, seconds):
        self.at += seconds


@pytest.fixture
def clock():
    return Set()


@pytest.fixture
def ledger(path, url, clock):
    return Ledger(path, clock, url=url)


def test_nothing_new_is_made_while_the_ledger_lies_in_the_future(ledger, clock):
    ledger.create("run", "before", {}, {})
    clock.at -= 3600
    for make in (ledger.create, ledger.replace):
        with pytest.raises(LedgerError) as caught:
            make("run", "after", {}, {})
        assert str(caught.value) == (
            "this machine's clock says 2033-05-18 02:33 UTC, the ledger was last written at 2033-05-18 03:33 UTC\n"
            "Fix: set the clock; where it is right, run: cloudai doctor --trust-clock"
        )
    assert [record.name for record in ledger.records()] == ["before"]
    ledger.want("run", "before", {"cancel": True})  # what is there can still be ended


def test_a_few_minutes_are_no_reason(ledger, clock):
    ledger.create("run", "before", {}, {})
    clock.at -= 290
    ledger.create("run", "after", {}, {})


def test_a_clock_that_is_trusted_brings_everything_back(ledger, clock):
    ledger.create("run", "long", {"lease": 600.0}, {})
    ledger.create("run", "ever", {"lease": None}, {})
    status = {"attempts": [{"started": clock.at + 5, "ended": None, "pid": 12}], "price": {"per_hour": 1.0}}
    ledger.observe("run", "long", "running", status)
    ledger.renew_lease("run", "long", 600)
    ledger.add_model("m", "1.0.0", "u", "d", "long")
    version = ledger.get("run", "long").version
    clock.at -= 24 * 3600
    assert ledger.trust_clock() == 2
    record = ledger.get("run", "long")
    assert (record.created, record.updated, record.version) == (clock.at, clock.at, version + 1)
    assert record.status == {"attempts": [{"started": clock.at, "ended": None, "pid": 12}], "price": {"per_hour": 1.0}}
    assert [event.at for event in ledger.events("run", "long")] == [clock.at] * 2
    assert ledger.lease_left("run", "long") == 600
    assert lease.read(ledger.lease_file("run", "long")) == clock.at + 600
    ledger.create("run", "after", {}, {})
    assert ledger.trust_clock() == 0


def test_train_says_it_in_two_lines_and_works_again_after_the_clock_is_trusted(home, clock, linear, monkeypatch):
    monkeypatch.setattr("cloudai._api.ensure_supervisor", lambda home: None)
    ledger = Ledger(home / "ledger.sqlite", clock)
    use_ledger(ledger)
    first = cloudai.train(*linear, name="first")
    clock.at -= 7200
    assert first.age == "just now"
    assert first.cost.seconds == 0
    assert "run/first" in str(cloudai.ps())
    assert "-" not in str(cloudai.ps()).split("since")[0]
    with pytest.raises(LedgerError, match="the ledger was last written at"):
        cloudai.train(*linear, name="second")
    ledger.trust_clock()
    assert cloudai.train(*linear, name="second").phase == "queued"


def test_a_reading_is_newer_by_its_version_whatever_the_clock_says(ledger, clock):
    class Thing(Handle):
        def _read(self, record):
            pass

        def card(self):
            raise NotImplementedError

    thing = Thing(ledger, ledger.create("run", "one", {}, {}))
    clock.at -= 250
    ledger.observe("run", "one", "running", {})
    thing.refresh()
    assert thing.phase == "running"
    ledger.observe("run", "one", "failed", {})
    thing.refresh()
    assert thing.phase == "failed"


def test_a_handle_of_an_ended_object_sees_the_one_in_its_place(ledger, clock):
    ledger.create("deployment", "one", {}, {})
    for phase in ("starting", "ready", "deleted"):
        ledger.observe("deployment", "one", phase, {})
    before = ledger.get("deployment", "one").version
    assert ledger.replace("deployment", "one", {}, {}).version == before + 1
    assert ledger.get("deployment", "one").version == before + 1


def test_nothing_costs_less_than_nothing():
    price = {"per_hour": 3.0, "currency": "USD", "source": "here"}
    assert spending([Span(100.0, None, price), Span(100.0, 50.0, price)], now=10.0).amount == 0
    assert spending([Span(10.0, None, price), Span(100.0, 50.0, price)], now=3610.0).amount == 3.0


def test_the_clock_of_a_shared_ledgers_server_counts(postgres, path, monkeypatch):
    ledger = Ledger(path, url=postgres.database())
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 900)
    with pytest.raises(LedgerError, match="15 min ahead of that of the ledger's server"):
        ledger.create("run", "one", {}, {})
    assert ledger.records() == []
