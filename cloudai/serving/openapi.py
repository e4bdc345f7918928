"""The OpenAPI document of a model server, made from its models' signatures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cloudai import __version__
from cloudai.artifacts.signature import TEXT, Signature, TensorSpec
from cloudai.serving.protocol import datatype

__all__ = ["document"]

_REFUSALS = {
    "400": "The request is wrong; `fix` says how to mend it.",
    "401": "The token is missing or wrong.",
    "403": "The request names another host.",
    "404": "There is no such model or version.",
    "405": "This path takes another method.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is of another kind.",
    "429": "There is too much to do; `Retry-After` says when to come again.",
    "431": "The headers are too large.",
    "500": "The model failed.",
    "503": "The server is ending.",
    "504": "The answer took too long.",
}


def document(
    models: Iterable[tuple[str, str, Signature, Mapping[str, np.ndarray] | None]], *, needs_token: bool
) -> dict[str, Any]:
    """Describe the paths of a server as OpenAPI 3.1.

    Parameters
    ----------
    models : iterable of tuple
        Each model's name, version, signature, and a few rows that it takes, where they are known.
    needs_token : bool
        Whether requests must bring a token.
    """
    paths: dict[str, Any] = {
        "/v2": _get("Name and version of the server", {"type": "object"}),
        "/v2/health/live": _get("Whether the process is up", {"type": "object"}, is_open=True),
        "/v2/health/ready": _get("Whether it is ready", {"type": "object"}, is_open=True),
    }
    for name, version, signature, example in models:
        for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"):
            paths[path] = _get(f"Inputs and outputs of {name}", {"type": "object"})
            paths[f"{path}/ready"] = _get(f"Whether {name} is ready", {"type": "object"})
            paths[f"{path}/infer"] = {"post": _infer(name, version, signature, example)}
    components: dict[str, Any] = {"schemas": {"Error": _error()}}
    about: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Open Inference Protocol v2", "version": __version__, "description": "Served by cloudai."},
        "paths": paths,
        "components": components,
    }
    if needs_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        about["security"] = [{"token": []}]
    return about


def _get(summary: str, schema: Mapping[str, Any], *, is_open: bool = False) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": _json("The answer", schema), **_refusals("503")}}
    if is_open:
        operation["security"] = []
    return {"get": operation}


def _infer(name: str, version: str, signature: Signature, example: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": _request_schema(signature)}
    if example is not None:
        content["example"] = _example(signature, example)
    return {
        "summary": f"Predict with {name} {version}",
        "description": f"Takes and gives {signature}.",
        "operationId": f"infer {name}",
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {"200": _json("The prediction", _answer_schema(name, signature)), **_refusals(*_REFUSALS)},
    }


def _refusals(*statuses: str) -> dict[str, Any]:
    error = {"$ref": "#/components/schemas/Error"}
    return {status: _json(_REFUSALS[status], error) for status in dict.fromkeys(("401", "403", "405", "431", *statuses))}


def _json(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _error() -> dict[str, Any]:
    text = {"type": "string"}
    properties = {"error": text, "fix": text, "request_id": text}
    return {"type": "object", "required": ["error", "fix"], "properties": properties}


def _request_schema(signature: Signature) -> dict[str, Any]:
    count = len(signature.inputs)
    tensors = [_tensor_schema(spec) for spec in signature.inputs]
    names = [spec.name for spec in signature.outputs]
    wanted = {"type": "object", "required": ["name"], "properties": {"name": {"enum": names}, "parameters": {"type": "object"}}}
    inputs = {"type": "array", "minItems": count, "maxItems": count, "items": tensors[0] if count == 1 else {"oneOf": tensors}}
    properties = {"id": {"type": "string"}, "inputs": inputs, "outputs": {"type": "array", "items": wanted}}
    return {"type": "object", "required": ["inputs"], "properties": properties}


def _answer_schema(name: str, signature: Signature) -> dict[str, Any]:
    tensors = [_tensor_schema(spec) for spec in signature.outputs]
    outputs = {"type": "array", "items": tensors[0] if len(tensors) == 1 else {"oneOf": tensors}}
    text = {"type": "string"}
    properties = {"model_name": {"const": name}, "model_version": text, "id": text, "outputs": outputs}
    return {"type": "object", "required": ["model_name", "outputs"], "properties": properties}


def _tensor_schema(spec: TensorSpec) -> dict[str, Any]:
    axes = [{"type": "integer", "minimum": 1} if size < 0 else {"const": size} for size in spec.shape]
    shape = {"type": "array", "prefixItems": axes, "minItems": len(axes), "maxItems": len(axes)}
    return {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": spec.name},
            "datatype": {"const": datatype(spec.dtype)},
            "shape": shape,
            "data": {
                "type": "array",
                "description": "Flat in row-major order, or nested as the shape says.",
                "items": _items(spec),
            },
        },
    }


def _items(spec: TensorSpec) -> dict[str, Any]:
    kind = "string" if spec.dtype == TEXT else "boolean" if spec.dtype == "bool" else "number"
    if spec.dtype.startswith(("int", "uint")):
        kind = "integer"
    return {"type": kind} if len(spec.shape) == 1 else {"anyOf": [{"type": kind}, {"type": "array"}]}


def _example(signature: Signature, example: Mapping[str, np.ndarray]) -> dict[str, Any]:
    entries = []
    for spec in signature.inputs:
        row = example[spec.name][:1]
        numbers = np.round(row, 4) if row.dtype.kind == "f" else row
        entries.append(
            {"name": spec.name, "datatype": datatype(spec.dtype), "shape": list(row.shape), "data": numbers.ravel().tolist()}
        )
    return {"inputs": entries}
