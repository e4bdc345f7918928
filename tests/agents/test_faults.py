"""What the supervisor says about faults, and how long it waits."""

from __future__ import annotations

import logging

from cloudai.agents.faults import Faults
from cloudai.errors import LedgerError

GONE = LedgerError("the ledger is gone", fix="put it back")


def test_it_waits_longer_and_longer_and_says_the_same_once_a_minute(caplog):
    now = [0.0]
    faults = Faults(logging.getLogger("t"), give_up=1000, running=lambda: now[0])
    pauses = []
    for _ in range(40):
        faults.note(GONE)
        pauses.append(faults.pause)
        now[0] += faults.pause
    assert pauses[:6] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert set(pauses[6:]) == {5.0}
    assert len(caplog.records) == 3, f"in {now[0]} s"
    assert caplog.records[0].getMessage() == "the ledger is gone; trying again (fix: put it back)"
    faults.note(LedgerError("the ledger is busy", fix="wait"))
    assert "busy" in caplog.records[-1].getMessage(), "what is new is said at once"


def test_it_says_how_long_it_took_and_starts_afresh(caplog):
    now = [0.0]
    caplog.set_level(logging.INFO)
    faults = Faults(logging.getLogger("t"), give_up=1000, running=lambda: now[0])
    faults.note(GONE)
    now[0] = 12.5
    faults.over()
    faults.over()
    assert [record.getMessage() for record in caplog.records[1:]] == ["the ledger answers again, after 12.5 s"]
    assert faults.pause == 0


def test_it_gives_up_after_so_long(caplog):
    now = [0.0]
    faults = Faults(logging.getLogger("t"), give_up=100, running=lambda: now[0])
    assert not faults.hopeless
    faults.note(GONE)
    now[0] = 99
    assert not faults.hopeless
    now[0] = 101
    assert faults.hopeless


def test_an_unexpected_error_shows_its_frames_once(caplog):
    faults = Faults(logging.getLogger("t"), give_up=100, running=lambda: 0.0)
    for _ in range(5):
        try:
            raise ZeroDivisionError("by nothing")
        except ZeroDivisionError as error:
            faults.unexpected("run/one could not be taken further", error)
    assert len(caplog.records) == 1
    assert "test_an_unexpected_error" in caplog.text
