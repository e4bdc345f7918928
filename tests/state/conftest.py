"""Every test of the ledger runs on both of its databases."""

from __future__ import annotations

import pytest

from cloudai.state.ledger import Ledger
from tests.disks import disk  # noqa: F401

BOTH = ("sqlite", "postgres")


@pytest.fixture(params=BOTH)
def url(request):
    """The address of a new database; empty for SQLite."""
    return request.getfixturevalue("postgres").database() if request.param == "postgres" else ""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / "ledger.sqlite"


@pytest.fixture
def ledger(path, url):
    return Ledger(path, url=url)


@pytest.fixture
def linear():
    """Work and data that `cloudai.train` takes."""
    import torch

    return torch.nn.Linear(4, 2), (torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64))
