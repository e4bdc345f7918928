"""Handles: a live one keeps its lease, however short, and says that this process holds it."""

from __future__ import annotations

import time

from cloudai.state import handles
from cloudai.state.handles import Handle
from tests.conftest import wait_until


class Thing(Handle):
    lease_seconds = 1.8

    def _read(self, record):
        pass

    def card(self):
        raise NotImplementedError


def test_a_live_handle_keeps_a_lease_that_is_shorter_than_its_usual_pace(ledger, monkeypatch):
    monkeypatch.setattr(handles, "ensure_supervisor", lambda home: None)
    thing = Thing(ledger, ledger.create("run", "one", {}, {}))
    wait_until(lambda: ledger.lease_left("run", "one") is not None, what="the first renewal")
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert ledger.lease_left("run", "one") > 0
        time.sleep(0.05)
    assert [str(holder) for holder in ledger.holders("run", "one")] == ["this process"]
    ledger.observe("run", "one", "cancelled", {})
    wait_until(lambda: thing.ended, what="the end")


def test_a_handle_of_what_lives_on_another_machine_starts_no_supervisor_here(ledger, monkeypatch):
    started = []
    monkeypatch.setattr(handles, "ensure_supervisor", started.append)
    theirs = Thing(ledger, ledger.create("run", "theirs", {}, {}, home="another-home"))
    theirs._want(cancel=True)
    assert not started
    anywhere = Thing(ledger, ledger.create("run", "anywhere", {}, {}, home="another-home", anywhere=True))
    anywhere._want(cancel=True)
    assert started == [ledger.home]
