"""An ONNX model as a value to be distrusted: read, bounded, and refused before any runtime sees it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from cloudai.errors import IntegrityError, NotFoundError, SpecError

__all__ = ["check", "parse", "read"]

MOST_BYTES = 2**31 - 1
"""A protobuf message can be no larger, and so one file of ONNX."""

_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operators that ONNX Runtime brings; all others need a library of somebody's."""

_SAVE_FIX = "save the model as one file: onnx.save(model, path, save_as_external_data=False)"


def read(source: str | Path | bytes) -> onnx.ModelProto:
    """Read a model and what it keeps beside itself, after checking where that lies.

    Raises
    ------
    NotFoundError
        If there is no such file.
    IntegrityError
        If it is no ONNX model, or names a file outside of its own folder.
    SpecError
        If it is larger than 2 GiB.
    """
    if isinstance(source, bytes):
        return parse(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", fix="give the path of an .onnx file, or its bytes")
    _check_size(path.stat().st_size)
    model = _parsed(path.read_bytes())
    parts = _files_beside(model, path.parent)
    _check_size(path.stat().st_size + sum(part.stat().st_size for part in parts))
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (ValueError, OSError, onnx.checker.ValidationError) as error:
        raise IntegrityError(f"the tensors beside {path.name} cannot be read: {error}", fix=_SAVE_FIX) from None
    return check(model)


def parse(data: bytes) -> onnx.ModelProto:
    """Read a model that is one piece.

    Raises
    ------
    IntegrityError
        If it is no ONNX model, or keeps tensors elsewhere.
    SpecError
        If it is larger than 2 GiB, or names operators that ONNX Runtime does not bring.
    """
    _check_size(len(data))
    model = _parsed(data)
    if any(_locations(model)):
        raise IntegrityError("the ONNX model keeps tensors in other files, which bytes do not bring", fix=_SAVE_FIX)
    return check(model)


def check(model: onnx.ModelProto) -> onnx.ModelProto:
    """Check a model's structure and whose operators it uses."""
    known = _DOMAINS | {function.domain for function in model.functions}
    for node in _nodes(model):
        if node.domain not in known:
            raise SpecError(
                f"the ONNX model uses the operator {node.domain}:{node.op_type}, which ONNX Runtime does not bring",
                fix="export it with standard operators only",
            )
    for opset in model.opset_import:
        newest = onnx.defs.onnx_opset_version() if opset.domain in ("", "ai.onnx") else opset.version
        if opset.version > newest:
            raise SpecError(
                f"the ONNX model uses opset {opset.version}, the installed onnx knows {newest}",
                fix="export it with an older opset_version, or update onnx and onnxruntime",
            )
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise IntegrityError(f"the ONNX model is malformed: {first}", fix="export it again") from None
    return model


def _parsed(data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        model.Clear()
    if not model.ir_version or not model.graph.node:
        raise IntegrityError("this is no ONNX model", fix="give the file that an exporter to ONNX wrote")
    return model


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise SpecError(f"the ONNX model has {size / 2**30:.1f} GiB, at most 2 can be served", fix="quantize or split it")


def _locations(model: onnx.ModelProto) -> Iterator[str]:
    """Yield where tensors lie that the model keeps in other files."""
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            yield next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _files_beside(model: onnx.ModelProto, folder: Path) -> set[Path]:
    """Return the files with the model's tensors; all of them really lie in its folder."""
    found = set()
    home = folder.resolve()
    for location in _locations(model):
        name = PurePosixPath(location)
        path = Path(os.path.realpath(home / location))
        inside = location and not name.is_absolute() and ".." not in name.parts and "\\" not in location
        if not inside or not path.is_relative_to(home):
            raise IntegrityError(f"the ONNX model reaches for {location!r}, outside of its folder", fix=_SAVE_FIX)
        if not path.is_file():
            raise IntegrityError(f"the ONNX model keeps tensors in {location!r}, which is not there", fix=_SAVE_FIX)
        found.add(path)
    return found


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, also those of functions and of graphs inside nodes."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for graph in _graphs_in(node):
            waiting += graph.node


def _graphs_in(node: onnx.NodeProto) -> list[Any]:
    return [graph for attribute in node.attribute for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor, also those of functions, attributes, sparse tensors and graphs inside nodes."""
    graphs = [model.graph]
    for node in _nodes(model):
        graphs += _graphs_in(node)
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
