"""A model that writes or embeds texts in a real server process: ``python served_writer.py KIND OPTIONS-JSON``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from cloudai.artifacts.signature import Signature
from cloudai.artifacts.text_files import TextServable
from cloudai.serving.server import ServerOptions, serve

sys.path.insert(0, str(Path(__file__).parents[2]))  # it runs as a script, where only its own folder is looked into

from tests.serving import writers


def led(model, pause):
    """Return a model that fails on the prompt ``!!`` (their token is 1), and waits in each step as long as a file says."""
    forward = model.model.forward

    def led_forward(*args, input_ids, **kwargs):
        if pause.exists():
            time.sleep(float(pause.read_text()))
        if input_ids.tolist() == [[1, 1]]:
            raise RuntimeError("secret of the model")
        return forward(*args, input_ids=input_ids, **kwargs)

    model.model.forward = led_forward
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = ServerOptions.of(**json.loads(sys.argv[2]))
    model = writers.embedder() if sys.argv[1] == "embedder" else led(writers.writer(), options.state / "pause")
    serve(TextServable("tiny", "1.0.0", Signature(model.input_specs, model.outputs), model), options)
