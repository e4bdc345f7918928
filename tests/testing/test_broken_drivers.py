"""The suites catch what they are there for: of a driver that breaks one clause, exactly that clause's tests fail."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from cloudai.testing.clauses import clauses_of
from tests.testing.broken_drivers import BROKEN, SUITES, clause_of, suites_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run the suites on all broken drivers in one process; returns (driver, suite, test, outcome, message)."""
    folder = tmp_path_factory.mktemp("broken")
    report = folder / "report.xml"
    config = folder / "pytest.ini"
    config.write_text("[pytest]\npython_files = *.py\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", str(config)]
    command += ["--import-mode=importlib", "--tb=line", f"--junitxml={report}", str(ROOT / "tests/testing/broken_drivers.py")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    return [_outcome(case) for case in ET.parse(report).iter("testcase")]


def _outcome(case):
    _, driver, suite = case.get("classname").rpartition(".")[2].split("_")
    child = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
    return (
        driver,
        suite,
        case.get("name"),
        "passed" if child is None else child.tag,
        "" if child is None else child.get("message"),
    )


CLAUSE_OF = {(suite.__name__, test): name for suite in SUITES for name, tests in clauses_of(suite).items() for test in tests}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_exactly_the_broken_clause_fails(name, outcomes):
    mine = [(suite, test, outcome, message) for driver, suite, test, outcome, message in outcomes if driver == name]
    run = {suite.__name__ for suite in suites_of(BROKEN[name])}
    assert {(suite, test) for suite, test, *_ in mine} == {(suite, test) for suite, test in CLAUSE_OF if suite in run}
    failed = [(CLAUSE_OF[suite, test], test, said) for suite, test, outcome, said in mine if outcome in ("failure", "error")]
    skipped = {CLAUSE_OF[suite, test] for suite, test, outcome, _ in mine if outcome == "skipped"}
    assert skipped <= {"split-is-refused-without-routing", "route-is-atomic"}
    assert {clause for clause, *_ in failed} == {clause_of(BROKEN[name])}, failed


def test_a_failure_names_the_clause_and_what_to_do(outcomes):
    said = {name: message for name, _, _, outcome, message in outcomes if outcome == "failure"}
    assert "submit-is-idempotent: " in said["StartsAgainAfterTheEnd"]
    assert "unknown-jobs-are-not-found: logs of an unknown job gave []; raise NotFoundError" in said["UnknownIsSilent"]


def test_most_clauses_have_a_driver_that_breaks_them():
    broken = {clause_of(driver) for driver in BROKEN.values()}
    assert set(CLAUSE_OF.values()) - broken == {"route-loses-no-request", "safe-from-many-threads", "scaling-loses-no-request"}
