"""The suite catches trackers that break one clause each, and passes one that breaks none."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.docs import pages

BROKEN = {
    "Good": set(),
    "AppendsTwice": {"a_call_that_comes_again", "another_process_that_tells_all_again", "a_run_that_comes_back"},
    "BeginsAnew": {"another_process_that_tells_all_again", "a_run_that_comes_back"},
    "GoesByName": {"runs_of_one_name"},
    "RegistersTwice": {"a_call_that_comes_again", "another_process_that_tells_all_again"},
    "StaysEnded": {"a_run_that_comes_back"},
    "AlwaysSucceeds": {"a_failed_run"},
    "RefusesOddNames": {"odd_names"},
    "RefusesNan": {"values_that_are_no_numbers"},
    "TakesAThousand": {"thousands_of_rows"},
    "WritesWhereTheUserWorks": {"making_one_touches_nothing"},
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Run the suite over all of them in one pytest of its own, and return which tests failed for which."""
    folder = tmp_path_factory.mktemp("suite")
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "-n0", "--basetemp", str(folder / "tmp")]
    broken = "tests/tracking/broken_trackers.py"
    done = subprocess.run([*command, broken], capture_output=True, text=True, timeout=120)
    assert "passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    found = {name: set() for name in BROKEN}
    for name, test in re.findall(r"^FAILED \S+::Test(\w+)::test_(\w+)", done.stdout, re.MULTILINE):
        found[name].add(test)
    return found


@pytest.mark.parametrize("name", BROKEN)
def test_exactly_the_tests_of_the_broken_clause_fail(failed, name):
    caught = {clause for clause in BROKEN[name] if any(test.startswith(clause) for test in failed[name])}
    assert caught == BROKEN[name]
    assert {test for test in failed[name] if not test.startswith(tuple(BROKEN[name]) or "\0")} == set()


def test_the_tracker_on_the_page_passes_with_the_gap_that_it_declares(tmp_path):
    page = pages.ROOT / "docs" / "how-to" / "track-experiments.md"
    code = [block.text for block in pages.blocks(page) if re.search("^class (Test)?Diary", block.text, re.MULTILINE)]
    (tmp_path / "test_diary.py").write_text("\n".join(code))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(tmp_path / "t"),
        "test_diary.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert re.search(r"^\d+ passed, 1 xfailed", done.stdout, re.MULTILINE), done.stdout
