"""The supervisor holds on through faults of the ledger, and takes further only what is its own to take.

A run that was cancelled before it started is the shortest step there is: it is written down and nothing is started.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading

import pytest

from cloudai.agents.supervisor import _Supervisor
from cloudai.errors import LedgerError
from cloudai.specs.training import Loop, TrainSpec, Work
from cloudai.state import lease
from cloudai.state.ledger import Ledger
from tests.conftest import wait_until
from tests.disks import fill


def cancelled(ledger, name, **options):
    work = Work(kind="function")
    spec = TrainSpec.of(
        name=name, work=work, on="local", model_name=name, loop=Loop(), lease=60, store=str(ledger.home / "s"), tracking="none"
    )
    ledger.create("run", name, spec.model_dump(mode="json"), {"cancel": True}, **options)


@contextlib.contextmanager
def supervised(ledger, idle=0.3):
    """Have a supervisor at work for the length of the block, and see it end by itself."""
    thread = threading.Thread(target=_Supervisor(ledger).run, args=(idle,))
    thread.start()
    yield
    thread.join(30)
    assert not thread.is_alive(), "it ends when nothing is left to do"


def phase(ledger, name):
    with contextlib.suppress(LedgerError):
        return ledger.get("run", name).phase
    return None


def faults(caplog):
    return [record.getMessage() for record in caplog.records if "trying again" in record.getMessage()]


def test_a_server_that_is_restarted(postgres, home, caplog):
    caplog.set_level(logging.INFO)
    ledger = Ledger(home / "ledger.sqlite", url=postgres.database())
    cancelled(ledger, "one")
    postgres.stop()
    with supervised(ledger):
        wait_until(lambda: faults(caplog), what="the first complaint")
        postgres.start()
        wait_until(lambda: phase(ledger, "one") == "cancelled", what="the end of the run")
    assert 1 <= len(faults(caplog)) <= 3
    assert "answers again" in caplog.text


def test_a_disk_that_is_full(home, disk, caplog):
    ledger = Ledger(disk / "home" / "ledger.sqlite")
    cancelled(ledger, "one")
    filler = fill(disk)
    with supervised(ledger):
        wait_until(lambda: faults(caplog), what="the first complaint")
        assert "the disk is full" in faults(caplog)[0]
        filler.unlink()
        wait_until(lambda: phase(ledger, "one") == "cancelled", what="the end of the run")
    assert len(faults(caplog)) == 1, "the same is said once a minute"


def test_a_ledger_that_is_locked(home, caplog, monkeypatch):
    monkeypatch.setattr("cloudai.state.sqlite._WAIT", 0.1)
    ledger = Ledger(home / "ledger.sqlite")
    cancelled(ledger, "one")
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with supervised(ledger):
        wait_until(lambda: faults(caplog), what="the first complaint")
        other.execute("ROLLBACK")
        other.close()
        wait_until(lambda: phase(ledger, "one") == "cancelled", what="the end of the run")
    assert "was busy" in faults(caplog)[0]


def test_what_lives_on_another_homes_machine_is_left_to_it(postgres, home):
    url = postgres.database()
    ours, theirs = Ledger(home / "ledger.sqlite", url=url), Ledger(home / "theirs" / "ledger.sqlite", url=url)
    cancelled(theirs, "theirs")
    cancelled(theirs, "anywhere", anywhere=True)
    with supervised(ours, idle=1.0):
        wait_until(lambda: phase(ours, "anywhere") == "cancelled", what="the end of what lives anywhere")
    assert phase(ours, "theirs") == "queued"
    with supervised(theirs):
        wait_until(lambda: phase(ours, "theirs") == "cancelled", what="the end of theirs")


def test_the_lead_goes_to_another_home_when_its_holder_ends(postgres, home):
    url = postgres.database()
    ours, theirs = Ledger(home / "ledger.sqlite", url=url), Ledger(home / "theirs" / "ledger.sqlite", url=url)
    lead = theirs.lead()
    assert lead.held()
    cancelled(ours, "anywhere", anywhere=True)
    with supervised(ours, idle=1.0):
        threading.Event().wait(0.6)
        assert phase(ours, "anywhere") == "queued", "somebody else leads"
        lead.release()
        wait_until(lambda: phase(ours, "anywhere") == "cancelled", what="the takeover")


def test_a_lease_that_is_renewed_elsewhere_reaches_the_processes_here(postgres, home):
    url = postgres.database()
    ours, theirs = Ledger(home / "ledger.sqlite", url=url), Ledger(home / "theirs" / "ledger.sqlite", url=url)
    cancelled(ours, "one")
    ours.renew_lease("run", "one", 5)
    theirs.renew_lease("run", "one", 500)
    file = ours.lease_file("run", "one")
    assert lease.read(file) != theirs.leases()["run", "one"]
    with supervised(ours):
        wait_until(lambda: lease.read(file) == theirs.leases()["run", "one"], what="the new lease")
    assert not theirs.lease_file("run", "one").exists()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("cloudai.state.postgres._RESTART", 0.5)
