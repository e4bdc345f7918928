"""The main job with everything on S3: data, checkpoints, model; with faults, a kill, and no secret left anywhere."""

from __future__ import annotations

import io
import os
import time

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch

import cloudai
from cloudai import errors
from tests.conftest import kill, wait_until
from tests.flow import work
from tests.s3 import CANARY

INPUTS, TARGETS = work.data()
NAMES = [f"x{i}" for i in range(INPUTS.shape[1])]


@pytest.fixture
def store(home, bucket, monkeypatch):
    monkeypatch.setenv("CLOUDAI_STORE", f"{bucket}/team")
    return bucket


@pytest.fixture
def files(store):
    fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    text = pd.DataFrame(INPUTS, columns=NAMES).assign(label=TARGETS).to_csv(index=False)
    fs.pipe_file(f"{store}/in/train.csv", text.encode())
    return fs


def test_from_data_on_s3_to_a_decision(home, store, files, s3):
    table = cloudai.Table(f"{store}/in/*.csv", target="label")
    plan = cloudai.plan(work.network(), table, name="digits", epochs=3)
    assert plan.estimate.low is None
    run = plan.apply().wait(90)
    assert run.status.total_steps == run.status.step
    model = run.model
    assert model.uri == f"{store}/team/models/sequential/1.0.0"
    assert model.features == tuple(NAMES)
    assert model.lineage["data"] == run.spec.work.source.digest
    in_memory = cloudai.train(work.network(), (pd.DataFrame(INPUTS, columns=NAMES), TARGETS), epochs=3).wait(90)
    assert work.weights(in_memory) == work.weights(run), "read from a file or given in memory: the same weights"

    deployment = cloudai.deploy(model, name="digits").wait(60)
    assert np.allclose(deployment.predict(INPUTS[:3]), model.predict(INPUTS[:3]), atol=1e-5)
    watch = cloudai.monitor(deployment)
    moved = watch.check(INPUTS[:600] + 3)
    assert (watch.check(INPUTS[:600]).state, moved.state) == ("no drift", "drift")
    assert cloudai.load_model("sequential@1.0.0").verify().digest == model.digest
    shown = "".join(str(thing) for thing in (run, model, deployment, watch, cloudai.settings.current(), cloudai.ps()))
    shown += "".join(run.logs())
    cloudai.cleanup().apply()
    kept = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
    kept += [files.cat_file(path) for path in files.find(store)]
    assert len(kept) > 15
    assert not any(CANARY.encode() in data for data in (*kept, shown.encode()))


def test_a_killed_worker_comes_back_from_s3_with_the_same_weights_though_s3_fails_now_and_then(store, s3):
    calm = cloudai.train(work.network(), work.data(), name="calm", epochs=40)
    run = cloudai.train(work.network(), work.data(), name="killed", epochs=40)
    wait_until(lambda: run.refresh() or run.status.checkpoint, what="a checkpoint on S3")
    s3.fail(503, until=time.monotonic() + 4, path="killed")
    s3.fail("half", until=time.monotonic() + 4, path="killed")
    kill(run.status.pid)
    run = cloudai.attach("run/killed")
    wait_until(lambda: s3.failed > 5, what="faults")
    run.wait(120)
    calm.wait(120)
    assert (run.status.attempt, run.exact) == (2, True)
    assert run.status.resumed_from is not None
    assert work.weights(run) == work.weights(calm)
    assert run.history("loss") == calm.history("loss")


@pytest.mark.slow
def test_a_training_outlives_a_store_that_is_away(store, s3):
    """S3 is away from the middle to the end: the run goes on, waits, and ends well."""
    run = cloudai.train(work.network(), work.data(), name="away", epochs=100)
    wait_until(lambda: run.refresh() or run.status.checkpoint, what="a checkpoint on S3")
    fault = s3.fail("cut", path="away")
    s3.fail("cut", path="models")
    time.sleep(8)
    assert s3.failed > 3
    assert fault.times < 1_000_000
    s3.mend()
    run.wait(120)
    assert run.status.attempt == 1
    assert work.weights(run)


@pytest.mark.slow
def test_a_worker_without_credentials_says_whose_environment_it_has(home, bucket, files, monkeypatch):
    """The supervisor was started before the notebook had any; the store is local, only the data is on S3."""
    monkeypatch.delenv("CLOUDAI_STORE")
    given = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    for name in given:
        monkeypatch.delenv(name)
    cloudai.train(torch.nn.Linear(2, 2), (np.zeros((8, 2)), [0, 1] * 4), epochs=1).wait(60)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    run = cloudai.train(work.network(), cloudai.Table(f"{bucket}/in/train.csv", target="label"), epochs=1)
    with pytest.raises(
        errors.RunFailedError, match=r"(?s)there are no credentials for s3://.*the environment in which"
    ) as caught:
        run.wait(60)
    assert run.status.attempt == 1
    assert str(caught.value).count("\n") == 1


def test_mistakes_are_said_at_once(home, s3, bucket, monkeypatch):
    row = (np.zeros((4, 16), dtype="float32"), [0, 1, 2, 3])
    monkeypatch.setenv("CLOUDAI_STORE", "s3://there-is-none/x")
    with pytest.raises(errors.StoreError, match="there is no bucket for s3://there-is-none/x"):
        cloudai.train(work.network(), row)
    monkeypatch.setenv("CLOUDAI_STORE", f"{bucket}/x")
    s3.fail(403)
    with pytest.raises(errors.StoreError, match="does not accept the credentials"):
        cloudai.train(work.network(), row)
    with pytest.raises(errors.StoreError, match="does not accept the credentials"):
        cloudai.load_model(f"{bucket}/models/a")
    s3.mend()
    with pytest.raises(errors.NotFoundError, match="there is no model in s3"):
        cloudai.load_model(f"{bucket}/models/a")
    with pytest.raises(errors.DataError, match="has no column 'labl'"):
        fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"{bucket}/t.csv", b"a,label\n1,0\n")
        cloudai.train(torch.nn.Linear(1, 2), cloudai.Table(f"{bucket}/t.csv", target="labl"))
    assert len(cloudai.ps()) == 0


def test_data_that_changed_ends_the_run_in_two_lines(home, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,label\n" + "1,0\n2,1\n" * 50)
    plan = cloudai.plan(torch.nn.Linear(1, 2), cloudai.Table(path, target="label"), name="changed")
    path.write_text("a,label\n" + "1,0\n2,1\n" * 60)
    with pytest.raises(errors.RunFailedError, match=r"t.csv was changed since the run was asked for\nFix: train again"):
        plan.apply().wait(60)


def test_classes_beyond_the_outputs_are_told_by_the_worker(home, tmp_path):
    path = tmp_path / "t.parquet"
    buffer = io.BytesIO()
    pd.DataFrame({"a": [1.0, 2.0, 3.0], "label": [0, 1, 2]}).to_parquet(buffer)
    path.write_bytes(buffer.getvalue())
    run = cloudai.train(torch.nn.Linear(1, 2), cloudai.Table(path, target="label"))
    with pytest.raises(errors.RunFailedError, match="the targets go from 0 to 2, the module has scores for classes 0 to 1"):
        run.wait(60)
