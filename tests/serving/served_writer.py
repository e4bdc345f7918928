"""A model that writes or embeds texts in a real server process: ``python served_writer.py KIND OPTIONS-JSON``."""

from __future__ import annotations

import json
import sys
import time

import torch

from cloudai.artifacts.signature import Signature
from cloudai.artifacts.text_files import TextServable
from cloudai.serving.server import ServerOptions, serve
from tests.serving import writers


def slowed(model, seconds):
    """Return a model each of whose steps takes longer, so that there is time to do something meanwhile."""
    forward = model.model.forward

    def slow(*args, **kwargs):
        time.sleep(seconds)
        return forward(*args, **kwargs)

    model.model.forward = slow
    return model


def failing(model):
    """Return a model that cannot take the letter ``!`` (its token is 1)."""
    forward = model.model.forward

    def fail(*args, input_ids, **kwargs):
        if bool((input_ids == 1).any()):
            raise RuntimeError("secret of the model")
        return forward(*args, input_ids=input_ids, **kwargs)

    model.model.forward = fail
    return model


KINDS = {
    "writer": writers.writer,
    "silent": lambda: writers.writer(chat_template=None),
    "slow": lambda: slowed(writers.writer(), 0.02),
    "stuck": lambda: slowed(writers.writer(), 1.0),
    "failing": lambda: failing(writers.writer()),
    "embedder": writers.embedder,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    model = KINDS[sys.argv[1]]()
    signature = Signature(model.input_specs, model.outputs)
    serve(TextServable("tiny", "1.0.0", signature, model), ServerOptions.of(**json.loads(sys.argv[2])))
