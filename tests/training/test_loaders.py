"""A loader that comes back: each row once an epoch, the same chance wherever and whenever a row is loaded."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from cloudai.errors import DataError
from cloudai.training.loaders import Loader


class Augmented(Dataset):
    """Rows that draw from every source of chance that there is."""

    def __len__(self):
        return 23

    def __getitem__(self, row):
        return torch.tensor([row, random.random(), np.random.random(), float(torch.rand(()))])  # noqa: NPY002


def loader(**options):
    return Loader(Augmented(), **{"batch_size": 4, "seed": 5, **options})


def epochs(of, count):
    return [batch for _ in range(count) for batch in of]


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("after", [1, 5, 7])
def test_interrupted_anywhere_the_rest_is_the_same(processes, after):
    calm = epochs(loader(), 2)
    first, seen = loader(num_workers=processes), []
    for batch in first:
        seen.append(batch)
        if len(seen) == after:
            break
    if after > 5:
        seen += [batch for _, batch in zip(range(after - 5), first, strict=False)]
    torch.manual_seed(after)
    second = loader(num_workers=processes)
    second.load_state_dict(first.state_dict())
    assert second.step == len(seen)
    rest = epochs(second, 2 - second.epoch)
    assert len(seen + rest) == 10
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen + rest, calm, strict=True))


def test_each_epoch_has_its_own_order_and_draws():
    both = epochs(loader(), 2)
    one, two = torch.cat(both[:5]), torch.cat(both[5:])
    assert len(set(one[:, 0].tolist())) == 20
    assert not torch.equal(one[:, 0], two[:, 0])
    assert not set(one[:, 1].tolist()) & set(two[:, 1].tolist())


def test_the_training_draws_as_if_there_were_no_loader():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    drawn = [torch.rand(()) for _ in zip(range(3), loader(), strict=False)]
    assert torch.equal(torch.stack(drawn), expected)


def test_workers_share_each_batch():
    ranks = [torch.cat(epochs(loader(rank=rank, world_size=2), 1))[:, 0].tolist() for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 10
    assert not set(ranks[0]) & set(ranks[1])


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(9))


@pytest.mark.parametrize("dataset", [Endless(), iter([1]), [1, 2, 3]])
def test_what_cannot_be_found_again_is_refused(dataset):
    with pytest.raises(DataError, match=r"no rows that can be counted|cannot be divided"):
        Loader(dataset, batch_size=4, seed=0)
