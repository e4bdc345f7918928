"""What fits on a cluster, what must wait, and what never will."""

from __future__ import annotations

import pytest

from cloudai.drivers.capacity import Fit, Node, fit, nodes_of, room, share_of
from cloudai.drivers.protocols import Needs

GIB = float(2**30)
NOW = 10_000.0


def node(cpus, used=0.0, gone_at=None, **more):
    return Node({"CPU": cpus, "memory": 4 * GIB, **more}, {"CPU": used}, gone_at)


def test_workers_are_counted_machine_by_machine():
    nodes = [node(3.0), node(3.0)]
    assert fit(nodes, Needs(cpus=2, workers=2), NOW) == Fit()
    found = fit(nodes, Needs(cpus=2, workers=3), NOW)
    assert found.why_not == "needs 3 × 2 cores, and the cluster (2 machines, together 6 cores, 8.0 GiB) has room for 2"
    assert not found.temporary


def test_what_others_use_may_be_free_soon():
    found = fit([node(2.0, used=1.0)], Needs(cpus=2), NOW)
    assert found.temporary
    assert "other work has taken too much" in found.why_not


@pytest.mark.parametrize(("since", "temporary"), [(60.0, True), (7200.0, False)])
def test_a_machine_that_was_lost_lately_may_come_back(since, temporary):
    nodes = [node(0.0), node(2.0, gone_at=NOW - since)]
    assert fit(nodes, Needs(cpus=2), NOW).temporary is temporary


def test_memory_accelerators_and_their_type_count():
    nodes = [node(8.0, GPU=2.0, **{"accelerator_type:A100": 1.0})]
    assert fit(nodes, Needs(gpus=1, gpu_type="A100", workers=2), NOW) == Fit()
    assert "GPU" in fit(nodes, Needs(gpus=3), NOW).why_not
    assert "H100" in fit(nodes, Needs(gpus=1, gpu_type="H100"), NOW).why_not
    assert fit(nodes, Needs(memory=int(5 * GIB)), NOW).why_not
    assert fit([], Needs(), NOW).why_not == "needs 1 × 1 core, and the cluster (0 machines, together 0 cores) has room for 0"


def test_tenths_of_cores_add_up():
    assert room([{"CPU": 1.0}], share_of(Needs(cpus=0.1))) == 10


def test_nodes_are_read_as_ray_lists_them():
    listed = [
        {"node_id": "a", "state": "ALIVE", "resources_total": {"CPU": 2.0}, "end_time_ms": 0},
        {"node_id": "b", "state": "DEAD", "resources_total": {"CPU": 4.0}, "end_time_ms": 9_000_000},
    ]
    alive, gone = nodes_of(listed, {"a": {"CPU": [1.5, 2.0]}})
    assert (alive.free, alive.gone_at) == ({"CPU": 0.5}, None)
    assert gone.gone_at == 9000.0
