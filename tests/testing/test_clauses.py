"""Gaps: a declared one is an expected failure, a closed one fails the run, a careless one is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloudai.errors import SpecError
from cloudai.testing import Gap, TrainDriverConformance
from cloudai.testing.clauses import clauses_of

ROOT = Path(__file__).parents[2]

SUITE = """
import pytest

from cloudai.testing import Gap, TrainDriverConformance
from tests.testing.broken_drivers import DropsEmptyLines, MemoryBench, MemoryDriver

GAPS = {"logs-are-complete": Gap("upstream", "the place drops empty lines")}


def bench_of(driver):
    @pytest.fixture
    def bench(self):
        made = MemoryBench()
        made.kind = driver
        return made

    return bench


class TestOpen(TrainDriverConformance):
    gaps = GAPS
    bench = bench_of(DropsEmptyLines)


class TestClosed(TrainDriverConformance):
    gaps = GAPS
    bench = bench_of(MemoryDriver)


class TestOther(TrainDriverConformance):
    bench = bench_of(MemoryDriver)
"""


def test_an_open_gap_is_expected_and_a_closed_one_fails_the_run(tmp_path):
    (tmp_path / "test_gaps.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rxf", "-p", "no:cacheprovider", "--tb=short", "-c", "pytest.ini"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, "test_gaps.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=env)
    test, count = "test_all_lines_are_there_in_order", sum(map(len, clauses_of(TrainDriverConformance).values()))
    assert f"XFAIL test_gaps.py::TestOpen::{test} - gap (upstream): the place drops empty lines" in done.stdout
    assert f"FAILED test_gaps.py::TestClosed::{test} - [XPASS(s" in done.stdout
    assert f"1 failed, {3 * count - 2} passed, 1 xfailed" in done.stdout, done.stdout


def test_a_gap_of_no_clause_is_refused_where_it_is_written():
    with pytest.raises(SpecError, match="there is no clause 'logs-are-compleet'") as caught:
        type("TestMine", (TrainDriverConformance,), {"gaps": {"logs-are-compleet": Gap("todo", "soon")}})
    assert "did you mean 'logs-are-complete'?" in caught.value.fix


@pytest.mark.parametrize(("kind", "reason", "what"), [("todo", " ", "has no reason"), ("later", "soon", "'later' is no kind")])
def test_a_gap_needs_a_kind_and_a_reason(kind, reason, what):
    with pytest.raises(SpecError, match=what):
        Gap(kind, reason)


def test_without_pytest_it_says_so():
    code = "import sys; sys.modules['pytest'] = None; import cloudai.testing.server; cloudai.testing.Gap"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "MissingExtraError: cloudai.testing needs pytest, which is not installed" in done.stderr
    assert 'Fix: pip install "cloudai[testing]"' in done.stderr
