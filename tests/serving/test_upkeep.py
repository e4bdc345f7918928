"""Replicas in a simulated cloud: they follow the load and the traffic, are paid for, and are replaced when they die."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import cloudai
from cloudai.drivers.protocols import Capabilities, DeploymentStatus, RevisionId, RevisionStatus
from cloudai.drivers.simulated import SimulatedDriver
from cloudai.errors import SpecError
from cloudai.serving.split import Split
from cloudai.serving.upkeep import Upkeep, next_change
from cloudai.specs.serving import AutoscalingPolicy
from cloudai.testing import Fate, Simulation, Traffic, World, Zone
from tests.flow import work

ROWS = np.zeros((50, 4), "float32")
ZONE = Zone.of(name="a", price=2.0, boot=10.0)


def model(run="first"):
    return work.recorded_model(torch.nn.Linear(4, 2), ROWS, name="small", run=run)


def simulation(*fates, per_minute=0):
    traffic = {"small": Traffic(ROWS, per_minute=per_minute)} if per_minute else {}
    return Simulation(World(zones=[ZONE], fates=fates), traffic=traffic)


def counts(deployment):
    deployment.refresh()
    return {row["id"]: row["ready_replicas"] for row in deployment.revisions}


def test_replicas_follow_the_load_and_so_does_the_price():
    policy = AutoscalingPolicy(max_replicas=5, target_ongoing_requests=4)
    with simulation(Fate.of(latency=0.5, boot=5), per_minute=1200) as cloud:  # 20 a second: 10 at any time
        deployment = cloudai.deploy(model(), on="simulated", autoscaling=policy).wait(600)
        cloud.advance("5m")
        assert counts(deployment) == {"v1.0.0": 3}
        assert "6.00 USD" in str(deployment.card())
        before, hours = deployment.cost.amount, 2
        cloud.advance(f"{hours}h")
        deployment.refresh()
        assert deployment.cost.amount - before == pytest.approx(3 * 2.0 * hours, rel=1e-6)
        assert deployment.cost.amount == pytest.approx(cloud.bill.total)


def test_one_that_nobody_asks_falls_asleep_and_costs_nothing_then():
    policy = AutoscalingPolicy(min_replicas=0, downscale_to_zero_delay="10m")
    with simulation(Fate.of(boot=5)) as cloud:
        deployment = cloudai.deploy(model(), on="simulated", autoscaling=policy, lease=None).wait(600)
        cloud.advance("9m")
        assert counts(deployment) == {"v1.0.0": 1}
        cloud.advance("2m")
        assert (counts(deployment), deployment.phase, deployment.traffic) == ({"v1.0.0": 0}, "ready", {"v1.0.0": 100})
        paid = cloud.bill.total
        cloud.advance("3h")
        deployment.refresh()
        assert (cloud.bill.total, deployment.cost.amount) == (paid, pytest.approx(paid))


def test_a_lease_ends_also_what_sleeps():
    policy = AutoscalingPolicy(min_replicas=0, downscale_to_zero_delay="1m")
    with simulation(Fate.of(boot=5)) as cloud:
        deployment = cloudai.deploy(model(), on="simulated", autoscaling=policy, lease="30m").wait(600)
        cloud.advance("5m")
        assert counts(deployment) == {"v1.0.0": 0}
        deployment.lease_seconds = None  # as if its holder were gone
        deployment._hold = lambda: None
        cloud.advance("1h")
        assert (deployment.refresh(), deployment.phase)[1] == "deleted"


def test_a_canary_has_replicas_of_its_own_and_enough_of_them_before_it_gets_all_traffic():
    policy = AutoscalingPolicy(max_replicas=6, target_ongoing_requests=2)
    with simulation(Fate.of(latency=0.5, boot=5), per_minute=1200) as cloud:
        deployment = cloudai.deploy(model(), on="simulated", autoscaling=policy).wait(600)
        cloud.advance("5m")
        assert counts(deployment) == {"v1.0.0": 5}
        deployment.canary(model("second"), percent=20).wait(600)
        cloud.advance("5m")
        assert counts(deployment) == {"v1.0.0": 4, "v1.0.1": 1}
        deployment.promote().wait(600)
        cloud.advance("5m")
        assert counts(deployment) == {"v1.0.0": 1, "v1.0.1": 5}


def test_another_number_is_kept_from_now_on():
    with simulation(Fate.of(boot=5)) as cloud:
        deployment = cloudai.deploy(model(), on="simulated").wait(600)
        assert deployment.scale(3).wait(600) is deployment
        assert counts(deployment) == {"v1.0.0": 3}
        assert "3 of each revision" in str(deployment.card())
        cloud.advance("5m")
        deployment.scale(AutoscalingPolicy(max_replicas=3)).wait(600)
        cloud.advance("5m")
        assert counts(deployment) == {"v1.0.0": 1}


def test_a_place_that_cannot_do_it_says_so_and_nothing_is_made(monkeypatch):
    with simulation():
        less = replace(SimulatedDriver.capabilities, autoscaling="no", scale_to_zero=False)
        monkeypatch.setattr(SimulatedDriver, "capabilities", less)
        for policy, said in (({"max_replicas": 2}, "runs one replica"), ({"min_replicas": 0}, "no deployment can sleep")):
            with pytest.raises(SpecError, match=said):
                cloudai.deploy(model(), on="simulated", autoscaling=AutoscalingPolicy(**policy))
        assert not cloudai.ps().entries


class Asked:
    """A place that is told how many replicas there should be, and remembers it."""

    name = "asked"

    def __init__(self, autoscaling="asked"):
        self.capabilities = Capabilities(serve=True, autoscaling=autoscaling)
        self.told = []

    def scale(self, name, revision, replicas):
        self.told.append((revision, replicas))


def found(replicas, ready, ongoing=0.0):
    revision = RevisionStatus(RevisionId("v1"), ready > 0, replicas, 100, ongoing=ongoing, ready_replicas=ready)
    return DeploymentStatus("d", "", True, (revision,))


def look(place, known, status, now, policy=None):
    upkeep = Upkeep(place, policy or AutoscalingPolicy.fixed(3), known)
    upkeep.tend("d", status, Split("v1"), now)
    return upkeep.to_json()


def test_what_is_as_it_should_be_is_left_alone():
    place = Asked()
    known = look(place, {}, found(3, 3), 0.0)
    assert look(place, known, found(3, 3), 1.0) == known
    assert place.told == []


def test_what_is_kept_to_go_back_to_sleeps_only_when_all_do():
    policy = AutoscalingPolicy(min_replicas=0, max_replicas=4, downscale_delay=10)
    place, rollout, known = Asked(), Split("v2", previous="v1"), {}
    for second in range(60):
        busy = 3.0 if second < 30 else 0.0
        rows = [(name, known.get(name, {"scale": {"replicas": 1}})["scale"]["replicas"]) for name in ("v1", "v2")]
        up = tuple(
            RevisionStatus(RevisionId(name), True, count, 0, ongoing=busy * (name == "v2"), ready_replicas=count)
            for name, count in rows
        )
        upkeep = Upkeep(place, policy, known)
        upkeep.tend("d", DeploymentStatus("d", "", True, up), rollout, float(second))
        known = upkeep.to_json()
        if second in (29, 59):
            assert {name: data["scale"]["replicas"] for name, data in known.items()} == dict.fromkeys(["v1", "v2"], second < 30)


def test_what_dies_again_and_again_is_replaced_more_and_more_slowly_and_the_rest_stays():
    place, known, started = Asked(), {}, []
    known = look(place, known, found(3, 2), 0.0)
    for second in range(1, 200):
        place.told.clear()
        known = look(place, known, found(2, 2), float(second))  # whatever is started has died by the next look
        assert place.told, "those that are ready must be let know of each time"
        started += [second] if ("v1", 3) in place.told else []
        assert set(place.told) <= {("v1", 3), ("v1", 2)}
    pauses = [b - a for a, b in itertools.pairwise(started)]
    assert pauses[:1] == [1]
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 60
    upkeep = Upkeep(place, AutoscalingPolicy.fixed(3), known)
    assert upkeep.trouble(found(2, 2)) == "v1 has 2 of 3 replicas: the others end by themselves"
    assert upkeep.trouble(found(3, 3)) == ""
    known = look(place, known, found(3, 3), 200.0)
    assert known["v1"]["deaths"] == 0


def test_a_place_that_scales_by_itself_is_told_nothing():
    place = Asked("own")
    assert look(place, {}, found(1, 0), 0.0) == {}
    assert place.told == []


def test_it_is_known_when_to_look_again():
    policy = AutoscalingPolicy(max_replicas=3, downscale_delay=60)
    known = look(Asked(), {}, found(1, 1, ongoing=24), 0.0, policy)
    assert next_change(policy, known) is None
    known = look(Asked(), known, found(3, 3, ongoing=1), 10.0, policy)
    assert next_change(policy, known) == 70.0
