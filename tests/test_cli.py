"""The command line: the same verbs, errors in two lines, and nothing but text."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import cloudai
from cloudai.cli import main
from tests.conftest import wait_until
from tests.flow import work


def run(capsys, *words):
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_an_empty_home_says_so(home, capsys):
    assert run(capsys, "ps")[1].startswith("Alive: nothing")
    assert run(capsys, "cleanup")[1].startswith("Cleanup: nothing to end")
    assert run(capsys, "costs")[0] == 0


def test_a_run_can_be_seen_read_and_ended(home, capsys):
    started = cloudai.train(work.network(), work.data(), name="long", epochs=1_000_000)
    wait_until(lambda: started.refresh() or started.status.step is not None)
    code, out, _ = run(capsys, "ps")
    assert code == 0
    assert "run/long" in out
    assert str(started.status.pid) in out
    assert "Run long" in run(capsys, "show", "run/long")[1]
    assert run(capsys, "cancel", "long")[1].startswith("run/long will end")
    wait_until(lambda: started.refresh() or started.ended)
    assert started.phase == "cancelled"
    assert any("told by SIGTERM" in line for line in run(capsys, "logs", "run/long")[1].splitlines())


def test_errors_are_two_lines_and_a_code(home, capsys):
    code, out, err = run(capsys, "show", "run/nothing")
    assert (code, out) == (1, "")
    assert err.splitlines() == ["there is no run 'nothing'", "Fix: there is none yet"]
    deployed = cloudai.deploy(work.recorded_model(torch.nn.Linear(8, 2), work.data()[0][:, :8], name="d"))
    assert deployed.name == "d"
    assert "is no run" in run(capsys, "logs", "deployment/d")[2]


def test_cleanup_lists_and_ends_what_nobody_holds(home, capsys):
    code = "import cloudai; from tests.flow import work; cloudai.train(work.network(), work.data(), name='left', epochs=10**6)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert "run/left" in run(capsys, "cleanup")[1]
    assert not cloudai.attach("run/left").ended
    assert run(capsys, "cleanup", "--apply")[1].endswith("ended\n")
    assert cloudai.attach("run/left").phase == "cancelled"


def test_doctor_says_what_is_where_and_what_is_missing(home, capsys):
    out = run(capsys, "doctor")[1]
    for word in ("cloudai 0.", "torch", "drivers: local", str(home), "no driver has a problem"):
        assert word in out


def test_it_is_installed_as_a_command():
    from pathlib import Path

    command = Path(sys.executable).with_name("cloudai")
    assert subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.startswith("cloudai 0.")
    with pytest.raises(SystemExit):
        main(["nonsense"])
