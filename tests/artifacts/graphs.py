"""ONNX models made node by node, good ones and bad ones."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHT = np.arange(6, dtype="float32").reshape(2, 3)


def linear(*, batch="n", domain="", op="MatMul", opset=17, kind=TensorProto.FLOAT) -> onnx.ModelProto:
    """Return ``y = x · WEIGHT``, or something that is wrong in one way."""
    nodes = [helper.make_node(op, ["x", "w"], ["y"], domain=domain)]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", kind, [batch, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def beside(location: str) -> onnx.ModelProto:
    """Return a model that keeps its weights in another file."""
    model = linear()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return model
