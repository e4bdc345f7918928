"""A model in parts: the same training as with whole copies, and a state that any number of workers can read."""

from __future__ import annotations

import json
import socket

import pytest
import torch
from torch import nn

from cloudai.training.context import Solo
from cloudai.training.ranks import RayGroup


class OneGroup(RayGroup):
    """What RayGroup does, where torch knows the ranks and Ray has not started them."""

    def __init__(self, strategy):
        self._dist, self._strategy, self._sharding = torch.distributed, strategy, None
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)))


def train(group, module, steps, states=None):
    """Train on rows that are shared out, and return the whole states and the whole module."""
    wrapped = group.wrap(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, fused=True)
    if states:
        group.load(module, optimizer, *states)
    generator = torch.Generator().manual_seed(1)
    rows, targets = torch.randn(64, 8, generator=generator), torch.randint(0, 4, (64,), generator=generator)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        mine = slice(group.rank, None, group.world_size)
        nn.functional.cross_entropy(wrapped(rows[mine]), targets[mine]).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return group.state(module, optimizer), group.whole(module)


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def begin(rank, world_size, port):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    threads = torch.get_num_threads()
    begin(0, 1, free_port())
    yield
    torch.distributed.destroy_process_group()
    torch.set_num_threads(threads)


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)


def test_parts_train_as_the_whole_does_and_come_back(alone):
    _, wanted = train(Solo(), network(), 4)
    _, found = train(OneGroup("fsdp"), network(), 4)
    assert type(found) is nn.Sequential
    assert all(type(tensor) in (torch.Tensor, nn.Parameter) for tensor in found.state_dict().values())
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor)
    halfway, _ = train(OneGroup("fsdp"), network(), 2)
    _, resumed = train(OneGroup("fsdp"), network(), 2, halfway)
    assert equal(resumed.state_dict(), found.state_dict())


def test_the_state_is_plain_and_has_the_names_of_the_module(alone):
    (model, optimizer), whole = train(OneGroup("fsdp"), network(), 1)
    assert set(model) == set(network().state_dict())
    assert {type(tensor) for tensor in model.values()} == {torch.Tensor}
    assert set(optimizer["state"]) == {name for name, _ in network().named_parameters()}
    fresh = network()
    fresh.load_state_dict(model)
    assert equal(fresh.state_dict(), whole.state_dict())


def test_a_module_without_weights_is_left_as_it_is(alone):
    module = nn.ReLU()
    assert OneGroup("fsdp").wrap(module) is module


def rank(index, world_size, port, strategy, path):
    begin(index, world_size, port)
    (model, _), _ = train(OneGroup(strategy), network(), 6)
    halfway, _ = train(OneGroup(strategy), network(), 3)
    shared = [halfway if index == 0 else None]
    torch.distributed.broadcast_object_list(shared)
    (again, _), _ = train(OneGroup(strategy), network(), 3, shared[0])
    if index == 0:
        weights = {name: tensor.double().flatten().tolist() for name, tensor in model.items()}
        path.write_text(json.dumps([weights, strategy == "ddp" or equal(model, again)]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_hold_half_each_and_train_as_two_copies_do(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    found = {}
    for strategy in ("ddp", "fsdp"):
        torch.multiprocessing.spawn(rank, (2, free_port(), strategy, tmp_path / strategy), nprocs=2)
        found[strategy], exact = json.loads((tmp_path / strategy).read_text())
        assert exact, "a sharded training that came back from its state ended elsewhere"
    for name, weights in found["ddp"].items():
        torch.testing.assert_close(torch.tensor(found["fsdp"][name]), torch.tensor(weights))
