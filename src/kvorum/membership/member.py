"""One member of the cluster, and its JSON as the ``members`` bucket and the raft log hold it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from kvorum.types import MemberID

_GO_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def go_json(value: object) -> bytes:
    """Compact JSON with the escapes of Go's encoder, so that equal records have equal bytes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_GO_ESCAPES).encode()


@dataclass(frozen=True, slots=True)
class Member:
    """A member: ``peer_urls`` come with membership changes, ``name`` and ``client_urls`` are
    published by the member itself once it runs, so a member without a name has not started yet.
    """

    id: MemberID
    peer_urls: tuple[str, ...]
    name: str = ""
    client_urls: tuple[str, ...] = ()
    is_learner: bool = False

    @classmethod
    def from_json(cls, data: bytes) -> Member:
        """Read a record.

        Raises:
            ValueError: it is no member's JSON.
        """
        fields = json.loads(data)
        if not isinstance(fields, dict) or not isinstance(fields.get("id"), int):
            raise ValueError(f"not a member record: {data[:200]!r}")
        return cls(
            id=MemberID(fields["id"]),
            peer_urls=tuple(fields.get("peerURLs") or ()),
            name=fields.get("name", ""),
            client_urls=tuple(fields.get("clientURLs") or ()),
            is_learner=bool(fields.get("isLearner", False)),
        )

    def to_json(self) -> bytes:
        fields: dict[str, Any] = {"id": self.id, "peerURLs": list(self.peer_urls) or None}
        if self.is_learner:
            fields["isLearner"] = True
        if self.name:
            fields["name"] = self.name
        if self.client_urls:
            fields["clientURLs"] = list(self.client_urls)
        return go_json(fields)

    def with_attributes(self, name: str, client_urls: tuple[str, ...]) -> Member:
        return replace(self, name=name, client_urls=client_urls)
