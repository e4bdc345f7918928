"""Runs on a real Ray cluster of several nodes, with token authentication: followed, cancelled, and hit where it hurts."""

from __future__ import annotations

import itertools
import os
import urllib.error

import pytest

import cloudai
from cloudai.drivers.protocols import Job, JobId, Needs
from cloudai.drivers.ray.driver import RayDriver
from cloudai.errors import CloudAIError, PlacementError
from tests.conftest import wait_until
from tests.drivers.ray_cluster import Cluster
from tests.flow import work

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster():
    """A head without cores, so that work is never on the head; each test says which machines it has beside it."""
    made = Cluster()
    try:
        made.start_head(cpus=0)
        yield made
    finally:
        made.stop()


@pytest.fixture
def on_ray(cluster, home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
    monkeypatch.setenv("CLOUDAI_RAY_ADDRESS", cluster.address)
    return cluster


def train(name, on="ray", epochs=20, **options):
    options = {"checkpoint": cloudai.CheckpointPolicy(every="1s"), "lease": "20m", **options}
    return cloudai.train(work.network(), work.data(), name=name, model_name="net", on=on, epochs=epochs, **options)


def at_step(run, step, timeout=240):
    wait_until(lambda: run.refresh() or run.ended or (run.status.step or 0) >= step, timeout, f"step {step} of {run.name}")
    assert not run.ended, run.status


def checkpointed(run, timeout=240):
    wait_until(lambda: run.refresh() or run.ended or (run.status.checkpoint or 0) > 1, timeout, f"a checkpoint of {run.name}")
    assert not run.ended, run.status


def ended(run, timeout=400):
    wait_until(lambda: run.refresh() or run.ended, timeout, f"the end of {run.name}")
    return run.phase


def test_the_job_has_this_very_cloudai(on_ray):
    on_ray.have(2)
    driver, code = RayDriver(), "import cloudai; print('from', cloudai.__file__)"
    offer = next(iter(driver.offers(Needs())))
    job = driver.submit(Job("which", ("-c", code)), offer, key="which")
    assert [line for line in driver.logs(job, follow=True) if line.text.startswith("from") and "_ray_pkg_" in line.text]


def test_a_run_is_followed_and_ends_as_one_on_this_machine(on_ray):
    on_ray.have(2)
    run = train("followed")
    lines = list(itertools.islice(run.logs(follow=True), 3))
    assert lines
    assert ended(run) == "succeeded", run.status
    assert "Ray cluster at http://127.0.0.1" in run.status.place
    assert run.exact
    assert work.weights(run) == work.weights(train("here", on="local").wait(120))
    assert on_ray.token not in "".join(run.logs()) + repr(run) + str(run.card())


def test_a_cancelled_run_keeps_its_last_checkpoint(on_ray):
    on_ray.have(2)
    run = train("cancelled", epochs=100_000, checkpoint=cloudai.CheckpointPolicy(every="10m"))
    at_step(run, 20)
    run.cancel()
    assert ended(run, 90) == "cancelled"
    assert run.status.checkpoint
    assert RayDriver().status(JobId("cancelled.1")).phase == "cancelled"


def test_what_can_never_fit_is_refused_and_what_is_busy_waits(on_ray):
    on_ray.have(2)
    run = train("huge", resources=cloudai.Resources(cpus=64))
    assert ended(run, 60) == "rejected"
    assert "64 cores" in run.status.reason
    assert "room for 0" in run.status.reason
    driver = RayDriver()
    offer = wait_until(lambda: next((o for o in driver.offers(Needs(cpus=2)) if o.available), None), 60, "room")
    job = driver.submit(Job("hog", ("-c", "import time; time.sleep(600)"), needs=Needs(cpus=2)), offer, key="hog")
    wait_until(lambda: driver.status(job).phase == "running", 60)
    busy = wait_until(lambda: next((o for o in driver.offers(Needs(cpus=2)) if not o.available), None), 60, "a busy cluster")
    assert busy.temporary
    assert "other work has taken" in busy.why_not
    driver.cancel(job)
    wait_until(lambda: next(iter(driver.offers(Needs(cpus=2)))).available, 90, "room again")


def test_without_the_token_nobody_gets_in(on_ray, monkeypatch):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        on_ray.read("/api/jobs/", token="wrong")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(PlacementError, match="does not take the token") as refused:
        list(RayDriver().offers(Needs()))
    assert len(str(refused.value).splitlines()) == 2
    with pytest.raises(CloudAIError, match="does not take the token"):
        RayDriver().status(JobId("followed.1"))
    monkeypatch.setenv("HOME", str(os.devnull))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    run = train("stranger")
    assert ended(run, 60) == "rejected"
    assert "asks for a token" in run.status.reason


def test_a_machine_that_dies_costs_time_and_not_a_bit(on_ray):
    on_ray.have(2)
    run = train("hurt", epochs=300)
    checkpointed(run)
    on_ray.kill_machines()
    wait_until(lambda: run.refresh() or "lost a machine" in run.status.reason, 120, "a run that waits for a machine")
    on_ray.start_node(cpus=2)
    assert ended(run) == "succeeded", run.status
    assert run.status.attempt == 2
    assert run.status.resumed_from
    assert work.weights(run) == work.weights(train("calm", on="local", epochs=300).wait(200))


def test_ranks_on_two_machines_come_back_when_one_dies(on_ray):
    on_ray.have(1, 1)
    calm = train("calm-two", epochs=60, num_workers=2)
    assert ended(calm) == "succeeded", calm.status
    run = train("hurt-two", epochs=60, num_workers=2)
    checkpointed(run)
    on_ray.kill(on_ray.nodes[-1])
    on_ray.start_node(cpus=1)
    assert ended(run) == "succeeded", run.status
    assert run.status.attempt > 1
    assert run.exact
    assert work.weights(run) == work.weights(calm)


def test_an_elastic_run_goes_on_with_what_there_is(on_ray):
    on_ray.have(1)
    scaling = cloudai.ScalingPolicy(num_workers=(1, 2), check_every="3s")
    run = train("elastic", epochs=3000, scaling=scaling)
    checkpointed(run)
    steps = run.status.total_steps
    on_ray.start_node(cpus=1)
    wait_until(lambda: run.refresh() or run.status.workers == 2, 200, "a second worker")
    grown = run.status.step or 0
    at_step(run, grown + 1000)
    assert run.status.attempt == 1
    assert "there is room for more workers" in "".join(run.logs())
    on_ray.kill_machines()
    on_ray.start_node(cpus=1)
    assert ended(run) == "succeeded", run.status
    assert run.status.step == run.status.total_steps == steps
    assert run.status.workers == 1
    assert run.history("loss")[0] == sorted(run.history("loss")[0])
    assert not run.exact
    assert "it had 1, then 2" in run.why_not_exact


def test_its_log_is_there_when_the_cluster_is_gone(on_ray):
    on_ray.have(2)
    run = train("outlives")
    assert ended(run) == "succeeded", run.status
    before = [line.text for line in RayDriver().logs(JobId("outlives.1"))]
    assert before
    on_ray.stop()
    assert list(run.logs()) == before
