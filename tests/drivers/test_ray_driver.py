"""The Ray driver without a cluster: what it understands, what it asks for, and how it refuses."""

from __future__ import annotations

import json
import platform
import sys
import time
import traceback
import zipfile
from io import BytesIO

import pytest

import cloudai
from cloudai.drivers import registry
from cloudai.drivers.protocols import Job, JobId, Needs
from cloudai.drivers.ray.api import Api, RefusedError, check_address, token
from cloudai.drivers.ray.driver import RayDriver, is_here, versions_differ
from cloudai.drivers.ray.jobs import job_request, job_status, submission_of
from cloudai.drivers.ray.launch import ENVIRONMENT, packed
from cloudai.drivers.ray.package import package
from cloudai.errors import DriverError, PlacementError, SpecError, StoreError
from tests.drivers.ray_cluster import free_port
from tests.flow import work

_TIMEOUT, _UNSCHEDULABLE = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE"


def details(status, **more):
    return {"status": status, "start_time": 1000, "end_time": 3000, "driver_exit_code": None, "message": "", **more}


@pytest.mark.parametrize(
    ("said", "phase", "code", "reason"),
    [
        (details("PENDING"), "starting", None, ""),
        (details("RUNNING"), "running", None, ""),
        (details("SUCCEEDED", driver_exit_code=0), "succeeded", 0, ""),
        (details("STOPPED"), "cancelled", None, "cancelled"),
        (details("FAILED", driver_exit_code=3), "failed", 3, "exit code 3"),
        (details("FAILED", driver_exit_code=-9), "failed", 137, "killed by signal 9"),
        (details("FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED"), "preempted", None, "the machine that it ran on is gone"),
        (details("FAILED", error_type=_TIMEOUT), "preempted", None, "the cluster had no room for it in time"),
        (details("FAILED", error_type=_UNSCHEDULABLE), "preempted", None, "the cluster had no room for it"),
        (details("FAILED", error_type="JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE", message="what?"), "lost", None, "what?"),
        (details("FAILED", message="no idea\nmore"), "lost", None, "no idea"),
        (details("FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE", message="no package"), "failed", None, "no package"),
    ],
)
def test_what_the_cluster_says_of_a_job_is_understood(said, phase, code, reason):
    found = job_status(said)
    assert (found.phase, found.exit_code, found.reason) == (phase, code, reason)
    assert found.started_at == (None if phase == "starting" or "no room" in reason else 1.0), "to wait is not to run"
    assert found.ended_at == (None if phase in ("starting", "running") else 3.0)


def test_a_cluster_of_another_version_is_refused_with_both_versions():
    here = platform.python_version()
    versions_differ("2.60.0", here)
    with pytest.raises(PlacementError, match=r"has Ray 2\.40\.0, cloudai needs 2\.54"):
        versions_differ("2.40.0", here)
    with pytest.raises(PlacementError, match=rf"has Python 3\.8\.1, and this is Python {here}"):
        versions_differ("2.60.0", "3.8.1")
    with pytest.raises(PlacementError, match="has Ray nonsense"):
        versions_differ("nonsense", here)


def test_one_worker_is_the_job_itself_and_several_are_placed_by_ray_train():
    job = Job("j.1", ("-m", "x", "it's", ""), {"A": "1", "B": "$HOME"}, Needs(cpus=0.5, memory=2**30, gpus=1, gpu_type="A100"))
    asked = job_request(job, "id")
    assert asked["entrypoint"] == """exec python -m cloudai.drivers.ray.launch -m x 'it'"'"'s' ''"""
    assert (asked["entrypoint_num_cpus"], asked["entrypoint_num_gpus"], asked["entrypoint_memory"]) == (0.5, 1.0, 2**30)
    assert asked["entrypoint_resources"] == {"accelerator_type:A100": 0.001}
    env = asked["runtime_env"]["env_vars"]
    assert env["A"] == "1"
    assert "B" not in env
    assert env[ENVIRONMENT] == packed({"B": "$HOME"})
    assert "$" not in env[ENVIRONMENT]
    for several in (Needs(workers=2), Needs(elastic=True)):
        many = job_request(Job("j.1", ("x",), needs=several), "id")
        assert not [name for name in many if name.startswith("entrypoint_")]


