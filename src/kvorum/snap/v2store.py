"""The members and the cluster version in the form of etcd's v2 store.

Nobody needs that store any more, but it is what a ``.snap`` file and a snapshot message carry, and
members up to 3.6 take the membership from it. The tree, as JSON::

    /0/members/<hex id>/raftAttributes    {"peerURLs":[...],"isLearner":true}
    /0/members/<hex id>/attributes        {"name":"...","clientURLs":[...]}
    /0/removed_members/<hex id>
    /0/version                            3.7.0
    /1                                    keys of v2 users, empty
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvorum.snap.errors import BadStore

EVENT_HISTORY: Final = 1000
_NEVER: Final = "0001-01-01T00:00:00Z"
_COUNTED: Final = "gets sets delete update create compareAndSwap compareAndDelete"
_COUNTERS: Final = (
    *(f"{name}{end}" for name in _COUNTED.split(" ") for end in ("Success", "Fail")),
    "expireCount",
    "watchers",
)

# Go's encoder writes these so that its JSON may stand in HTML; so must we for equal bytes.
_ESCAPES: Final = str.maketrans(
    {
        "<": "\\u003c",
        ">": "\\u003e",
        "&": "\\u0026",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
    }
)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredMember:
    """A member as the store has it. ``attributes`` were never published if there are no client
    URLs; a member that has not started yet has none."""

    id: int
    peer_urls: tuple[str, ...]
    is_learner: bool = False
    name: str = ""
    client_urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Membership:
    """What the store holds. ``has_user_data``: somebody once wrote keys with the v2 API."""

    members: tuple[StoredMember, ...]
    removed: tuple[int, ...] = ()
    version: str | None = None
    has_user_data: bool = False


def dump_json(value: object) -> str:
    """Compact JSON, byte for byte as Go's encoder writes it for strings, lists and objects."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)


def build_store(membership: Membership) -> bytes:
    """The store as the data of a snapshot."""
    tree = _TreeBuilder()
    members = tree.directory("/0/members")
    for member in sorted(membership.members, key=lambda member: member.id):
        _add_member(tree, members, member)
    children = [members]
    if membership.removed:
        leaves = (tree.leaf(f"/0/removed_members/{each:x}", "") for each in membership.removed)
        children.append(tree.directory("/0/removed_members", leaves))
    if membership.version is not None:
        children.append(tree.leaf("/0/version", membership.version))
    top = tree.directory("/0", children)
    root = tree.directory("/", [top, tree.directory("/1")])
    return dump_json(_store(root, tree.writes)).encode()


def _add_member(tree: _TreeBuilder, members: Json, member: StoredMember) -> None:
    path = f"/0/members/{member.id:x}"
    raft: Json = {"peerURLs": list(member.peer_urls)}
    if member.is_learner:
        raft["isLearner"] = True
    children = [tree.leaf(f"{path}/raftAttributes", dump_json(raft))]
    if member.client_urls:
        attributes = {"name": member.name, "clientURLs": list(member.client_urls)}
        if not member.name:
            del attributes["name"]
        children.append(tree.leaf(f"{path}/attributes", dump_json(attributes)))
    tree.add(members, tree.directory(path, children))


class _TreeBuilder:
    """Makes nodes and counts the writes it would have taken to make them."""

    def __init__(self) -> None:
        self.writes = 0

    def leaf(self, path: str, value: str) -> Json:
        self.writes += 1
        return _node(path, self.writes, value, None)

    def directory(self, path: str, children: Iterable[Json] = ()) -> Json:
        node = _node(path, 0, "", {})
        for child in children:
            self.add(node, child)
        return node

    @staticmethod
    def add(directory: Json, child: Json) -> None:
        directory["Children"][child["Path"].rpartition("/")[2]] = child


def _node(path: str, index: int, value: str, children: Json | None) -> Json:
    return {
        "Path": path,
        "CreatedIndex": index,
        "ModifiedIndex": index,
        "ExpireTime": _NEVER,
        "Value": value,
        "Children": children,
    }


def _store(root: Json, writes: int) -> Json:
    queue = {
        "Events": [None] * EVENT_HISTORY,
        "Size": 0,
        "Front": 0,
        "Back": 0,
        "Capacity": EVENT_HISTORY,
    }
    history = {"Queue": queue, "StartIndex": 0, "LastIndex": 0}
    return {
        "Root": root,
        "WatcherHub": {"EventHistory": history},
        "CurrentIndex": writes,
        "Stats": dict.fromkeys(_COUNTERS, 0),
        "CurrentVersion": 2,
    }


def read_store(data: bytes, path: Path = Path("snapshot")) -> Membership:
    """The membership in a snapshot's data; ``path`` is for the error. Raises `BadStore`."""
    try:
        top = _children(_as_object(json.loads(data))["Root"])
        zero = _children(top["0"]) if "0" in top else {}
        members = _children(zero["members"]) if "members" in zero else {}
        removed = _children(zero["removed_members"]) if "removed_members" in zero else {}
        version = _value(zero["version"]) if "version" in zero else None
        return Membership(
            tuple(sorted(map(_read_member, members.items()), key=lambda member: member.id)),
            tuple(sorted(int(name, 16) for name in removed)),
            version,
            "1" in top and bool(_children(top["1"])),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"the v2 store cannot be read: {type(error).__name__}: {error}"
        raise BadStore(path, why) from error


def _read_member(item: tuple[str, Json]) -> StoredMember:
    name, node = item
    children = _children(node)
    raft = _as_object(json.loads(_value(children["raftAttributes"])))
    attributes: Json = {}
    if "attributes" in children:
        attributes = _as_object(json.loads(_value(children["attributes"])))
    return StoredMember(
        int(name, 16),
        _strings(raft.get("peerURLs")),
        bool(raft.get("isLearner", False)),
        str(attributes.get("name", "")),
        _strings(attributes.get("clientURLs")),
    )


def _children(node: Mapping[str, Any]) -> Mapping[str, Any]:
    children = node["Children"]
    return {} if children is None else _as_object(children)


def _as_object(value: object) -> Json:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _value(node: Mapping[str, Any]) -> str:
    value = node["Value"]
    if not isinstance(value, str):
        raise TypeError("Value is no string")
    return value


def _strings(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError("not a list of strings")
    return tuple(value)
