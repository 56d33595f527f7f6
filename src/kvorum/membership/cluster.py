"""The member list of one cluster, kept in memory and in the backend.

Every change comes out of the raft log, so all members hold the same list at the same index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Protocol

from kvorum import errors
from kvorum.membership.member import Member
from kvorum.types import MemberID


class Buckets(Protocol):
    """What the list needs of the backend."""

    def put(self, bucket: str, key: bytes, value: bytes) -> None: ...
    def delete(self, bucket: str, key: bytes) -> None: ...
    def get(self, bucket: str, key: bytes) -> bytes | None: ...
    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> Iterable[tuple[bytes, bytes]]: ...


def _hex(member: MemberID) -> bytes:
    return b"%x" % member


class Cluster:
    """Members by id, removed ids, and the cluster version.

    ``version`` is "" until the first leader has set it.
    """

    def __init__(self, cluster_id: int, local: MemberID, backend: Buckets) -> None:
        self.id = cluster_id
        self.local = local
        self.members: dict[MemberID, Member] = {}
        self.removed: set[MemberID] = set()
        self.version = ""
        self.downgrade_target = ""
        self._backend = backend

    def restore(self) -> None:
        """Load what the backend holds.

        Raises:
            ValueError: a record cannot be read.
        """
        for _, record in self._backend.range("members", b"", None):
            member = Member.from_json(record)
            self.members[member.id] = member
        for key, _ in self._backend.range("members_removed", b"", None):
            self.removed.add(MemberID(int(key, 16)))
        self.version = (self._backend.get("cluster", b"clusterVersion") or b"").decode()
        downgrade = self._backend.get("cluster", b"downgrade")
        if downgrade:
            fields = json.loads(downgrade)
            self.downgrade_target = fields["target-version"] if fields["enabled"] else ""

    def sorted(self) -> list[Member]:
        """All members, in ascending order of id."""
        return [self.members[key] for key in sorted(self.members)]

    def voters(self) -> list[MemberID]:
        return sorted(m.id for m in self.members.values() if not m.is_learner)

    def learners(self) -> list[MemberID]:
        return sorted(m.id for m in self.members.values() if m.is_learner)

    def is_learner(self) -> bool:
        """Whether the local member is a learner; one that is not on the list yet is not."""
        member = self.members.get(self.local)
        return member is not None and member.is_learner

    def check_add(self, member: Member) -> None:
        """Refuse an id that was removed or is known, and a peer URL that is taken."""
        if member.id in self.removed or member.id in self.members:
            raise errors.MemberExist
        taken = {url for m in self.members.values() for url in m.peer_urls}
        if taken.intersection(member.peer_urls):
            raise errors.PeerURLExist

    def add(self, member: Member) -> None:
        self.members[member.id] = member
        self._backend.put("members", _hex(member.id), member.to_json())

    def remove(self, member: MemberID) -> None:
        self.members.pop(member, None)
        self.removed.add(member)
        self._backend.delete("members", _hex(member))
        self._backend.put("members_removed", _hex(member), b"removed")

    def set_attributes(self, member: MemberID, name: str, client_urls: Iterable[str]) -> None:
        """Take what a member published of itself; one that was removed meanwhile is passed over."""
        known = self.members.get(member)
        if known is None:
            assert member in self.removed, f"attributes of a member never added: {member:x}"
            return
        self.add(known.with_attributes(name, tuple(client_urls)))

    def set_version(self, version: str) -> None:
        self.version = version
        self._backend.put("cluster", b"clusterVersion", version.encode())

    def set_downgrade(self, enabled: bool, target: str) -> None:
        self.downgrade_target = target if enabled else ""
        record = {"target-version": self.downgrade_target, "enabled": enabled}
        self._backend.put(
            "cluster", b"downgrade", json.dumps(record, separators=(",", ":")).encode()
        )
