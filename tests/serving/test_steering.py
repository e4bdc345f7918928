"""A rollout by the supervisor's own code, on a simulated cloud: what is in the ledger is enough to go on, and to go back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch

import cloudai
from cloudai import drivers
from cloudai.drivers import registry
from cloudai.drivers.protocols import Capabilities, DeploymentStatus, Metric, RevisionId, RevisionStatus, Sample
from cloudai.drivers.simulated.deployments import Traffic
from cloudai.drivers.simulated.world import Fate, World
from cloudai.errors import NotReadyError, RunFailedError, SpecError
from cloudai.serving.counters import Counts, read_counts
from cloudai.serving.evidence import Evidence
from cloudai.serving.guards import Watch
from cloudai.serving.rollout import Progress
from cloudai.serving.split import Split
from cloudai.serving.steering import Routing
from cloudai.state.ledger import Record
from cloudai.testing.simulation import Simulation

ROWS = np.zeros((20, 4), "float32")
NEW = "v1.0.1"
QUICK = cloudai.Rollout(steps=(10, 50, 100), bake="5m", min_requests=20)


def model(seed):
    torch.manual_seed(seed)
    return cloudai.Model.from_torch(torch.nn.Linear(4, 2), ROWS, name="model")


@pytest.fixture
def deployed():
    """A deployment on a cloud where the new version has the given fate."""
    started = []

    def start(**fate):
        world = World(fates=[Fate(revision=NEW, **fate)])
        simulation = Simulation(world, traffic={"model": Traffic(ROWS, per_minute=613)})
        started.append(simulation.start())
        return simulation, cloudai.deploy(model(0), on="simulated", lease=None).wait(3600)

    yield start
    for simulation in started:
        simulation.stop()


def test_a_good_version_is_promoted_and_the_one_before_is_kept(deployed):
    simulation, deployment = deployed()
    begun = simulation.now
    deployment.canary(model(1), rollout=QUICK).wait(7200)
    assert deployment.traffic == {NEW: 100}
    assert deployment.progress.phase == "promoted"
    assert (simulation.now - begun).total_seconds() >= 3 * 300
    assert "promoted after all its steps" in str(deployment)
    assert deployment.rollback().wait(600).traffic == {"v1.0.0": 100}
    assert deployment.progress is None


@pytest.mark.parametrize(
    ("fate", "guard", "why"),
    [
        ({"error_rate": 0.3}, cloudai.Guard(watch="errors"), "of its requests failed"),
        ({"latency": 0.05}, cloudai.Guard(watch="latency", margin=0.5), "of its requests took longer than"),
        ({"latency": 0.9}, cloudai.Guard(watch="latency", bound="100ms"), "of its requests took longer than 100 ms"),
        ({"ready": False}, cloudai.Guard(watch="errors"), "it was not ready within 10 min"),
        ({"crash_after": "1m"}, cloudai.Guard(watch="errors"), "its process ended 3 times"),
    ],
)
def test_a_bad_version_is_thrown_out_and_the_card_says_why(deployed, fate, guard, why):
    simulation, deployment = deployed(**fate)
    with pytest.raises(RunFailedError, match=why):
        deployment.canary(model(1), rollout=QUICK, guards=[guard]).wait(7200)
    assert deployment.traffic == {"v1.0.0": 100}
    assert why in str(deployment)
    simulation.advance("10m")
    deployment.refresh()
    assert [row["id"] for row in deployment.revisions if row["replicas"]] == ["v1.0.0"], "it is taken down"
    assert deployment.canary(model(2), percent=10).wait(600).traffic == {"v1.0.0": 90, "v1.0.2": 10}


def test_while_the_stable_version_is_down_nothing_is_compared():
    """Its requests go to the new one then, which are not dealt at random any more."""
    split = Split("v1", canary="v2", percent=10)
    up = [RevisionStatus(RevisionId("v1"), True, 1, 90, pids=(7,)), RevisionStatus(RevisionId("v2"), True, 1, 10, pids=(8,))]
    counted = {}

    class Router:
        name, capabilities = "router", Capabilities(telemetry=True)

        def check(self):
            return []

        offers = close = samples = lambda self, *args, **more: []

        def metrics(self, name, *, since):
            return [counter("cloudai_requests_total", n, revision=rev, code="200") for rev, n in counted.items()]

    drivers.register("router", Router)
    record = Record("deployment", "m", "ready", {"on": "router"}, {}, {}, 0, 0, 1)

    def look(evidence, stable, requests, **more):
        counted.update(requests)
        found = DeploymentStatus("m", "", True, (stable, up[1]))
        progress = Progress("o", "baking")
        return evidence.read(record, progress, 10, split, found, **{"routed": True, "now": 0.0, **more})

    _, evidence = look(Evidence(0.0), up[0], {"v1": 900, "v2": 100})
    seen, evidence = look(evidence, up[0], {"v1": 990, "v2": 110})
    assert (seen.old.requests, seen.new.requests) == (90, 10)
    for stable, more in [(replace(up[0], ready=False), {}), (up[0], {"routed": False}), (replace(up[0], pids=(9,)), {})]:
        seen, evidence = look(evidence, stable, {"v2": counted["v2"] + 100}, **more)
        assert seen is None
    seen, _ = look(evidence, replace(up[0], pids=(9,)), {"v1": 1080, "v2": 420})
    assert (seen.old.requests, seen.new.requests) == (90, 10)


def test_pause_resume_promote_and_roll_back_by_hand(deployed):
    simulation, deployment = deployed()
    deployment.canary(model(1), rollout=QUICK)
    simulation.advance("2m")
    deployment.pause()
    simulation.advance("1h")
    deployment.refresh()
    assert (deployment.progress.phase, deployment.traffic) == ("paused", {"v1.0.0": 90, NEW: 10})
    with pytest.raises(NotReadyError, match="is paused"):
        deployment.wait(1)
    deployment.resume()
    simulation.advance("6m")
    assert deployment.refresh() or deployment.traffic == {"v1.0.0": 50, NEW: 50}
    deployment.promote().wait(60)
    assert deployment.traffic == {NEW: 100}
    with pytest.raises(SpecError, match="no rollout by itself"):
        deployment.pause()
    deployment.rollback().wait(600)
    deployment.canary(model(2), rollout=QUICK)
    simulation.advance("2m")
    assert deployment.rollback().wait(60).traffic == {"v1.0.0": 100}


def test_labels_that_come_in_later_are_joined_by_the_requests_id(deployed):
    simulation, deployment = deployed()
    deployment.canary(model(1), rollout=cloudai.Rollout(steps=(50, 100), bake="20m"), guards=[cloudai.Guard(watch="accuracy")])
    simulation.advance("10m")
    driver = registry.telemetry_driver("simulated")
    samples = list(driver.samples("model", since=simulation.now - timedelta(minutes=8), limit=10**6))
    wrong = {"v1.0.0": 0, NEW: 0}
    labels = {}
    for sample in samples:
        right = sample.outputs["output"].argmax(axis=1)
        labels |= {
            key: int(1 - place) if sample.revision == NEW else int(place) for key, place in zip(sample.ids, right, strict=True)
        }
        wrong[sample.revision] += len(sample.ids)
    assert deployment.label(labels) == sum(wrong.values()) > 1000
    simulation.advance("1m")
    deployment.refresh()
    assert "100.0% of its predictions with a label are wrong, 0.0% of the stable one's" in str(deployment)
    with pytest.raises(SpecError, match="no rollout by itself"):
        deployment.label(labels)


def test_a_rollout_that_begins_is_said_at_once(deployed):
    _, deployment = deployed()
    deployment.canary(model(1), guards=[cloudai.Guard(watch="errors")])
    assert ("rollout", "about to begin") in deployment.card().facts
    with pytest.raises(SpecError, match="is on trial already"):
        deployment.canary(model(2), rollout=QUICK)


def test_what_cannot_be_done_is_said_at_once(deployed):
    _, deployment = deployed()
    for asked, message in [
        (lambda: deployment.canary(model(1), 10, rollout=QUICK), "two things"),
        (lambda: deployment.canary(rollout=QUICK), "no canary whose share"),
        (lambda: deployment.canary(model(1), rollout=cloudai.Rollout(shadow=10)), "cannot mirror"),
        (lambda: deployment.canary(model(1), rollout=cloudai.Rollout(sticky="x-user")), "cannot keep requests"),
        (deployment.resume, "no rollout by itself"),
    ]:
        with pytest.raises(SpecError, match=message):
            asked()
    assert deployment.progress is None


def counter(name, value, **labels):
    return Metric(name, value, labels)


def test_what_a_router_counts():
    counts = read_counts(
        [
            *(
                counter("cloudai_requests_total", n, revision="a", code=code)
                for code, n in {"200": 90, "500": 3, "429": 2}.items()
            ),
            *(counter("cloudai_requests_total", n, revision="a", code=code) for code, n in {"400": 4, "499": 1}.items()),
            counter("cloudai_requests_total", 7, revision="", code="503"),
            counter("cloudai_request_duration_seconds_bucket", 60, revision="a", le="0.1"),
            counter("cloudai_request_duration_seconds_bucket", 100, revision="a", le="+Inf"),
        ]
    )
    assert counts == {"a": Counts(100, errors=9, failed=5, slower={0.1: 40})}


def test_what_came_since_and_a_router_that_began_anew():
    before, now = Counts(100, 5, 5, slower={0.1: 10}), Counts(150, 6, 6, slower={0.1: 12})
    assert now.since(before) == Counts(50, 1, 1, slower={0.1: 2})
    assert Counts(20, 1, 1, slower={0.1: 2}).since(before) == Counts(20, 1, 1, slower={0.1: 2})


def test_what_broke_off_at_once_is_one_event():
    before, now = Counts(100), Counts(140, 9, 9, broken=8)
    assert now.since(before) == Counts(33, 2, 2, broken=1)


def test_where_one_server_keeps_fewer_rows_as_many_of_the_others_are_left_aside():
    """Else the kept rows would not be in the proportion by which requests were dealt."""
    split, now = Split("v1", canary="v2", percent=50), 1000.0
    columns = {"y": np.zeros(2000)}
    samples = [
        Sample("v1", np.full(2000, now - 5), tuple(f"a{n}" for n in range(2000)), {}, columns),
        Sample("v2", np.full(2000, now - 5), tuple(f"b{n}" for n in range(2000)), {}, columns),
    ]

    class Busy:
        name, capabilities = "busy", Capabilities(telemetry=True)
        check = offers = close = lambda self, *args, **more: []

        def metrics(self, name, *, since):
            return [counter("ml_samples_share", share, version=version) for version, share in (("1", 0.25), ("2", 1.0))]

        def samples(self, name, *, since, limit):
            return samples

    drivers.register("busy", Busy)
    record = Record("deployment", "m", "ready", {"on": "busy"}, {}, {}, 0, 0, 1)
    found = DeploymentStatus("m", "", True, (RevisionStatus(RevisionId("v1"), True, 1, 50),))
    progress = Progress("o", "baking", watches=(Watch(cloudai.Guard(watch="drift")),))
    seen, evidence = Evidence(0.0, stable=()).read(record, progress, 50, split, found, routed=True, now=now)
    assert len(seen.old_outputs["y"]) == 2000
    assert 400 < len(seen.new_outputs["y"]) < 600
    assert evidence.rows_until == now - 1


def test_a_driver_is_told_only_what_it_was_asked_for():
    split = Split("v1", canary="v2", percent=10)
    told = []

    class Driver:
        def route(self, name, traffic, **more):
            told.append((traffic, more))

    for routing in (Routing(split), Routing(split, sticky="x-user-id", shadow=20)):
        routing.apply(Driver(), "m")
    assert told == [({"v1": 90, "v2": 10}, {}), ({"v1": 90, "v2": 10}, {"sticky": "x-user-id", "shadow": {"v2": 20}})]
    up = [RevisionStatus(RevisionId("v1"), True, 1, 90), RevisionStatus(RevisionId("v2"), True, 1, 10, shadow=20)]
    found = DeploymentStatus("m", "", True, tuple(up), sticky="x-user-id")
    assert Routing(split, sticky="x-user-id", shadow=20).is_so(found)
    assert not Routing(split, sticky="x-user-id").is_so(found), "mirroring that nobody wants any more is ended"
    assert not Routing(split, shadow=20).is_so(found)
