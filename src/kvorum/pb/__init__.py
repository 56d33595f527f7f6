"""Wire and disk messages of etcd, one module per protobuf package.

The messages come from ``proto/`` by way of ``descriptors.binpb`` and live in a descriptor pool of
our own: they are bound to no protobuf major version and do not collide with the modules of
another etcd client in the same process. The ``.pyi`` beside each module gives the types.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """The private pool with every message, enum and service of ``proto/``."""
    files = descriptor_pb2.FileDescriptorSet.FromString(
        resources.files(__package__).joinpath("descriptors.binpb").read_bytes()
    )
    private = descriptor_pool.DescriptorPool()
    for file in files.file:
        private.Add(file)
    return private


def load(file: str) -> dict[str, Any]:
    """The names a generated module for ``file`` would define: messages, enums, enum values."""
    descriptor = pool().FindFileByName(f"{file}.proto")
    names: dict[str, Any] = {"DESCRIPTOR": descriptor}
    for name, message in descriptor.message_types_by_name.items():
        names[name] = message_factory.GetMessageClass(message)
    for name, enum in descriptor.enum_types_by_name.items():
        names[name] = EnumTypeWrapper(enum)
        names.update((value.name, value.number) for value in enum.values)
    return names
