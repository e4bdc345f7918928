"""Models that MLflow itself has logged, in its own registry."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cloudai import Model, errors
from tests.artifacts import classifiers, graphs

X = np.arange(6, dtype="float32").reshape(3, 2)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Return the tracking URI of a registry with models of several flavors."""
    mlflow = pytest.importorskip("mlflow")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    experiment = client.create_experiment("e", artifact_location=str(folder / "artifacts"))
    import mlflow.onnx
    import mlflow.pytorch
    import mlflow.transformers

    text = {"model": classifiers.model("neg", "pos"), "tokenizer": classifiers.tokenizer()}
    with mlflow.start_run(experiment_id=experiment) as run:
        options = {"pip_requirements": ["numpy"]}
        mlflow.onnx.log_model(graphs.linear(), name="model", registered_model_name="linear", **options)
        mlflow.transformers.log_model(text, name="text", task="text-classification", registered_model_name="mood", **options)
        pickled = {"serialization_format": "pickle"}
        mlflow.pytorch.log_model(torch.nn.Linear(2, 2), name="net", registered_model_name="net", **pickled, **options)
    client.set_registered_model_alias("linear", "champion", "1")
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    return uri, run.info.run_id


def test_an_onnx_model_by_version_alias_and_run(home, registry):
    tracking, run = registry
    for place, uri in enumerate(("models:/linear/1", "models:/linear@champion", f"runs:/{run}/model")):
        model = Model.from_mlflow(uri, name=f"linear-{place}", tracking=tracking)
        assert np.allclose(model.predict(X), X @ graphs.WEIGHT)
        assert model.lineage["source"].startswith(f"MLflow {uri} m-")


def test_a_classifier_of_texts(home, registry):
    model = Model.from_mlflow("models:/mood/1", name="mood", tracking=registry[0], data=classifiers.TEXTS)
    given = Model.from_transformers((classifiers.model("neg", "pos"), classifiers.tokenizer()), name="given")
    assert np.array_equal(model.predict(classifiers.TEXTS)["scores"], given.predict(classifiers.TEXTS)["scores"])
    assert model.labels == ("neg", "pos")


def test_a_pickled_module_is_refused_and_told_how_to_be_logged(home, registry, monkeypatch):
    def unpickled(*args, **kwargs):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(pickle, "load", unpickled)
    monkeypatch.setattr(pickle, "loads", unpickled)
    monkeypatch.setattr(torch, "load", unpickled)
    with pytest.raises(errors.IntegrityError, match="as pytorch, which may hold a pickle") as caught:
        Model.from_mlflow("models:/net/1", name="net", tracking=registry[0])
    assert "mlflow.onnx.log_model" in caught.value.fix
    assert not (home / "store").exists()


@pytest.mark.parametrize("uri", ["models:/none/1", "models:/linear/9", "models:/linear@nobody", f"runs:/{'0' * 32}/model"])
def test_what_is_not_there(home, registry, uri):
    with pytest.raises(errors.NotFoundError, match="MLflow has no model") as caught:
        Model.from_mlflow(uri, name="m", tracking=registry[0])
    assert len(str(caught.value).split("\n")) == 2


def test_wrong_addresses_and_no_mlflow(home):
    for uri in ("linear", "s3://bucket/model", "models:/a b", 7):
        with pytest.raises(errors.SpecError, match="no address"):
            Model.from_mlflow(uri, name="m")
    with pytest.raises(errors.SpecError, match="tracking is 'none'"):
        Model.from_mlflow("models:/linear/1", name="m")


def test_an_mlflow_that_does_not_answer_is_no_secret_told(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(errors.DriverError, match="does not give") as caught:
        Model.from_mlflow("models:/linear/1", name="m", tracking="http://user:hunter2@127.0.0.1:1")
    assert "hunter2" not in str(caught.value)


def test_a_description_that_reaches_outside_is_refused(home, registry, tmp_path, monkeypatch):
    import mlflow.artifacts

    (tmp_path / "evil").mkdir()
    (tmp_path / "model.onnx").write_bytes(graphs.linear().SerializeToString())
    (tmp_path / "evil" / "MLmodel").write_text("flavors: {onnx: {data: ../model.onnx}}")
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda *args, **kwargs: str(tmp_path / "evil"))
    with pytest.raises(errors.IntegrityError, match="outside of its folder"):
        Model.from_mlflow("models:/linear/1", name="m", tracking=registry[0])
    (tmp_path / "evil" / "MLmodel").write_text("!!python/object/apply:os.system ['touch run']")
    with pytest.raises(errors.IntegrityError, match="damaged"):
        Model.from_mlflow("models:/linear/1", name="m", tracking=registry[0])
    Path(tmp_path / "evil" / "MLmodel").unlink()
    with pytest.raises(errors.NotFoundError, match="no model that MLflow saved"):
        Model.from_mlflow("models:/linear/1", name="m", tracking=registry[0])
