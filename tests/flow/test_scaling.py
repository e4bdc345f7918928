"""Replicas that are killed, that fall asleep and wake up, with real processes: which requests fail, and which may."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import torch

import cloudai
from cloudai import errors
from cloudai.state import handles
from cloudai.state.leader import supervisor_pid
from tests.conftest import kill, wait_until
from tests.flow import work

ROWS = np.random.default_rng(0).normal(size=(50, 8)).astype("float32")
CLIENTS = 4


def model(name="small", run="made-by-hand"):
    return work.recorded_model(torch.nn.Linear(8, 2), ROWS, name=name, run=run)


class Load:
    """Clients that ask one thing after the other, each time on a new connection, and note what went wrong."""

    def __init__(self, deployment):
        self._host, self._name = urlsplit(deployment.url).netloc, deployment.name
        self._headers = {
            "authorization": f"Bearer {deployment.token_file.read_text().strip()}",
            "content-type": "application/json",
        }
        row = {"name": "input", "datatype": "FP32", "shape": [1, 8], "data": ROWS[0].tolist()}
        self._body = json.dumps({"inputs": [row]})
        self.answered, self.failed = 0, []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(CLIENTS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _ask_on(self):
        while not self._over.is_set():
            try:
                status = self.ask()
                self.answered += status == 200
                if status != 200:
                    self.failed.append(status)
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(type(error).__name__)

    def ask(self):
        connection = http.client.HTTPConnection(self._host, timeout=40)
        try:
            connection.request("POST", f"/v2/models/{self._name}/infer", self._body, self._headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def goes_on(self):
        more = self.answered + 20
        wait_until(lambda: self.answered >= more, what="more answers")


def pids_of(deployment):
    deployment.refresh()
    return set(deployment.revisions[0]["pids"])


def is_whole(deployment, without):
    deployment.refresh()
    row = deployment.revisions[0]
    return deployment.phase == "ready" and row["ready_replicas"] == 2 and without not in row["pids"]


@contextlib.contextmanager
def costs(load, *, most, only):
    """Count the requests that fail while the block runs and until the load goes on."""
    before = len(load.failed)
    yield
    load.goes_on()
    lost = load.failed[before:]
    assert set(lost) <= only, lost
    assert len(lost) <= most, lost


BROKEN = {"RemoteDisconnected", "ConnectionResetError", "IncompleteRead"}
"""What a client sees when its connection ends; never that it is refused."""


def test_kills_cost_only_what_was_being_computed_and_nobody_needs_a_supervisor_to_be_woken_up(home):
    deployment = cloudai.deploy(model(), autoscaling=cloudai.AutoscalingPolicy.fixed(2), lease="3m").wait(60)
    assert deployment.revisions[0]["ready_replicas"] == 2
    with Load(deployment) as load:
        load.goes_on()
        router = deployment._record.status["router"]
        with costs(load, most=CLIENTS, only=BROKEN):
            kill(router[0])
        wait_until(lambda: deployment.refresh() or deployment._record.status["router"] not in ([], router))
        victim, supervisor = min(pids_of(deployment)), supervisor_pid(home)
        with costs(load, most=CLIENTS, only={503}):
            kill(supervisor)
            kill(victim)
            wait_until(lambda: is_whole(deployment, victim), what="the replica's successor")
        assert supervisor_pid(home) not in (None, supervisor)

    deployment.scale(cloudai.AutoscalingPolicy(min_replicas=0, downscale_delay="1s"))
    wait_until(lambda: not pids_of(deployment), what="sleep")
    handles._handles.clear()  # nobody but the router is left who could start a supervisor
    kill(supervisor_pid(home))
    assert Load(deployment).ask() == 200
    assert supervisor_pid(home) is not None
    deployment.delete()


@pytest.mark.slow
def test_each_replica_may_die_under_load(home):
    deployment = cloudai.deploy(model(), autoscaling=cloudai.AutoscalingPolicy.fixed(2)).wait(60)
    with Load(deployment) as load:
        load.goes_on()
        for _ in range(4):
            victim = min(pids_of(deployment))
            with costs(load, most=CLIENTS, only={503}):
                kill(victim)
                wait_until(lambda victim=victim: is_whole(deployment, victim), what="the replica's successor")
        before, before_pids = len(load.failed), deployment._record.status["router"]
        keeper = psutil.Process(before_pids[0]).ppid()
        kill(keeper)  # the only one that takes the port with it: until the supervisor looks, clients are refused
        wait_until(lambda: deployment.refresh() or deployment._record.status["router"] not in ([], before_pids))
        load.goes_on()
        assert set(load.failed[before:]) <= {*BROKEN, "ConnectionRefusedError"}
    deployment.delete()


@pytest.mark.slow
def test_a_deployment_sleeps_and_is_woken_up_by_requests_which_all_are_answered(home):
    policy = cloudai.AutoscalingPolicy(min_replicas=0, max_replicas=2, downscale_delay="1s")
    deployment = cloudai.deploy(model(), autoscaling=policy, lease="3m").wait(60)
    assert pids_of(deployment), "it shows first that it can start"
    wait_until(lambda: not pids_of(deployment), what="sleep")
    assert deployment.phase == "ready"
    text = str(deployment.card())
    assert "asleep" in text
    assert "0 to 2 of each revision" in text
    deployment.wait(1)

    with Load(deployment) as load:
        load.goes_on()
    assert not load.failed, "those that came first have waited"
    assert pids_of(deployment)
    wait_until(lambda: not pids_of(deployment), what="sleep again")

    deployment.delete()


@pytest.mark.slow
def test_a_number_is_kept_and_what_cannot_be_is_refused(home):
    deployment = cloudai.deploy(model())
    with pytest.raises(errors.SpecError, match="there cannot be 0 replicas") as refused:
        deployment.scale(0)
    assert "AutoscalingPolicy(min_replicas=0)" in refused.value.fix
    with pytest.raises(errors.SpecError, match="3 is no autoscaling policy") as refused:
        cloudai.deploy("small", name="other", autoscaling=3)
    assert "AutoscalingPolicy.fixed(2)" in refused.value.fix
    deployment.scale(2).wait(60)
    assert len(pids_of(deployment)) == 2
    assert deployment.autoscaling == cloudai.AutoscalingPolicy.fixed(2)
    deployment.canary(model(run="second"), percent=50).wait(60)
    assert {row["id"]: row["ready_replicas"] for row in deployment.revisions} == {"v1.0.0": 2, "v1.0.1": 2}
    deployment.promote().scale(1).wait(60)
    assert deployment.traffic == {"v1.0.1": 100}
    assert [row["replicas"] for row in deployment.revisions] == [1, 1]
    assert deployment.predict(ROWS[:3]).shape == (3, 2)
    deployment.delete()
