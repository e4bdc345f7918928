"""Old ledgers are carried over whole, by however many at once; what is not ours to change is refused."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest

from cloudai.errors import LedgerError
from cloudai.state import lease, migrations
from cloudai.state.ledger import Event, Holder, Ledger

VERSION_1 = """
CREATE TABLE objects (
    kind TEXT NOT NULL, name TEXT NOT NULL, phase TEXT NOT NULL,
    spec TEXT NOT NULL, desired TEXT NOT NULL, status TEXT NOT NULL,
    created REAL NOT NULL, updated REAL NOT NULL,
    PRIMARY KEY (kind, name));
CREATE INDEX objects_by_phase ON objects (phase);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, at REAL NOT NULL, what TEXT NOT NULL);
CREATE INDEX events_by_object ON events (kind, name);
CREATE TABLE models (
    name TEXT NOT NULL, version TEXT NOT NULL, uri TEXT NOT NULL, digest TEXT NOT NULL, run TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (name, version));
CREATE TABLE holders (
    kind TEXT NOT NULL, name TEXT NOT NULL, pid INTEGER NOT NULL, started REAL NOT NULL, PRIMARY KEY (kind, name, pid));
PRAGMA user_version=1;
"""


@pytest.fixture
def old(path):
    """A ledger as version 1 wrote it, with something in every table, and a lease that is only a file."""
    import psutil

    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(VERSION_1)
        row = ("run", "one", "running", '{"epochs": 3}', '{"cancel": false}', '{"step": 7}', 100.25, 200.5)
        db.execute("INSERT INTO objects VALUES (?,?,?,?,?,?,?,?)", row)
        db.execute("INSERT INTO objects VALUES ('deployment','d','deleted','{}','{}','{}',1,2)")
        db.executemany(
            "INSERT INTO events (kind, name, at, what) VALUES ('run','one',?,?)", [(100, "queued"), (150, "running")]
        )
        db.execute("INSERT INTO models VALUES ('digits','1.0.0','uri','digest','one',180)")
        db.execute("INSERT INTO holders VALUES ('run','one',?,?)", (os.getpid(), psutil.Process().create_time()))
        db.commit()
    lease.write(path.parent / "leases" / "run-one.json", time.time() + 1000)
    return path


def check(ledger):
    record = ledger.get("run", "one")
    assert (record.phase, record.spec, record.desired, record.status) == (
        "running",
        {"epochs": 3},
        {"cancel": False},
        {"step": 7},
    )
    assert (record.created, record.updated, record.version) == (100.25, 200.5, 1)
    assert [r.ref for r in ledger.records()] == ["run/one", "deployment/d"]
    assert ledger.events("run", "one") == [Event(100, "queued"), Event(150, "running")]
    assert ledger.models() == [("digits", "1.0.0", "uri", "digest")]
    assert ledger.holders("run", "one") == [Holder(os.getpid())]
    assert 900 < ledger.lease_left("run", "one") <= 1000
    assert ledger.mine(record)


def test_an_old_ledger_is_carried_over_with_nothing_lost(old):
    ledger = Ledger(old)
    check(ledger)
    ledger.observe("run", "one", "succeeded", {"step": 8})
    assert Ledger(old).get("run", "one").version == 2


def test_twenty_processes_open_an_old_ledger_at_the_same_moment(old, tmp_path):
    code = """
import json, pathlib, sys, time
from cloudai.state.ledger import Ledger
while time.time() < float(sys.argv[2]):
    pass
print(json.dumps([r.ref for r in Ledger(pathlib.Path(sys.argv[1])).records()]))
"""
    argv = [sys.executable, "-c", code, str(old), str(time.time() + 2)]
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(20)]
    for process in started:
        out, problems = process.communicate(timeout=60)
        assert not problems
        assert json.loads(out) == ["run/one", "deployment/d"]
    check(Ledger(old))


def test_a_migration_that_stops_half_way_leaves_the_old_ledger(old, monkeypatch):
    before = migrations.MIGRATIONS
    monkeypatch.setattr(migrations, "MIGRATIONS", (before[0], (*before[1][:-2], "INSERT INTO nowhere VALUES (1)")))
    with pytest.raises(LedgerError):
        Ledger(old)
    with contextlib.closing(sqlite3.connect(old)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert [row[1] for row in db.execute("PRAGMA table_info(objects)")][-1] == "updated"
        assert db.execute("SELECT count(*) FROM holders").fetchone() == (1,)
    monkeypatch.setattr(migrations, "MIGRATIONS", before)
    check(Ledger(old))


def test_a_newer_ledger_is_refused(ledger, url, monkeypatch):
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, ("CREATE TABLE later (x INTEGER)",)))
    Ledger(ledger.path, url=url)
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="newer cloudai") as caught:
        Ledger(ledger.path, url=url)
    assert caught.value.fix == "pip install --upgrade cloudai"


def test_the_database_of_another_program_is_refused_and_left_alone(path):
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE cookies (name TEXT)")
        db.commit()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another program"):
        Ledger(path)
    assert path.read_bytes() == before
