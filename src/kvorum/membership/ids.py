"""Member and cluster ids, computed as every etcd computes them.

Members agree on ids without talking: each derives them from the initial configuration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from kvorum.types import MemberID


def member_id(peer_urls: Iterable[str], token: str, *, unix_seconds: int | None = None) -> MemberID:
    """The id of a member: from its peer URLs and the cluster token at bootstrap, or from its peer
    URLs and the time (with an empty token) when it is added to a running cluster.
    """
    text = "".join(sorted(peer_urls)) + token
    if unix_seconds is not None:
        text += str(unix_seconds)
    return MemberID(_first_eight(text.encode()))


def cluster_id(members: Iterable[MemberID]) -> int:
    """The id of a cluster, from the ids of its first members."""
    return _first_eight(b"".join(m.to_bytes(8, "big") for m in sorted(members)))


def _first_eight(text: bytes) -> int:
    # SHA-1 is a name here, not a protection: etcd fixed it, and a cluster must agree.
    return int.from_bytes(hashlib.sha1(text, usedforsecurity=False).digest()[:8], "big")
