"""What the supervisor does where the store fails: it waits where that helps, and says what to do where it does not."""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest

import cloudai
from cloudai import _api
from cloudai.state.ledger import open_ledger
from cloudai.training import advance
from cloudai.training.job import RunFiles
from tests.flow import work


@pytest.fixture
def queued(home, bucket, monkeypatch):
    """A run that nobody has begun, and a supervisor's look at it that does not wait long."""
    monkeypatch.setenv("CLOUDAI_STORE", bucket)
    monkeypatch.setattr(_api, "ensure_supervisor", lambda home: None)
    monkeypatch.setattr("cloudai.state.handles.ensure_supervisor", lambda home: None)
    monkeypatch.setattr(advance, "RunFiles", functools.partial(RunFiles, patience=0.0))
    cloudai.train(work.network(), (np.zeros((4, 16), dtype="float32"), [0, 1, 2, 3]), name="queued")
    return open_ledger()


def test_a_store_that_is_away_keeps_the_run_waiting(queued, s3):
    s3.fail(503)
    for _ in range(2):
        advance.advance(queued, queued.get("run", "queued"))
    record = queued.get("run", "queued")
    assert record.phase == "queued"
    assert "is not answering properly" in record.status["store"]
    assert len([event for event in queued.events("run", "queued") if "waiting" in event.what]) == 1
    s3.mend()
    assert "is not answering" in cloudai.attach("run/queued").status.reason
    advance.advance(queued, queued.get("run", "queued"))
    assert queued.get("run", "queued").phase == "starting"
    cloudai.attach("run/queued").cancel()
    advance.advance(queued, queued.get("run", "queued"))


def test_a_store_that_does_not_let_the_supervisor_in_rejects_it_and_says_whose_environment_counts(queued, s3):
    s3.fail(403)
    advance.advance(queued, queued.get("run", "queued"))
    record = queued.get("run", "queued")
    assert record.phase == "rejected"
    assert "does not accept the credentials" in record.status["reason"]
    assert f"kill {os.getpid()}" in record.status["fix"]
