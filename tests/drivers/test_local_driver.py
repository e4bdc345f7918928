"""The local driver: what it offers, jobs by key, and what a new object of it finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudai import settings
from cloudai.drivers.local import LocalDriver
from cloudai.drivers.protocols import Job, Needs, Revision, RevisionId
from cloudai.errors import DriverError, NotFoundError, SpecError
from tests.conftest import kill, wait_until

SLEEP = ("-c", "import time; print('up', flush=True); time.sleep(60)")


@pytest.fixture
def driver(home):
    made = LocalDriver()
    yield made
    for key in made._jobs.keys():
        made.cancel(key)


def offer(driver, needs=None):
    return next(iter(driver.offers(needs or Needs())))


def submit(driver, argv=SLEEP, key="job"):
    return driver.submit(Job("job", argv), offer(driver), key=key)


def test_the_offer_is_this_machine_at_the_users_price(driver):
    assert offer(driver).price_per_hour == 0
    assert "not counted" in offer(driver).source
    settings.configure(local_price_per_hour=0.2, currency="EUR")
    try:
        found = offer(driver)
        assert (found.price_per_hour, found.currency) == (0.2, "EUR")
        assert "configure()" in found.source
    finally:
        settings._overrides.clear()


@pytest.mark.parametrize("needs", [Needs(cpus=10_000), Needs(memory=2**60), Needs(cpus=1, workers=10_000)])
def test_what_this_machine_lacks_is_why_not(driver, needs):
    found = offer(driver, needs)
    assert not found.available
    assert "this machine has" in found.why_not


def test_the_same_key_starts_nothing_new(driver):
    first = submit(driver)
    pid = wait_until(lambda: driver.status(first).pid)
    assert submit(driver) == first
    assert driver.status(first).pid == pid


def test_a_new_object_finds_the_old_jobs(driver):
    job = submit(driver)
    other = LocalDriver()
    assert other.status(job).phase == "running"
    other.cancel(job)
    assert driver.status(job).phase == "cancelled"
    other.cancel(job)


@pytest.mark.parametrize(
    ("argv", "phase", "reason"), [(("-c", "pass"), "succeeded", ""), (("-c", "exit(3)"), "failed", "exit code 3")]
)
def test_how_it_ended(driver, argv, phase, reason):
    job = submit(driver, argv)
    status = wait_until(lambda: (s := driver.status(job)).phase != "running" and s)
    assert (status.phase, status.reason) == (phase, reason)
    assert status.started_at <= status.ended_at


def test_a_kill_is_named(driver):
    job = submit(driver)
    kill(wait_until(lambda: driver.status(job).pid))
    assert wait_until(lambda: (s := driver.status(job)).phase == "failed" and s).reason == "killed by SIGKILL"


def test_after_success_a_cancel_changes_nothing(driver):
    job = submit(driver, ("-c", "pass"))
    wait_until(lambda: driver.status(job).phase == "succeeded")
    driver.cancel(job)
    assert driver.status(job).phase == "succeeded"


def test_an_unknown_job(driver):
    with pytest.raises(NotFoundError, match="no job 'nothing'"):
        driver.status("nothing")
    with pytest.raises(NotFoundError, match="no job 'nothing'"):
        list(driver.logs("nothing"))
    driver.cancel("nothing")


def test_traffic_must_be_whole_and_go_to_what_is_up(driver):
    with pytest.raises(SpecError, match="does not sum to 100"):
        driver.route("d", {RevisionId("v1"): 60})
    driver._deployments._root.joinpath("d").mkdir(parents=True)
    with pytest.raises(DriverError, match="'v1' of 'd' is not up"):
        driver.route("d", {RevisionId("v1"): 100})


def test_a_server_that_does_not_start_leaves_its_last_words(driver):
    argv = ("-m", "cloudai.serving.server", "--model", "/nowhere", "--name", "d")
    driver.apply("d", Revision(RevisionId("v1"), argv, {"PYTHONUNBUFFERED": "1"}), key="d/v1")
    found = wait_until(lambda: (r := driver.inspect("d").revisions[0]).replicas == 0 and r)
    assert "there is no model in /nowhere" in found.reason
    assert not driver.inspect("d").ready
    driver.delete("d")
    driver.delete("d")
    assert driver.inspect("d").revisions == ()


def test_the_job_runs_in_the_callers_folder(driver, tmp_path):
    (tmp_path / "data.txt").write_text("relative paths work")
    code = ("-c", "print(open('data.txt').read())")
    job = driver.submit(Job("job", code, folder=str(tmp_path)), offer(driver), key="cwd")
    wait_until(lambda: driver.status(job).phase == "succeeded")
    assert [line.text for line in driver.logs(job)] == ["relative paths work"]
    assert Path.cwd() != tmp_path
