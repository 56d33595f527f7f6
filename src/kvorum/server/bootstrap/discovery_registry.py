"""What a discovery service holds of a cluster that is about to begin.

::

    /_etcd/registry/<token>/_config/size     how many members it is to have
    /_etcd/registry/<token>/members/<id>     name=url,name=url of a member, by its id in hex

Whoever registers first is in: the members are those with the lowest create revisions.
"""

from __future__ import annotations

import posixpath
import re
from typing import Final

from kvorum.types import MemberID

PREFIX: Final = "/_etcd/registry"
_SIZE: Final = re.compile(rb"\+?0*([1-9][0-9]{0,8})")


class RegistryError(Exception):
    """The service's contents are no cluster that we could belong to."""


class Registry:
    """The members registered under a token, oldest first."""

    def __init__(self, token: str) -> None:
        root = posixpath.normpath(f"{PREFIX}/{token}")
        self.size_key = f"{root}/_config/size".encode()
        self.members_key = f"{root}/members".encode()
        self._members: list[tuple[int, str, str]] = []

    def __len__(self) -> int:
        return len(self._members)

    def key_of(self, member: MemberID) -> bytes:
        return self.members_key + b"/%x" % member

    def clear(self) -> None:
        self._members.clear()

    def add(self, key: bytes, value: bytes, create_revision: int) -> str:
        """Take a member in; or say why it was not, in etcd's words."""
        name = key.decode("utf-8", "replace").strip()
        info = value.decode("utf-8", "replace").strip()
        if not name.startswith(self.members_key.decode()):
            return "invalid peer registry key"
        if "=" not in info:
            return "invalid peer info returned from discovery service"
        if any(known == name for _, known, _ in self._members):
            return "found duplicate peer from discovery service"
        self._members.append((create_revision, name, info))
        self._members.sort()
        return ""

    def require_room(self, member: MemberID, size: int) -> None:
        """Raises RegistryError if the cluster is complete without this member."""
        key = self.key_of(member).decode()
        first = [name for _, name, _ in self._members[:size]]
        if len(first) == size and key not in first:
            raise RegistryError("discovery: cluster is full")

    def initial_cluster(self, size: int) -> str:
        """The members as ``--initial-cluster`` names them."""
        return ",".join(info for _, _, info in self._members[:size])


def parse_size(value: bytes | None) -> int:
    """Raises RegistryError for no size, and for what is no number above 0."""
    if value is None:
        raise RegistryError("discovery: size key not found")
    match = _SIZE.fullmatch(value)
    if match is None:
        raise RegistryError("discovery: size key is bad")
    return int(match[1])
