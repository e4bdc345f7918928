"""Real runs and a real deployment, shared by the tests of a module."""

from __future__ import annotations

import contextlib

import numpy as np
import psutil
import pytest
import torch

import cloudai
from cloudai import settings
from cloudai.drivers import registry
from tests.conftest import processes_of
from tests.flow.work import recorded_model


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory):
    """As `home`, for all tests of a module."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in settings.NAMES:
            patch.delenv(f"CLOUDAI_{name.upper()}", raising=False)
        patch.setenv("CLOUDAI_HOME", str(folder))
        patch.setenv("CLOUDAI_TRACKING", "none")
        patch.setenv("CLOUDAI_SUPERVISOR_IDLE", "5s")
        patch.setenv("CLOUDAI_LOCAL_PRICE_PER_HOUR", "0.05")
        registry.get.cache_clear()  # the local driver remembers its home
        yield folder
        cloudai.cleanup().apply()
        registry.get.cache_clear()
    for process in processes_of(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture(scope="module")
def deployment(shared_home):
    """A deployment with a canary that has a fifth of the traffic."""
    rows = np.random.default_rng(0).normal(size=(200, 16)).astype("float32")
    first, second = (
        recorded_model(torch.nn.Linear(16, 4), rows, name="digits", run=run) for run in ("first-training", "second-training")
    )
    made = cloudai.deploy(first, name="digits", lease="10m")
    return made.canary(second, percent=20)
