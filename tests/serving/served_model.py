"""A small model in a real server process: ``python served_model.py FACTOR OPTIONS-JSON``. The factor "plain" never fails."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.errors import RequestError
from cloudai.serving.server import ServerOptions, serve


class Scaler:
    """Gives ``y = factor · x[:, 0]`` and counts the rows; ``x[0, 1]`` says how long it takes, or how it fails."""

    name = "scaler"
    version = "1.2.0"
    signature = Signature(
        (TensorSpec("x", "float32", (-1, 2)),), (TensorSpec("y", "float32", (-1,)), TensorSpec("row", "int64", (-1,)))
    )

    def __init__(self, factor):
        self.factor = factor

    def infer(self, inputs):
        x = inputs["x"]
        how = 0.0 if self.factor is None else float(x[0, 1])
        if how > 0:
            time.sleep(how)
        if how == -1:
            raise ValueError(f"secret {x.tolist()}")
        if how == -2:
            sys.exit(7)
        if how == -4:
            raise RequestError("x is out of the model's range", fix="give an x below 100")
        y = np.full(len(x), np.nan, "float32") if how == -3 else (self.factor or 1) * x[:, 0]
        x *= 0  # a model may do so: the kept samples must not care
        return {"y": y[1:] if how == -5 else y, "row": np.arange(len(x))}


if __name__ == "__main__":
    serve(Scaler(None if sys.argv[1] == "plain" else np.float32(sys.argv[1])), ServerOptions.of(**json.loads(sys.argv[2])))
