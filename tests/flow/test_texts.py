"""The main job with texts, on real processes: train, be killed, come back, serve, watch."""

from __future__ import annotations

import numpy as np
import pytest

import cloudai
from tests.artifacts import classifiers
from tests.conftest import kill, wait_until

DATA = (classifiers.TEXTS * 40, classifiers.LABELS * 40)
OPTIONS = {"lr": 0.003, "epochs": 6, "batch_size": 8, "model_name": "mood", "lease": "5m"}


@pytest.mark.slow
def test_a_classifier_of_texts_from_call_to_watch(home, tmp_path):
    folder = str(classifiers.folder(tmp_path / "pretrained", "neg", "pos"))
    calm = cloudai.train(folder, DATA, name="calm", **OPTIONS).wait(180)
    run = cloudai.train(folder, DATA, name="killed", **OPTIONS)
    wait_until(lambda: run.refresh() or (run.status.checkpoint or 0) > 0, timeout=120, what="a checkpoint")
    kill(run.status.pid)
    run.wait(180)
    assert run.status.attempt == 2
    assert run.exact
    assert run.model.file("model.safetensors") == calm.model.file("model.safetensors")
    deployment = cloudai.deploy(run).wait(120)
    texts = ["so good", "so bad", "schön 🎉", ""]
    answers, expected = deployment.predict(texts), run.model.predict(texts)
    assert answers["label"].tolist() == expected["label"].tolist()
    assert answers["label"][:2].tolist() == ["pos", "neg"]
    assert np.allclose(answers["scores"], expected["scores"], atol=1e-5)
    monitor = cloudai.monitor(deployment)
    assert not monitor.check(DATA[0][:400]).drifted
    drifted = monitor.check([f"{text} and a long tail of words that nobody wrote before" for text in DATA[0][:400]])
    assert {finding.feature for finding in drifted.findings if finding.drifted} == {"text.characters", "text.words"}


@pytest.mark.slow
def test_two_workers_train_one_classifier(home, tmp_path):
    folder = str(classifiers.folder(tmp_path / "pretrained", "neg", "pos"))
    data = (classifiers.TEXTS * 6, classifiers.LABELS * 6)
    run = cloudai.train(folder, data, name="pair", lr=0.01, epochs=5, validation=0.2, num_workers=2, lease="5m").wait(220)
    assert run.exact
    assert run.model.predict(["so good", "so bad"])["label"].tolist() == ["pos", "neg"]
