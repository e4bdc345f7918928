"""Models of every kind, each in a real server process."""

from __future__ import annotations

import json

import numpy as np

from cloudai import Model
from cloudai.drivers.samples import read_samples
from cloudai.serving import client
from tests.artifacts import classifiers, graphs


def serve(start, model):
    argv = ["-m", "cloudai.serving.server", "--model", model.uri, "--digest", model.digest]
    folder = start.root / model.name
    return start._start(folder, "server.json", [*argv, "--state", str(folder), "--drain-delay", "0"]).wait_until_ready()


def test_an_onnx_model_over_http(home, start):
    model = Model.from_onnx(graphs.linear().SerializeToString(), name="linear")
    server = serve(start, model)
    rows = np.arange(8, dtype="float32").reshape(4, 2)
    answers = client.predict(f"http://127.0.0.1:{server.port}", "linear", {"x": rows})
    assert np.allclose(answers["y"], rows @ graphs.WEIGHT)


def test_a_classifier_of_texts_over_http(home, start):
    source = (classifiers.model("neg", "pos"), classifiers.tokenizer())
    model = Model.from_transformers(source, name="mood")
    server = serve(start, model)
    assert server.get("/v2/models/mood").json["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    texts = ["a good film", "schön 🎉", "", "good " * 400]
    answers = client.predict(f"http://127.0.0.1:{server.port}", "mood", {"text": np.array(texts, dtype=object)})
    expected = model.predict(texts)
    assert answers["label"].tolist() == expected["label"].tolist()
    assert np.allclose(answers["scores"], expected["scores"], atol=1e-6)
    server.post("/internal/flush")
    (block,) = read_samples(server.folder / "samples", 0.0, 100)
    assert block.inputs["text"].tolist() == texts
    for data, what in ((["\ud800"], "half a character"), ([7], "integers"), ([], "empty")):
        body = json.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(data)], "data": data}]})
        answer = server.post("/v2/models/mood/infer", body)
        assert answer.status == 400
        assert what in answer.json["error"]
    bad = b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["\xff\xfe"]}]}'
    assert server.post("/v2/models/mood/infer", bad).status == 400
