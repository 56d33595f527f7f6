"""The two requests that etcd 3.5 still logs in the form of its old v2 API.

A log that etcd 3.5 wrote publishes member attributes and the cluster version this way; everything
else that v2 could do is refused.
"""

from __future__ import annotations

import json
import re
from typing import Final

from kvorum.membership import Cluster
from kvorum.types import MemberID

_ATTRIBUTES: Final = re.compile(r"/0/members/([0-9a-f]{1,16})/attributes")
_VERSION_PATH: Final = "/0/version"
_METHOD, _PATH, _VALUE = 2, 3, 4


def is_v2_request(data: bytes) -> bool:
    """Whether an entry is a bare v2 request: an id in field 1, then a method in field 2, a number
    that InternalRaftRequest reserves for just that."""
    if not data.startswith(b"\x08"):
        return False
    _, position = _varint(data, 1)
    return data[position : position + 1] == b"\x12"


def apply_v2_request(data: bytes, cluster: Cluster) -> None:
    """Apply a bare v2 request.

    Raises:
        ValueError: it does not parse, or is none of the two that are known.
    """
    fields = _parse(data)
    method, path = fields.get(_METHOD, b"").decode(), fields.get(_PATH, b"").decode()
    value = fields.get(_VALUE, b"").decode()
    if method == "PUT" and path == _VERSION_PATH:
        cluster.set_version(value)
        return
    member = _ATTRIBUTES.fullmatch(path)
    if method != "PUT" or member is None:
        raise ValueError(f"a v2 request that cannot be applied: {method} {path}")
    attributes = json.loads(value)
    cluster.set_attributes(
        MemberID(int(member[1], 16)), attributes.get("name", ""), attributes.get("clientURLs") or ()
    )


def _parse(data: bytes) -> dict[int, bytes]:
    """The length-delimited fields of a message, by number; varint fields are passed over."""
    fields: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type not in (0, 2):
            raise ValueError(f"a log entry with wire type {wire_type}: {data[:64]!r}")
        value, position = _varint(data, position)
        if wire_type == 2:
            if position + value > len(data):
                raise ValueError(f"a log entry that ends within field {number}: {data[:64]!r}")
            fields[number] = data[position : position + value]
            position += value
    return fields


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError(f"a log entry with a broken varint: {data[:64]!r}")
