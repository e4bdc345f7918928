"""Catching up: who is told when, and that one run's trouble is not the others'."""

from __future__ import annotations

import itertools
import os

import pytest

from cloudai.agents import catching_up
from cloudai.agents.catching_up import CatchingUp
from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import open_ledger
from cloudai.training import catch_up, tracked
from cloudai.training.job import RunFiles
from cloudai.training.journal import Journal
from cloudai.training.tracked import behind, mark_behind, read_note


class Recorder:
    """A tracker that counts who comes, and refuses the models of one run."""

    def __init__(self, address, told):
        self.address, self.told, self.run = address, told, None

    def start(self, run):
        self.told.append(run.name)
        if self.address == "down://":
            raise ConnectionError("nobody is there")
        self.run = run.name

    def log(self, rows):
        if self.run == "refused":
            raise ValueError("not this one")

    def register(self, model):
        raise AssertionError("there is none")

    def end(self, succeeded, at):
        self.told.append((self.run, succeeded))


@pytest.fixture
def told(home, monkeypatch, tmp_path):
    """Ended runs of two trackers, and what the trackers are told."""
    calls = []
    monkeypatch.setattr(tracked, "tracker_for", lambda address, folder: Recorder(address, calls))
    for number, (name, address) in enumerate([("refused", "up://"), ("good", "up://"), ("a", "down://"), ("b", "down://")]):
        fields = {"name": name, "model_name": "m", "work": {"kind": "function"}, "lease": None}
        spec = TrainSpec.of(**fields, store=str(tmp_path / "store"), tracking=address)
        journal = Journal(RunFiles(spec).folder, 1, {})
        journal.add(0, {"loss": 1.0})
        journal.close()
        open_ledger().create("run", name, spec.model_dump(mode="json"), {}, phase="failed" if name == "good" else "succeeded")
        mark_behind(home, spec)
        os.utime(home / "behind" / name, (number, number))
    return calls


def test_one_that_is_refused_keeps_nobody_else_from_being_told(home, told, tmp_path):
    assert behind(home) == ["refused", "good", "a", "b"]
    assert catch_up.main([]) == 1
    assert told == ["refused", "good", ("good", False), "a"]  # where nobody is, nobody asks twice
    assert behind(home) == ["refused", "a", "b"]
    specs = {r.name: TrainSpec.model_validate(r.spec) for r in open_ledger().records("run")}
    assert read_note(RunFiles(specs["refused"]).folder).problem == "ValueError: not this one"
    assert read_note(RunFiles(specs["good"]).folder).complete


def test_by_name_it_tells_once_more_and_unknown_marks_are_forgotten(home, told):
    assert catch_up.main(["good"]) == 0
    assert catch_up.main(["good"]) == 0
    assert told.count(("good", False)) == 2
    (home / "behind" / "removed").touch()
    assert catch_up.main(["removed"]) == 0
    assert "removed" not in behind(home)


def test_a_run_that_goes_on_is_left_to_its_worker(home, told):
    record = open_ledger().get("run", "good")
    open_ledger().create("run", "alive", {**record.spec, "name": "alive"}, {}, phase="running")
    assert catch_up.main(["alive"]) == 1
    assert told == []


class Process:
    code = None

    def poll(self):
        return self.code


def test_the_supervisor_starts_one_process_at_a_time_and_waits_longer_after_each_failure(home, monkeypatch):
    (home / "behind").mkdir(parents=True)
    (home / "behind" / "run-1").touch()
    started = []
    monkeypatch.setattr(catching_up, "start_catching_up", lambda home: started.append(Process()) or started[-1])
    supervisor, starts = CatchingUp(home), []
    for second in range(100):
        before = len(started)
        supervisor.look(float(second))
        starts += [second] * (len(started) - before)
        if len(started) > before:
            started[-1].code = 1
    gaps = [later - sooner for sooner, later in itertools.pairwise(starts)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= 5
    assert gaps[-1] >= 20
    (home / "behind" / "run-1").unlink()
    supervisor.look(1000.0)
    supervisor.look(1010.0)
    assert len(started) == len(starts)
