"""Replicas on this machine: who is killed, what is lost, and what stays of those that end."""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime

import pytest

from cloudai.drivers.local import LocalDriver
from cloudai.drivers.local.replicas import Replicas
from cloudai.drivers.protocols import Revision, RevisionId, Scaling
from cloudai.errors import NotReadyError
from cloudai.serving import client
from cloudai.testing import Bench
from cloudai.testing.deployed import Deployed, Meanwhile
from tests.conftest import kill, wait_until

V1 = RevisionId("v1")
COUNT = "ml_inference_latency_count"


class LocalBench(Bench):
    def __init__(self, root):
        self.root = root

    def connect(self):
        return LocalDriver(self.root)


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """One deployment for all tests: each begins with as many replicas as it needs."""
    bench = LocalBench(tmp_path_factory.mktemp("replicas") / "local")
    made = Deployed(bench, bench.driver, "d").answers_with(V1)
    yield made
    made.driver.delete("d")


@pytest.fixture
def deployed(answering):
    return answering.scale(V1, 1)


def replicas_of(deployed):
    return Replicas(deployed.bench.root / "deployments" / "d" / "revisions" / V1)


def test_a_killed_replica_costs_at_most_the_request_that_it_was_computing(deployed):
    deployed.scale(V1, 2)
    lost, answers = [], []

    def ask():
        try:
            answers.append(deployed.bench.ask("d"))
        except NotReadyError as error:
            lost.append(error.what)

    with Meanwhile(ask) as requests:
        for _ in range(2):
            victim = deployed.look(V1).pids[0]
            requests.wait_for_more(10)
            kill(victim)
            wait_until(lambda victim=victim: victim not in deployed.look(V1).pids)
            requests.wait_for_more(10)
            deployed.scale(V1, 2)
            requests.wait_for_more(10)
    assert set(answers) == {V1}
    assert set(lost) <= {"the revision v1 broke off"}
    assert len(lost) <= 2, "one for each death: there is one client"


def counts_of(deployed):
    since = datetime.fromtimestamp(0, UTC)
    return [metric.value for metric in deployed.driver.metrics("d", since=since) if metric.name == COUNT]


def test_replicas_share_the_requests_by_how_busy_they_are(deployed):
    deployed.scale(V1, 3)
    before = sum(counts_of(deployed))
    for _ in range(60):
        deployed.bench.ask("d")
    counts = counts_of(deployed)
    assert len(counts) == 3
    assert sum(counts) == before + 60
    assert min(counts) > 5, "ties are broken by chance"


def test_what_ended_replicas_have_answered_is_still_there(deployed):
    deployed.scale(V1, 2)
    since = datetime.now(UTC)
    for _ in range(20):
        deployed.bench.ask("d")
    deployed.scale(V1, 1)
    mine = replicas_of(deployed)
    wait_until(lambda: len([key for key in mine.keys() if mine._runs(key)]) == 1)
    found = list(deployed.driver.samples("d", since=since, limit=1000))
    assert {sample.revision for sample in found} == {V1}
    assert sum(len(sample.times) for sample in found) == 20


def test_a_busy_replica_that_is_too_many_ends_its_work_first(deployed):
    deployed.scale(V1, 2)
    with Meanwhile(lambda: deployed.bench.ask("d")) as requests:
        requests.wait_for_more(5)
        pids = deployed.look(V1).pids
        deployed.scale(V1, 1)
        requests.wait_for_more(5)
    assert deployed.look(V1).pids == pids[:1], "the first one stays"


def test_of_those_too_many_the_one_that_is_not_ready_goes_first(deployed):
    old = deployed.look(V1).pids
    deployed.driver.scale("d", V1, 2)
    deployed.driver.scale("d", V1, 1)
    assert deployed.look(V1).pids == old


def test_one_that_was_to_end_and_was_never_told_is_told_later(deployed):
    deployed.scale(V1, 2)
    mine = replicas_of(deployed)
    (chosen,) = mine.mark_surplus(1)  # and then the driver dies
    assert len(mine.alive()) == 1
    assert mine._runs(chosen)
    long_ago = time.time() - 60
    os.utime(mine.folder(chosen) / "ending", (long_ago, long_ago))
    deployed.scale(V1, 1)
    wait_until(lambda: not mine._runs(chosen))


def test_it_begins_with_the_fewest_and_at_least_with_one(deployed):
    revision = deployed.bench.ready_revision("d", V1)
    for scaling, count in ((Scaling(2, 5), 2), (Scaling(0, 5), 1)):
        name = RevisionId(f"r{count}")
        deployed.apply(Revision(name, revision.argv, scaling=scaling))
        assert deployed.look(name).replicas == count
        deployed.driver.retire("d", name)


def test_a_router_that_dies_is_back_before_anybody_looks(deployed):
    (router,) = deployed.status().pids
    url = deployed.status().url
    os.kill(router, signal.SIGKILL)
    begun = time.monotonic()
    assert deployed.bench.ask("d") == V1
    assert time.monotonic() - begun < 5
    status = wait_until(lambda: (found := deployed.status()).pids != (router,) and found.url and found)
    assert status.url == url


def test_where_no_supervisor_can_be_told_a_request_to_a_sleeping_revision_is_refused_at_once(deployed):
    deployed.scale(V1, 0)
    with pytest.raises(NotReadyError):
        client.predict(deployed.status().url, "d", {})
    assert deployed.status().ready
