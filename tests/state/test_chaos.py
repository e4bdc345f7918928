"""Twenty processes on one ledger, killed at random and replaced: nothing lost, nothing twice, one leader."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from cloudai.state.ledger import Ledger

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seconds", [4, pytest.param(90, marks=pytest.mark.slow)])
def test_twenty_processes_killed_at_random(path, url, tmp_path, seconds):
    logs, seed = tmp_path / "logs", random.randrange(10**6)
    logs.mkdir()
    argv = [sys.executable, "-m", "tests.state.chaos", path, url, seconds, logs, seed]
    done = subprocess.run([str(word) for word in argv], cwd=ROOT, capture_output=True, text=True, timeout=seconds + 60)
    assert done.returncode == 0, done.stderr
    said = [line.split() for file in logs.iterdir() for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"]
    words = Counter(line[0] for line in said)
    assert not words["fault"], [line for line in said if line[0] == "fault"]
    assert not done.stderr
    assert int(done.stdout) >= 20, "so many were killed"
    assert words["wanted"] + words["observed"] > 100, words
    ledger = Ledger(path, url=url)
    check_objects(ledger, said)
    check_leaders(said)


def check_objects(ledger, said):
    created = Counter(name for word, name, *_ in said if word == "created")
    assert max(created.values()) == 1, "a name is given once"
    records = {record.name: record for record in ledger.records("run")}
    assert set(created) <= set(records)
    tokens = defaultdict(set)
    for word, *rest in said:
        if word in ("wanted", "observed"):
            tokens[word, rest[0]].add(rest[1])
    for name, record in records.items():
        assert tokens["wanted", name] <= set(record.desired), "every acknowledged wish is there"
        assert tokens["observed", name] <= set(record.status), "every acknowledged observation is there"
        assert record.version == 1 + len(record.desired) + len(record.status), "every write was counted, and counted once"
        check_events([event.what for event in ledger.events("run", name)], record)


def check_events(events, record):
    assert events[0] == "queued"
    assert sorted(events[1:]) == sorted(record.status), "one event for each observation"
    by_process = defaultdict(list)
    for token in events[1:]:
        process, _, number = token.partition(".")
        by_process[process].append(int(number))
    assert all(numbers == sorted(numbers) for numbers in by_process.values()), "in order"


def check_leaders(said):
    times = defaultdict(list)
    for word, tenure, *at in said:
        if word == "led":
            times[tenure].append(float(at[0]))
    assert len({tenure.partition(".")[0] for tenure in times}) > 1, "the lead went from one to another"
    spans = sorted((min(at), max(at), tenure) for tenure, at in times.items())
    for (_, end, first), (start, _, second) in pairwise(spans):
        assert end <= start, f"{first} and {second} led at the same time"


def test_two_leaders_at_the_same_time_would_be_noticed():
    lines = [("led", f"{i}.1", str(t)) for i in range(4) for t in (10 * i, 10 * i + 5)]
    check_leaders(lines)
    with pytest.raises(AssertionError, match=r"0\.1 and 9\.1 led at the same time"):
        check_leaders([*lines, ("led", "9.1", "4"), ("led", "9.1", "6")])
