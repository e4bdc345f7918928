"""A ledger on PostgreSQL: it outlives its server's restarts, and what is wrong with it is said in two lines."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

import pytest

from cloudai import settings
from cloudai.errors import LedgerError, MissingExtraError
from cloudai.state import postgres as postgres_module
from cloudai.state.ledger import Ledger, open_ledger
from tests.postgres import PASSWORD, USER


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Wait for no server longer than a test may take."""
    monkeypatch.setattr(postgres_module, "_CONNECT", 2)
    monkeypatch.setattr(postgres_module, "_RESTART", 3.0)


@pytest.fixture
def shared(postgres, path):
    return Ledger(path, url=postgres.database())


def said(path, url):
    """Return the two lines that opening it gives."""
    began = time.monotonic()
    with pytest.raises(LedgerError) as caught:
        Ledger(path, url=url)
    assert time.monotonic() - began < 10
    assert len(str(caught.value).splitlines()) == 2
    return str(caught.value)


def test_one_setting_makes_it_shared(postgres, home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_LEDGER", postgres.database())
    open_ledger().create("run", "one", {}, {})
    assert open_ledger() is open_ledger()
    assert not (home / "ledger.sqlite").exists()
    monkeypatch.setenv("CLOUDAI_HOME", str(home.parent / "another"))
    assert [record.ref for record in open_ledger().records()] == ["run/one"]
    monkeypatch.setenv("CLOUDAI_LEDGER", "")
    assert open_ledger().records() == []


def test_it_goes_on_after_the_server_was_restarted(shared, postgres):
    shared.create("run", "before", {}, {})
    postgres.stop()
    began = time.monotonic()
    with pytest.raises(LedgerError, match=r"cannot be reached[^\n]*\nFix: start the server"):
        shared.create("run", "meanwhile", {}, {})
    assert time.monotonic() - began < 10
    restart = threading.Timer(1.0, postgres.start)
    restart.start()
    assert [record.name for record in shared.records()] == ["before"], "it waits some seconds for a server that restarts"
    restart.join()
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='cloudai'")
    shared.create("run", "after", {}, {})
    assert {record.name for record in shared.records()} == {"before", "after"}


def test_a_connection_that_is_lost_in_the_middle_writes_nothing(shared, postgres):
    shared.create("run", "one", {}, {})
    with pytest.raises(LedgerError), shared._database.transaction() as tx:
        tx.execute("UPDATE objects SET phase='lost'")
        postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='cloudai'")
        tx.execute("UPDATE objects SET phase='lost'")
    assert shared.get("run", "one").phase == "queued"


def test_a_server_that_is_not_there(path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        text = said(path, f"postgresql://ada@127.0.0.1:{free.getsockname()[1]}/team")
    assert "cannot be reached" in text
    assert "start the server, or mend the setting 'ledger'" in text


def test_a_server_that_never_answers(path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        text = said(path, f"postgresql://ada@127.0.0.1:{silent.getsockname()[1]}/team")
    assert "cannot be reached" in text


def test_a_wrong_password_and_none(path, postgres, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "canary-wrong")
    text = said(path, postgres.database())
    assert "does not accept the password" in text
    assert "canary" not in text
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("PGPASSFILE", str(path))
    assert "asks for a password" in said(path, postgres.database())


def test_no_database_of_that_name(path, postgres):
    assert "does not exist" in said(path, postgres.url("nowhere"))


def test_missing_rights_and_the_grants_that_give_them(path, postgres, shared, monkeypatch):
    fresh = postgres.database()
    postgres.sql(f"CREATE USER bob PASSWORD '{PASSWORD}'")
    as_bob = [url.replace(f"//{USER}@", "//bob@") for url in (fresh, shared.url)]
    assert "GRANT CREATE ON DATABASE" in said(path, as_bob[0])
    assert "does not give the rights" in said(path, as_bob[1])
    postgres.sql("GRANT USAGE ON SCHEMA cloudai TO bob", shared.url)
    postgres.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA cloudai TO bob", shared.url)
    bobs = Ledger(path.parent / "bob" / "ledger.sqlite", url=as_bob[1])
    bobs.create("run", "bobs", {}, {})
    assert shared.get("run", "bobs").home == bobs.here != shared.here


def test_without_psycopg_it_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r'pip install "cloudai\[team\]"'):
        Ledger(path, url="postgresql://ada@127.0.0.1:1/team")


def test_a_statement_that_hangs_is_given_up(shared, postgres):
    shared._database._connected().execute("SET lock_timeout = '100ms'")
    import psycopg

    with psycopg.connect(shared.url) as other:
        other.execute("LOCK TABLE cloudai.objects")
        with pytest.raises(LedgerError, match=r"was busy[^\n]*\nFix: call again"):
            shared.create("run", "one", {}, {})
    shared.create("run", "one", {}, {})


def test_a_fork_has_a_connection_of_its_own(shared):
    shared.create("run", "one", {}, {})
    child = os.fork()
    if child == 0:
        try:
            shared.observe("run", "one", "running", {})
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert shared.get("run", "one").phase == "running"


def test_the_password_is_nowhere(shared, home, monkeypatch, caplog):
    monkeypatch.setenv("CLOUDAI_LEDGER", shared.url)
    told = str(settings.current()) + repr(settings.current()) + repr(shared) + str(vars(shared))
    assert shared.url in told
    assert PASSWORD not in told + caplog.text
