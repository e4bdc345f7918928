"""Disks that are full, read-only or damaged: two lines that say so, and what was there is there again afterwards."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

import cloudai
from cloudai import errors
from cloudai.state import ledger as ledger_module
from cloudai.state.ledger import Ledger
from tests.disks import fill


@pytest.fixture
def verbs(home, linear, monkeypatch):
    """What a user calls; nothing is started by it."""
    monkeypatch.setattr("cloudai._api.ensure_supervisor", lambda home: None)
    number = iter(range(100))
    return {
        "train": lambda: cloudai.train(*linear, name=f"new-{next(number)}"),
        "ps": lambda: str(cloudai.ps()),
        "attach": lambda: cloudai.attach("run/before"),
    }


def use(folder: Path, monkeypatch) -> Ledger:
    """Make a home with an ended run in it, and come back to it as a new process would."""
    monkeypatch.setenv("CLOUDAI_HOME", str(folder))
    cloudai_ledger = Ledger(folder / "ledger.sqlite")
    from cloudai.specs.training import Loop, TrainSpec, Work

    spec = TrainSpec.of(
        name="before",
        work=Work(kind="function"),
        on="local",
        model_name="before",
        loop=Loop(),
        lease=60,
        store=str(folder / "store"),
        tracking="none",
    )
    cloudai_ledger.create("run", "before", spec.model_dump(mode="json"), {})
    cloudai_ledger.observe("run", "before", "cancelled", {"reason": "for a test"})
    return cloudai_ledger


def restart():
    """Forget and close what is open, as the end of the process would."""
    ledger_module._open.clear()
    gc.collect()


def two_lines(act, *words: str) -> None:
    with pytest.raises(errors.CloudAIError) as caught:
        act()
    text = str(caught.value)
    assert len(text.splitlines()) == 2, text
    assert "\nFix: " in text
    assert any(word in text for word in words), text


def is_well(verbs):
    """What was there before is there, and new things can be made."""
    assert verbs["attach"]().phase == "cancelled"
    made = verbs["train"]()
    assert made.ref in verbs["ps"]()


@pytest.mark.parametrize("fresh", [True, False], ids=["a new process", "a process that goes on"])
def test_a_full_disk(disk, verbs, monkeypatch, fresh):
    ledger = use(disk / "home", monkeypatch)
    if fresh:
        restart()
        del ledger
    else:
        verbs["ps"]()
    filler = fill(disk)
    two_lines(verbs["train"], "full", "No space left")
    for verb in ("ps", "attach"):
        try:
            verbs[verb]()  # to read needs no room where the ledger is open already
        except errors.LedgerError:
            assert fresh
            two_lines(verbs[verb], "full")
    filler.unlink()
    is_well(verbs)


def test_a_disk_that_fills_while_we_write_loses_nothing_that_was_acknowledged(disk):
    ledger = Ledger(disk / "home" / "ledger.sqlite")
    acknowledged, refused = [], 0
    filler = disk / "filler"
    filler.write_bytes(b"x" * 1_500_000)
    for i in range(400):
        try:
            ledger.create("run", f"r{i}", {"text": "x" * 2000}, {})
            acknowledged.append(f"r{i}")
        except errors.LedgerError:
            refused += 1
    assert acknowledged
    assert refused
    filler.unlink()
    ledger.create("run", "after", {}, {})
    names = {record.name for record in Ledger(ledger.path).records()}
    assert names == {*acknowledged, "after"}
    assert all(len(ledger.events("run", name)) == 1 for name in acknowledged)


def test_a_read_only_home(disk, verbs, monkeypatch):
    use(disk / "home", monkeypatch)
    restart()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for verb in verbs.values():
        two_lines(verb, "read-only", "Read-only")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    is_well(verbs)


def test_a_home_that_cannot_be_made(verbs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLOUDAI_HOME", str(tmp_path / "file" / "home"))
    for verb in verbs.values():
        two_lines(verb, os.strerror(errno.ENOTDIR))


def random_bytes(path):
    path.write_bytes(os.urandom(8192))


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path):
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def emptied(path):
    (path.parent / "leases").mkdir()
    (path.parent / "leases" / "run-before.json").write_text('{"until": null}')
    os.truncate(path, 0)


def foreign(path):
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE cookies (name TEXT)")
        db.commit()


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [random_bytes, truncated, overwritten, emptied, foreign, a_folder])
def test_a_damaged_ledger(home, verbs, monkeypatch, tmp_path, damage):
    ledger = use(home, monkeypatch)
    for i in range(200):
        ledger.create("run", f"filler-{i}", {"text": "x" * 500}, {})
        ledger.observe("run", f"filler-{i}", "cancelled", {})
    ledger._database._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    del ledger
    restart()
    copy = shutil.copy(home / "ledger.sqlite", tmp_path / "copy")
    damage(home / "ledger.sqlite")
    for verb in verbs.values():
        two_lines(verb, "damaged", "another program", "empty", "directory")
    path = home / "ledger.sqlite"
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for rest in home.glob("ledger.sqlite-*"):
        rest.unlink()
    shutil.copy(copy, path)
    is_well(verbs)


def test_a_ledger_that_is_put_back_is_found_by_a_process_that_goes_on(home, verbs, monkeypatch, tmp_path):
    ledger = use(home, monkeypatch)
    ledger._database._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    verbs["ps"]()
    copy = shutil.copy(home / "ledger.sqlite", tmp_path / "copy")
    (home / "ledger.sqlite").unlink()
    with pytest.raises(errors.LedgerError, match="is gone"):
        ledger.records()
    for rest in home.glob("ledger.sqlite-*"):
        rest.unlink()
    shutil.copy(copy, home / "ledger.sqlite")
    assert [record.name for record in ledger.records()] == ["before"]
    is_well(verbs)


def test_a_ledger_that_somebody_else_keeps_locked(path, monkeypatch):
    monkeypatch.setattr("cloudai.state.sqlite._WAIT", 0.2)
    ledger = Ledger(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert ledger.records() == [], "to read does not wait"
        two_lines(lambda: ledger.create("run", "one", {}, {}), "busy")
        other.execute("ROLLBACK")
    ledger.create("run", "one", {}, {})
