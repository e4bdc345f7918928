"""The doctor: what is really broken is found, said with its fix, and holds nothing up."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch

import cloudai
from cloudai import doctor
from cloudai.state.ledger import open_ledger
from tests.conftest import ROOT
from tests.flow import work

COMMAND = Path(sys.executable).with_name("cloudai")


def asked(timeout=30):
    """Ask the installed command; returns its exit code and the findings that are not ok, as (area, what, fix)."""
    done = subprocess.run([COMMAND, "doctor", "--json"], capture_output=True, text=True, timeout=timeout)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["well"] == (done.returncode == 0)
    # extras that this environment lacks are notes of their own
    odd = [f for f in found["findings"] if f["state"] != "ok" and not f["area"].startswith("extra ")]
    return done.returncode, [(f["area"], f["what"], f["fix"]) for f in odd]


@contextlib.contextmanager
def silent():
    """A server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_fresh_machine_is_well_and_nothing_is_made(home):
    assert asked() == (0, [])
    assert not home.exists()


def test_a_home_in_use_is_well_and_everything_is_named(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_TRACKING", f"sqlite:///{home / 'mlflow.db'}")
    deployed = cloudai.deploy(work.recorded_model(torch.nn.Linear(8, 2), work.data()[0][:, :8], name="d"))
    deployed.wait(90)
    done = subprocess.run([COMMAND, "doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for words in (
        f"Python {sys.version.split()[0]}",
        "extra train",
        f"torch {torch.__version__}",
        f"{home} (from CLOUDAI_HOME)",
        "GiB free",
        "1 objects, 1 of them alive, schema ",
        "not behind the ledger's newest entry",
        "supervisor                    ok     process ",
        "wrote, read and removed a file in",
        "a database that the first run makes",
        "driver local                  ok     no problem",
        "GPU: ",
        "d listens on 127.0.0.1:",
    ):
        assert words in done.stdout, done.stdout
    assert not list((home / "store").glob("doctor-*"))


@pytest.mark.parametrize("place", ["/proc/self", "file/below"])
def test_a_home_that_cannot_be_written(home, monkeypatch, tmp_path, place):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLOUDAI_HOME", place if place.startswith("/") else str(tmp_path / place))
    code, odd = asked()
    assert code == 1
    assert ("home", True, True) in [(area, "cannot be written" in what, "set CLOUDAI_HOME" in fix) for area, what, fix in odd]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_without_the_right_to_write(home):
    home.mkdir(mode=0o500)
    assert asked()[0] == 1


def test_others_who_can_read_the_home_and_a_full_disk_are_notes(home, monkeypatch):
    home.mkdir(mode=0o755)
    monkeypatch.setattr(doctor, "_LOW_DISK", 2**80)
    found = [(finding.state, finding.fix) for finding in doctor._home()]
    assert found == [("note", "free some space, or set CLOUDAI_HOME to another disk"), ("note", f"chmod 700 {home}")]


MADE = """
import sqlite3
from cloudai.state.ledger import open_ledger
ledger = open_ledger()
for number in range(200):
    ledger.create("run", f"r{number}", {"filler": "x" * 500}, {})
sqlite3.connect(ledger.home / "ledger.sqlite").execute("PRAGMA wal_checkpoint(TRUNCATE)")
"""


@pytest.mark.parametrize(("first", "end"), [(0, 200), (8192, 16384)], ids=["its head", "a page of it"])
def test_a_damaged_ledger(home, first, end):
    subprocess.run([sys.executable, "-c", MADE], cwd=ROOT, check=True)
    path = home / "ledger.sqlite"
    content = bytearray(path.read_bytes())
    content[first:end] = b"x" * (end - first)
    path.write_bytes(content)
    code, odd = asked()
    assert code == 1
    (found,) = [(what, fix) for area, what, fix in odd if area == "ledger"]
    assert str(path) in found[0]
    assert "bring back a copy" in found[1]


def test_a_clock_that_was_set_back(home):
    class Ahead:
        def now(self):
            return time.time() + 7200

        def pause(self, seconds):
            raise NotImplementedError

    ledger = open_ledger()
    ledger.clock = Ahead()
    ledger.create("run", "later", {}, {}, phase="succeeded")
    ((area, what, fix),) = asked()[1]
    assert area == "clock"
    assert what.startswith(("it is 1 h 59 min behind", "it is 2 h behind"))
    assert "set the clock" in fix


def test_a_tracker_that_is_not_there_is_a_note_with_its_fix(home, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("CLOUDAI_TRACKING", f"http://127.0.0.1:{closed.getsockname()[1]}")
        code, ((area, what, fix),) = asked()
    assert (code, area) == (0, "tracking")
    assert "cannot be reached" in what
    assert "runs go on without it" in fix


def test_what_never_answers_holds_it_up_for_seconds_only(home, monkeypatch):
    with silent() as address:
        monkeypatch.setenv("CLOUDAI_TRACKING", f"http://{address}")
        monkeypatch.setenv("CLOUDAI_STORE", "s3://bucket/prefix")
        for name, value in {"AWS_ENDPOINT_URL": f"http://{address}", "AWS_ACCESS_KEY_ID": "canary-key"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
        began = time.monotonic()
        done = subprocess.run([COMMAND, "doctor"], capture_output=True, text=True, timeout=60)
        assert time.monotonic() - began < 20  # five of them, and a loaded machine
    assert done.returncode == 1
    assert "store                         BROKEN  no answer within 5 s" in done.stdout
    assert "tracking                      note" in done.stdout
    assert "canary" not in done.stdout + done.stderr


def test_an_address_of_no_tracker_and_a_setting_that_cannot_be_read_are_broken(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_TRACKING", "wanbd://me/p")
    code, ((area, what, fix),) = asked()
    assert (code, area, what) == (1, "tracking", "there is no tracker for 'wanbd://me/p'")
    assert "did you mean 'wandb'" in fix
    monkeypatch.setenv("CLOUDAI_LOCAL_PRICE_PER_HOUR", "cheap")
    code, odd = asked()
    assert code == 1
    assert odd[0][1] == "the setting 'local_price_per_hour' cannot be 'cheap' (from CLOUDAI_LOCAL_PRICE_PER_HOUR)"


def test_every_package_that_is_installed_is_found(home):
    done = subprocess.run([COMMAND, "doctor", "--json"], capture_output=True, text=True)
    missing = [f["what"] for f in json.loads(done.stdout)["findings"] if f["what"].startswith("not installed: ")]
    names = {name for what in missing for name in what.removeprefix("not installed: ").partition(";")[0].split(", ")}
    there = {dist.name for dist in metadata.distributions()}
    assert names.isdisjoint(there)


HIDDEN = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"uvicorn", "mlflow"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
from cloudai.cli import main
sys.exit(main(["doctor"]))
"""


def test_packages_that_are_missing_are_named_with_the_line_that_brings_them(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_TRACKING", f"sqlite:///{home}/mlflow.db")
    done = subprocess.run([sys.executable, "-c", HIDDEN], cwd=ROOT, capture_output=True, text=True)
    assert "not installed: uvicorn; installed: aiohttp" in done.stdout
    assert 'extra serve: pip install "cloudai[serve]"' in done.stdout
    assert "needs mlflow, which is not installed" in done.stdout  # what every run would fail at
    assert done.returncode == 1


def test_the_last_error_of_the_supervisor_is_shown(home):
    home.mkdir(mode=0o700)
    lines = ["2026-01-01 00:00:00,000 ERROR cloudai.supervisor: run/a could not be taken further", "Traceback …", "x INFO y"]
    (home / "supervisor.log").write_text("\n".join(lines))
    ((area, what, fix),) = asked()[1]
    assert area == "supervisor"
    assert "run/a could not be taken further" in what
    assert "supervisor.log" in fix


def test_a_run_that_is_not_recorded_completely_is_named(home):
    (home / "behind").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    (home / "behind" / "digits-1").touch()
    assert asked()[1] == [("tracking", "behind with 1 ended runs: digits-1", "cloudai track")]
