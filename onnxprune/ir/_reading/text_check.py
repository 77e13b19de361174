"""Check that all texts of a model are UTF-8: the format of ONNX lets others pass, and Python gets bytes then."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from onnxprune.errors import OnnxPruneError

_MESSAGE, _STRING = FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING


def check_text(proto: onnx.ModelProto, data: bytes) -> None:
    """Raise if a text of a model is not UTF-8.

    Args:
        proto: The model.
        data: The bytes that it was parsed from.

    Raises:
        OnnxPruneError: Names the text, and the kind of message that holds it.
    """
    try:
        _strict()().ParseFromString(data)
    except (DecodeError, UnicodeDecodeError):
        _find(proto, "the model")


@cache
def _strict() -> Any:
    """Return ModelProto as a message of proto3, whose parser checks texts; walking over them in Python takes long."""
    file = descriptor_pb2.FileDescriptorProto()
    onnx.ModelProto.DESCRIPTOR.file.CopyToProto(file)
    file.syntax = "proto3"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(onnx.ModelProto.DESCRIPTOR.full_name))


def _find(message: Any, place: str) -> None:
    for field, value in message.ListFields():
        if field.type not in (_MESSAGE, _STRING):
            continue
        for item in (value,) if isinstance(value, str | bytes | Message) else value:
            if field.type == _MESSAGE:
                _find(item, f"{message.DESCRIPTOR.name}.{field.name}")
            elif isinstance(item, bytes):
                raise OnnxPruneError(
                    f"the model holds a text that is not UTF-8: {item[:60]!r}",
                    where=f"{message.DESCRIPTOR.name}.{field.name} in {place}",
                    fix="the file is damaged: export it again",
                )
