"""Replicas that are killed, that fall asleep and wake up, with real processes: which requests fail, and which may."""

from __future__ import annotations

import http.client
import json
import threading
from urllib.parse import urlsplit

import numpy as np
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


def test_kills_cost_only_what_was_being_computed(home):
    deployment = cloudai.deploy(model(), autoscaling=cloudai.AutoscalingPolicy.fixed(2)).wait(60)
    assert deployment.revisions[0]["ready_replicas"] == 2
    with Load(deployment) as load:
        load.goes_on()
        victim = min(pids_of(deployment))
        kill(victim)
        wait_until(lambda: is_whole(deployment, victim), what="the replica's successor")
        load.goes_on()
        assert set(load.failed) <= {503}, "only those whose answer the killed replica was computing"
        assert len(load.failed) <= CLIENTS

        before, router = len(load.failed), deployment._record.status["router"][0]
        kill(router)
        load.goes_on()
        lost = load.failed[before:]
        assert set(lost) <= {"RemoteDisconnected", "ConnectionResetError", "IncompleteRead"}, "never refused"
        assert len(lost) <= CLIENTS, "only those that it was passing on"
        wait_until(lambda: deployment.refresh() or deployment._record.status["router"] not in ([], [router]))

        before, victim, supervisor = len(load.failed), min(pids_of(deployment)), supervisor_pid(home)
        kill(supervisor)
        kill(victim)
        wait_until(lambda: is_whole(deployment, victim), what="the replica's successor")
        load.goes_on()
        assert set(load.failed[before:]) <= {503}
        assert len(load.failed[before:]) <= CLIENTS
        assert supervisor_pid(home) not in (None, supervisor)
    deployment.delete()


def test_a_deployment_sleeps_and_is_woken_up_by_a_request_though_nobody_supervises(home):
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

    handles._handles.clear()  # nobody but the router is left who could start a supervisor
    kill(supervisor_pid(home))
    assert Load(deployment).ask() == 200
    assert supervisor_pid(home) is not None
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
