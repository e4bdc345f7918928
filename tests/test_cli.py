"""The command line, as it is installed: the same verbs, errors in two lines, and nothing but text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cloudai
from tests.conftest import wait_until
from tests.flow import work

COMMAND = Path(sys.executable).with_name("cloudai")


def run(*words, timeout=90):
    """Run the installed command; returns its exit code, what it said and what it complained about."""
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def test_an_empty_home_says_so(home):
    assert run("ps")[1].startswith("Alive: nothing")
    assert run("cleanup")[1].startswith("Cleanup: nothing to end")
    assert json.loads(run("costs", "--json")[1]) == {"entries": [], "totals": {}}
    assert run("track")[1] == "no tracker is behind\n"


def test_a_run_can_be_seen_read_and_ended(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_LOCAL_PRICE_PER_HOUR", "3600")
    started = cloudai.train(work.network(), work.data(), name="long", epochs=1_000_000)
    wait_until(lambda: started.refresh() or started.status.step is not None)
    code, out, _ = run("ps")
    assert code == 0
    assert "run/long" in out
    (entry,) = json.loads(run("ps", "--json")[1])["entries"]
    assert (entry["ref"], entry["phase"], entry["pids"]) == ("run/long", "running", [started.status.pid])
    assert "Run long" in run("show", "run/long")[1]
    code, out, err = run("track", "run/long")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == "the run 'long' is tracked in nothing"
    following = subprocess.Popen([COMMAND, "logs", "-f", "run/long"], stdout=subprocess.PIPE, text=True)
    assert run("cancel", "long")[1].startswith("run/long will end")
    wait_until(lambda: started.refresh() or started.ended)
    assert started.phase == "cancelled"
    told, _ = following.communicate(timeout=30)
    assert "told by SIGTERM" in told
    assert told == run("logs", "run/long")[1]
    assert run("cancel", "long")[1] == "run/long has ended already: cancelled\n"
    costs = json.loads(run("costs", "--json")[1])
    (entry,) = costs["entries"]
    assert entry["spent"] == {"amount": costs["totals"]["USD"], "currency": "USD"}
    assert costs["totals"]["USD"] > 1  # more than a second


@pytest.mark.parametrize(
    ("words", "code", "lines"),
    [
        (["show", "run/nothing"], 1, ["there is no run 'nothing'", "Fix: there is none yet"]),
        (["logs", "nothing"], 1, ["there is no run, deployment, monitor or schedule 'nothing'", "Fix: there is none yet"]),
        (
            ["cancel", "job/x"],
            1,
            ["'job/x' names no kind of object", "Fix: there is: 'deployment', 'monitor', 'run', 'schedule'"],
        ),
        (["track", "run/x"], 1, ["there is no run 'x'", "Fix: there is none yet"]),
        (["cancel"], 2, ["cloudai cancel: the following arguments are required: ref", "Fix: cloudai cancel --help"]),
        (["ps", "--jsn"], 2, ["cloudai: unrecognized arguments: --jsn", "Fix: cloudai --help"]),
        ([], 2, ["cloudai: the following arguments are required: command", "Fix: cloudai --help"]),
    ],
)
def test_wrong_input_is_two_lines_and_a_code(home, words, code, lines):
    assert run(*words) == (code, "", "\n".join([*lines, ""]))


def test_a_misspelt_command_names_the_nearest(home):
    code, _, err = run("lgos")
    assert code == 2
    assert err.startswith("there is no command 'lgos'\nFix: did you mean 'logs'? There is: ")


def test_logs_are_of_runs(home):
    cloudai.deploy(work.recorded_model(torch.nn.Linear(8, 2), work.data()[0][:, :8], name="d"))
    assert run("logs", "deployment/d")[2] == "'deployment/d' is no run\nFix: logs are of runs: give run/NAME\n"


def test_a_setting_that_cannot_be_read_is_two_lines(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_LOCAL_PRICE_PER_HOUR", "cheap")
    code, _, err = run("ps")
    assert (code, len(err.splitlines())) == (1, 2)


def test_cleanup_lists_and_ends_what_nobody_holds(home):
    code = "import cloudai; from tests.flow import work; cloudai.train(work.network(), work.data(), name='left', epochs=10**6)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert "run/left" in run("cleanup")[1]
    assert not cloudai.attach("run/left").ended
    assert run("cleanup", "--apply")[1].endswith("ended\n")
    assert cloudai.attach("run/left").phase == "cancelled"


def test_a_reader_that_goes_away_is_no_error(home):
    done = subprocess.run(
        f"{COMMAND} --help >/dev/null; {COMMAND} doctor | head -1", shell=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("cloudai is well here\n", "")


def test_it_says_its_version():
    assert run("--version")[1].startswith("cloudai 0.")
