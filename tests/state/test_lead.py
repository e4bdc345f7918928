"""One leads: over a home by a lock on a file, over what lives elsewhere by a lock in the shared database."""

from __future__ import annotations

import os

import pytest

from cloudai.errors import LedgerError
from cloudai.state import leader
from cloudai.state.ledger import Ledger
from tests.conftest import wait_until


def test_the_lead_of_a_shared_ledger_goes_to_one_home(path, postgres):
    url = postgres.database()
    ours, theirs = Ledger(path, url=url).lead(), Ledger(path.parent / "b" / "ledger.sqlite", url=url).lead()
    assert ours.held()
    assert not theirs.held()
    assert ours.held()
    ours.release()
    assert theirs.held()
    assert not ours.held()
    theirs.release()


def test_the_server_gives_the_lead_back_when_its_holders_session_ends(path, postgres):
    url = postgres.database()
    ours, theirs = Ledger(path, url=url).lead(), Ledger(path.parent / "b" / "ledger.sqlite", url=url).lead()
    assert ours.held()
    holder = postgres.sql("SELECT pid FROM pg_locks WHERE locktype='advisory'", url)[0][0]
    postgres.sql(f"SELECT pg_terminate_backend({holder})")
    wait_until(theirs.held, what="the lead of the other")
    assert not ours.held(), "who has lost it knows so at the next look"
    theirs.release()


def test_the_lead_of_a_ledger_of_one_home_is_that_of_the_home(path):
    assert Ledger(path).lead().held()


def test_a_home_that_cannot_be_led_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be written"), leader.leading(tmp_path / "file" / "home"):
        pass


def test_the_leading_process_is_known(tmp_path):
    assert leader.supervisor_pid(tmp_path) is None
    with leader.leading(tmp_path) as leads:
        assert leads
        assert leader.supervisor_pid(tmp_path) == os.getpid()
        with leader.leading(tmp_path) as again:
            assert not again
    assert leader.supervisor_pid(tmp_path) is None


def test_homes_have_names_that_stay(path, postgres):
    url = postgres.database()
    here = Ledger(path, url=url).here
    assert Ledger(path, url=url).here == here
    assert Ledger(path.parent / "other" / "ledger.sqlite", url=url).here != here