def test_the_package_is_this_cloudai_and_the_same_each_time():
    made = package()
    names = zipfile.ZipFile(BytesIO(made.content)).namelist()
    assert "cloudai/training/worker.py" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
    assert package.__wrapped__() == made
    assert len(made.content) < 2 * 2**20


def test_two_ledgers_may_have_a_run_of_the_same_name(home, monkeypatch):
    first = submission_of("digits.1")
    assert first == submission_of("digits.1")
    monkeypatch.setenv("CLOUDAI_HOME", str(home / "other"))
    assert submission_of("digits.1") != first


def test_the_token_is_found_where_ray_looks_for_it(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token() == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("from-home\n")
    assert token() == "from-home"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    with pytest.raises(RefusedError, match="RAY_AUTH_TOKEN_PATH"):
        token()
    (tmp_path / "file").write_text("from-file")
    assert token() == "from-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-variable")
    assert token() == "from-variable"


@pytest.mark.parametrize(
    "wrong", ["hunter2\nX-Other: 1", "hunter2 hunter2", "hunter2é", "hunter2€", "hunter2\x7f", b"hunter2\xff"]
)
def test_a_token_that_cannot_be_one_is_refused_and_said_nowhere(home, tmp_path, monkeypatch, caplog, wrong):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
    driver = RayDriver(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RefusedError, match="printable ASCII") as caught:
        driver.status(JobId("x.1"))
    said = "".join(traceback.format_exception(caught.value)) + "".join(problem.what for problem in driver.check()) + caplog.text
    assert "hunter2" not in said


def test_what_http_refuses_to_send_is_an_error_without_its_text(monkeypatch):
    monkeypatch.setattr("cloudai.drivers.ray.api.token", lambda: "hunter2\nhunter2")  # as if nothing had been checked
    with pytest.raises(DriverError, match="cannot be asked") as caught:
        Api("http://127.0.0.1:1").get("/api/version")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("address", ["auto", "ray://host:10001", "localhost:8265", "http://", "http://h:x", "http://h/path"])
def test_what_is_no_dashboard_is_refused(address):
    with pytest.raises(SpecError, match="ray_address"):
        check_address(address)


def test_an_address_with_a_password_is_refused(home):
    with pytest.raises(SpecError, match="holds a user name or password"):
        cloudai.settings.configure(ray_address="http://me:hunter2@host:8265")


def test_without_a_cluster_it_offers_nothing_and_says_what_to_set(home):
    driver = RayDriver()
    assert list(driver.offers(Needs())) == []
    assert "ray_address" in next(iter(driver.check())).fix
    with pytest.raises(SpecError, match="no Ray cluster is set"):
        cloudai.train(work.network(), work.data(), on="ray")


def test_a_cluster_that_is_not_there_is_an_error_at_once(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_RAY_ADDRESS", f"http://127.0.0.1:{free_port()}")
    begin = time.monotonic()
    for ask in (lambda d: d.status(JobId("x.1")), lambda d: d.cancel(JobId("x.1")), lambda d: list(d.logs(JobId("x.1")))):
        with pytest.raises(DriverError, match="does not answer"):
            ask(registry.train_driver("ray"))
    assert [offer.available for offer in registry.offers(Needs(), first="ray") if offer.driver == "ray"] == [False]
    assert time.monotonic() - begin < 5


def test_a_store_that_the_cluster_cannot_reach_is_refused_before_anything_is_written(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_RAY_ADDRESS", "http://192.0.2.77:8265")
    assert is_here("http://localhost:8265")
    assert not is_here("http://192.0.2.77:8265")
    with pytest.raises(StoreError, match="cannot reach the store") as refused:
        cloudai.train(work.network(), work.data(), on="ray")
    assert "s3://" in refused.value.fix
    assert not (home / "store").exists()


def test_nothing_of_ray_is_imported_for_it():
    code = "import sys, cloudai.drivers.ray.driver; print([m for m in sys.modules if m == 'ray' or m.startswith('ray.')])"
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_variables_of_a_job_are_read_back(monkeypatch):
    import base64

    assert json.loads(base64.b64decode(packed({"X": "$HOME `id`"}))) == {"X": "$HOME `id`"}
