"""The tasks of models on texts, on real processes: train, be killed, come back, serve."""

from __future__ import annotations

import json

import numpy as np
import pytest

import cloudai
from tests.conftest import kill, wait_until
from tests.training.test_tasks import OPTIONS, WORK

ASKED = {
    "token-classification": ["Ada lives in New York .", ""],
    "question-answering": {"question": ["where does Ada live"], "context": ["Ada lives in Rome ."]},
    "causal-lm": ["one two", "three"],
    "embeddings": ["Ada 3", "Rome 3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("task", WORK)
def test_a_task_from_call_to_service_with_a_kill_on_the_way(home, task):
    work, data = (make() for make in WORK[task])
    options = {**OPTIONS, "epochs": 25, "task": task, "model_name": "m", "lease": "5m", "lora": cloudai.Lora(dropout=0.1)}
    options["checkpoint"] = cloudai.CheckpointPolicy.of(every=0.5)
    calm = cloudai.train(work, data, name="calm", **options).wait(180)
    run = cloudai.train(work, data, name="killed", **options)
    wait_until(lambda: run.refresh() or (run.status.checkpoint or 0) > 0, timeout=120, what="a checkpoint")
    kill(run.status.pid)
    run.wait(180)
    assert run.status.attempt == 2
    assert run.exact
    assert run.model.file("model.safetensors") == calm.model.file("model.safetensors")
    deployment = cloudai.deploy(run).wait(120)
    answers, expected = deployment.predict(ASKED[task]), cloudai.load_model("m").predict(ASKED[task])
    if task == "embeddings":
        assert np.allclose(answers, expected, atol=1e-5)
    elif task == "question-answering":
        assert answers["answer"].tolist() == expected["answer"].tolist()
        assert answers["start"].tolist() == expected["start"].tolist()
        assert np.allclose(answers["score"], expected["score"], atol=1e-5)
    elif task == "causal-lm":
        assert answers.tolist() == expected.tolist()
    else:
        assert [_places(row) for row in answers] == [_places(row) for row in expected]


def _places(entities: str) -> list[tuple[str, int, int]]:
    return [(entity["label"], entity["start"], entity["end"]) for entity in json.loads(entities)]
