"""Trackers that keep a JSON file, each of them broken in one way; not collected by itself, see test_conformance_catches.py."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from cloudai.testing.trackers import Recorded, TrackerConformance


class Good:
    """A tracker in a file, as somebody else might write it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = ""

    def _key(self, run):
        return run.identity

    def _edit(self, change):
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        change(kept)
        self.path.write_text(json.dumps(kept))

    def start(self, run):
        self.key = self._key(run)
        fresh = {"name": run.name, "experiment": run.experiment, "params": {**run.params, **run.tags}}
        fresh |= {"rows": [], "models": [], "end": None}
        self._edit(lambda kept: kept.setdefault(self.key, fresh))

    def log(self, rows):
        self._edit(lambda kept: kept[self.key].update(rows=self._merged(kept[self.key]["rows"], rows)))

    def _merged(self, old, rows):
        fresh = [[row.step, name, value] for row in rows for name, value in row.metrics.items() if math.isfinite(value)]
        known = {tuple(row) for row in old}
        return old + [row for row in fresh if tuple(row) not in known]

    def register(self, model):
        entry = [model.name, model.version, model.digest]
        self._edit(lambda kept: entry in kept[self.key]["models"] or kept[self.key]["models"].append(entry))

    def end(self, succeeded, at):
        self._edit(lambda kept: kept[self.key].update(end=succeeded))


class AppendsTwice(Good):
    def _merged(self, old, rows):
        return old + super()._merged([], rows)


class BeginsAnew(Good):
    def _key(self, run):
        return f"{run.identity}-{id(self)}"


class GoesByName(Good):
    def _key(self, run):
        return run.name


class RegistersTwice(Good):
    def register(self, model):
        self._edit(lambda kept: kept[self.key]["models"].append([model.name, model.version, model.digest]))


class StaysEnded(Good):
    def end(self, succeeded, at):
        self._edit(
            lambda kept: kept[self.key].update(end=succeeded if kept[self.key]["end"] is None else kept[self.key]["end"])
        )


class AlwaysSucceeds(Good):
    def end(self, succeeded, at):
        super().end(True, at)


class RefusesOddNames(Good):
    def log(self, rows):
        if any(not re.fullmatch(r"\w+", name) for row in rows for name in row.metrics):
            raise ValueError("a name")
        super().log(rows)


class RefusesNan(Good):
    def log(self, rows):
        if any(not math.isfinite(value) for row in rows for value in row.metrics.values()):
            raise ValueError("a value")
        super().log(rows)


class TakesAThousand(Good):
    def log(self, rows):
        super().log(rows[:1000])


class WritesWhereTheUserWorks(Good):
    def start(self, run):
        Path("tracker.log").write_text("started")
        super().start(run)


def suite(kind):
    class Suite(TrackerConformance):
        @pytest.fixture(autouse=True)
        def _elsewhere(self, tmp_path, monkeypatch):
            monkeypatch.chdir(tmp_path)  # one of them writes there

        @pytest.fixture
        def make(self, tmp_path):
            made = []  # kept, so that no two have the same id

            def make():
                made.append(kind(tmp_path / "kept.json"))
                return made[-1]

            return make

        @pytest.fixture
        def read(self, tmp_path):
            return lambda experiment: [recorded(run) for run in kept(tmp_path) if run["experiment"] == experiment]

    Suite.__name__ = Suite.__qualname__ = f"Test{kind.__name__}"
    return Suite


def kept(folder):
    return json.loads((folder / "kept.json").read_text()).values()


def recorded(run):
    metrics = {}
    for step, name, value in sorted(run["rows"]):
        metrics.setdefault(name, []).append((step, value))
    return Recorded(run["name"], run["params"], metrics, [tuple(model) for model in run["models"]], run["end"])


for _kind in (Good, *Good.__subclasses__()):
    globals()[f"Test{_kind.__name__}"] = suite(_kind)
