"""The messages of the Open Inference Protocol over gRPC, and of gRPC's health protocol.

Sources: https://github.com/kserve/open-inference-protocol (``specification/protocol/open_inference_grpc.proto``) and
https://github.com/grpc/grpc (``src/proto/grpc/health/v1/health.proto``). They are described here and not generated: generated
code runs with few versions of protobuf, and in the pool that all of a process share it cannot stand beside a client library
that brings the same messages, such as tritonclient.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = [
    "HealthCheckRequest",
    "HealthCheckResponse",
    "ModelInferHead",
    "ModelInferRequest",
    "ModelInferResponse",
    "ModelMetadataRequest",
    "ModelMetadataResponse",
    "ModelReadyRequest",
    "ModelReadyResponse",
    "ModelStreamInferResponse",
    "ServerLiveResponse",
    "ServerMetadataResponse",
    "ServerReadyResponse",
]

_TENSOR = (
    "string name = 1",
    "string datatype = 2",
    "repeated int64 shape = 3",
    "map<InferParameter> parameters = 4",
    "InferTensorContents contents = 5",
)
_INFERENCE: Mapping[str, Sequence[str]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("bool live = 1",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("bool ready = 1",),
    "ModelReadyRequest": ("string name = 1", "string version = 2"),
    "ModelReadyResponse": ("bool ready = 1",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("string name = 1", "string version = 2", "repeated string extensions = 3"),
    "ModelMetadataRequest": ("string name = 1", "string version = 2"),
    "ModelMetadataResponse": (
        "string name = 1",
        "repeated string versions = 2",
        "string platform = 3",
        "repeated ModelMetadataResponse.TensorMetadata inputs = 4",
        "repeated ModelMetadataResponse.TensorMetadata outputs = 5",
    ),
    "ModelMetadataResponse.TensorMetadata": ("string name = 1", "string datatype = 2", "repeated int64 shape = 3"),
    "ModelInferRequest": (
        "string model_name = 1",
        "string model_version = 2",
        "string id = 3",
        "map<InferParameter> parameters = 4",
        "repeated ModelInferRequest.InferInputTensor inputs = 5",
        "repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6",
        "repeated bytes raw_input_contents = 7",
    ),
    "ModelInferRequest.InferInputTensor": _TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": ("string name = 1", "map<InferParameter> parameters = 2"),
    "ModelInferResponse": (
        "string model_name = 1",
        "string model_version = 2",
        "string id = 3",
        "map<InferParameter> parameters = 4",
        "repeated ModelInferResponse.InferOutputTensor outputs = 5",
        "repeated bytes raw_output_contents = 6",
    ),
    "ModelInferResponse.InferOutputTensor": _TENSOR,
    "InferParameter": (
        "oneof parameter_choice bool bool_param = 1",
        "oneof parameter_choice int64 int64_param = 2",
        "oneof parameter_choice string string_param = 3",
        "oneof parameter_choice double double_param = 4",
        "oneof parameter_choice uint64 uint64_param = 5",
    ),
    "InferTensorContents": (
        "repeated bool bool_contents = 1",
        "repeated int32 int_contents = 2",
        "repeated int64 int64_contents = 3",
        "repeated uint32 uint_contents = 4",
        "repeated uint64 uint64_contents = 5",
        "repeated float fp32_contents = 6",
        "repeated double fp64_contents = 7",
        "repeated bytes bytes_contents = 8",
    ),
}
_HEALTH: Mapping[str, Sequence[str]] = {
    "HealthCheckRequest": ("string service = 1",),
    "HealthCheckResponse": ("int32 status = 1",),  # an enumeration there; on the wire the same
}
_OURS: Mapping[str, Sequence[str]] = {
    # the head of a ModelInferRequest: what it takes to pass it on without reading its tensors
    "ModelInferHead": ("string model_name = 1", "string model_version = 2"),
    # Triton's message, with the answer as the bytes that it is on the wire
    "ModelStreamInferResponse": ("string error_message = 1", "bytes infer_response = 2"),
}

_FIELD = re.compile(
    r"(?:(?P<many>repeated|oneof (?P<choice>\w+)) )?(?P<map>map<)?(?P<kind>[\w.]+)>? (?P<name>\w+) = (?P<number>\d+)"
)
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    word: getattr(_Field, f"TYPE_{word.upper()}")
    for word in ("string", "bytes", "bool", "int32", "int64", "uint32", "uint64", "float", "double")
}


def _file(package: str, messages: Mapping[str, Sequence[str]]) -> descriptor_pb2.FileDescriptorProto:
    """Describe a package: each message by its fields, and one that lies in another by a dotted name."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    made: dict[str, Any] = {}
    for name, fields in messages.items():
        outer, _, inner = name.rpartition(".")
        made[name] = message = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
        for text in fields:
            match = _FIELD.fullmatch(text)
            assert match is not None, text
            _add_field(message, match, f".{package}.{name}", package)
    return file


def _add_field(message: Any, match: re.Match[str], scope: str, package: str) -> None:
    field = message.field.add(name=match["name"], number=int(match["number"]))
    field.label = _Field.LABEL_REPEATED if match["many"] == "repeated" or match["map"] else _Field.LABEL_OPTIONAL
    if match["choice"]:
        if not message.oneof_decl:
            message.oneof_decl.add(name=match["choice"])
        field.oneof_index = 0
    if match["map"]:
        _add_entries(message, field, scope, f".{package}.{match['kind']}")
    elif match["kind"] in _SCALARS:
        field.type = _SCALARS[match["kind"]]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{match['kind']}"


def _add_entries(message: Any, field: Any, scope: str, value: str) -> None:
    """Describe a map from texts, which is a list of entries on the wire."""
    entry = message.nested_type.add(name=f"{field.name.capitalize()}Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=_Field.TYPE_MESSAGE, type_name=value, label=_Field.LABEL_OPTIONAL)
    field.type, field.type_name = _Field.TYPE_MESSAGE, f"{scope}.{entry.name}"


_pool = descriptor_pool.DescriptorPool()
for _package, _messages in {"inference": _INFERENCE, "grpc.health.v1": _HEALTH, "cloudai": _OURS}.items():
    _pool.AddSerializedFile(_file(_package, _messages).SerializeToString())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


ServerLiveResponse = _message("inference.ServerLiveResponse")
ServerReadyResponse = _message("inference.ServerReadyResponse")
ModelReadyRequest = _message("inference.ModelReadyRequest")
ModelReadyResponse = _message("inference.ModelReadyResponse")
ServerMetadataResponse = _message("inference.ServerMetadataResponse")
ModelMetadataRequest = _message("inference.ModelMetadataRequest")
ModelMetadataResponse = _message("inference.ModelMetadataResponse")
ModelInferRequest = _message("inference.ModelInferRequest")
ModelInferResponse = _message("inference.ModelInferResponse")
HealthCheckRequest = _message("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = _message("grpc.health.v1.HealthCheckResponse")
ModelInferHead = _message("cloudai.ModelInferHead")
ModelStreamInferResponse = _message("cloudai.ModelStreamInferResponse")
