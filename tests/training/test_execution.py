"""How a worker ends where something else than the user's code fails: it says why, or lets another attempt try."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import cloudai
from cloudai import settings
from cloudai.artifacts.store import Store
from cloudai.errors import IntegrityError, MissingExtraError, StoreError
from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import open_ledger
from cloudai.training import execution
from cloudai.training.context import Solo
from cloudai.training.job import FAILED, LOST, SUCCEEDED, RunFiles
from cloudai.training.stopping import Stop
from tests.flow import work

AWAY = StoreError("the store is away", fix="wait", temporary=True)


def function(context):
    context.report({"loss": 1.0})


@pytest.fixture
def spec(home, monkeypatch):
    """A run that is asked for and that nobody has begun."""
    monkeypatch.setattr("cloudai._api.ensure_supervisor", lambda home: None)
    monkeypatch.setattr("cloudai.state.handles.ensure_supervisor", lambda home: None)
    cloudai.train(work.network(), work.data(), name="module", epochs=1)
    cloudai.train(function, name="function")
    return lambda name: TrainSpec.model_validate(open_ledger().get("run", name).spec)


def execute(spec):
    code = execution.execute(spec, 1, Solo(), Stop())
    assert not [t for t in threading.enumerate() if t.name in ("cloudai-journal", "cloudai-heartbeat")], "closed"
    return code, RunFiles(spec).folder.read_json("error.json"), RunFiles(spec).folder.read_json("result.json")


def raises(error):
    def act(*args, **kwargs):
        raise error

    return act


def test_code_that_was_tampered_with_is_told(spec):
    asked = spec("function")
    path = Path(settings.current().store) / asked.work.code
    path.chmod(0o600)
    path.write_bytes(b"something else")
    code, error, _ = execute(asked)
    assert code == FAILED
    assert asked.work.code.split("/")[-1][:12] in error["what"]


@pytest.mark.parametrize(
    "error",
    [IntegrityError("the data is damaged", fix="x"), MissingExtraError("it needs s3fs", fix='pip install "cloudai[s3]"')],
)
def test_what_keeps_the_work_from_beginning_is_told_with_its_fix(spec, monkeypatch, error):
    monkeypatch.setattr(execution._Worker, "_data", raises(error))
    code, told, _ = execute(spec("module"))
    assert (code, told["what"], told["fix"]) == (FAILED, error.what, error.fix)


def test_a_store_that_is_away_lets_another_attempt_try(spec, monkeypatch):
    monkeypatch.setattr(execution._Worker, "_data", raises(AWAY))
    assert execute(spec("module")) == (LOST, None, None)


def test_a_store_that_goes_away_during_the_work_closes_the_journal(spec, monkeypatch):
    def goes(self):
        self._reported(7, {"loss": 1.0})
        raise AWAY

    monkeypatch.setattr(execution._Worker, "_work", goes)
    asked = spec("module")
    assert execute(asked) == (LOST, None, None)
    assert RunFiles(asked).folder.read_json("status.json")["step"] == 7, "what was reported is written"


def test_a_result_that_cannot_be_written_lets_another_attempt_try(spec, monkeypatch):
    write = Store.write_json

    def away(self, key, value):
        if key == "result.json":
            raise AWAY
        return write(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_json", away)
        assert execute(spec("module")) == (LOST, None, None)
    code, error, result = execute(spec("module"))
    assert (code, error) == (SUCCEEDED, None)
    assert result["model"]["version"]


def test_an_error_that_cannot_be_written_lets_another_attempt_try(spec, monkeypatch):
    monkeypatch.setattr(execution._Worker, "_work", raises(ValueError("wrong")))
    monkeypatch.setattr(Store, "create", raises(AWAY))
    assert execute(spec("module")) == (LOST, None, None)
