"""The member list of one cluster, kept in memory and in the backend.

Every change comes out of the raft log, so all members hold the same list at the same index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from kvorum import errors
from kvorum.membership.member import Member
from kvorum.membership.version import OWN, parse_version
from kvorum.types import MemberID
from kvorum.version import ETCD_VERSION


class Buckets(Protocol):
    """What the list needs of the backend."""

    def put(self, bucket: str, key: bytes, value: bytes) -> None: ...
    def delete(self, bucket: str, key: bytes) -> None: ...
    def get(self, bucket: str, key: bytes) -> bytes | None: ...
    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> Iterable[tuple[bytes, bytes]]: ...


class FutureVersion(ValueError):
    """The cluster's version is one that this member does not know."""


def _check_version(text: str) -> None:
    version = parse_version(text)
    if version is None or version > OWN:
        raise FutureVersion(
            f"the cluster has version {text}, and this member, as etcd {ETCD_VERSION}, knows none"
            f" above {OWN}: it cannot be part of it"
        )


def _hex(member: MemberID) -> bytes:
    return b"%x" % member


class Cluster:
    """Members by id, removed ids, and the cluster version.

    ``version`` is "" until the first leader has set it, ``downgrade_target`` while no downgrade is
    under way. ``max_learners`` is ``--max-learners``, which all members must be given alike: each
    judges with its own.
    """

    def __init__(
        self, cluster_id: int, local: MemberID, backend: Buckets, *, max_learners: int = 1
    ) -> None:
        self.id = cluster_id
        self.local = local
        self.max_learners = max_learners
        self.members: dict[MemberID, Member] = {}
        self.removed: set[MemberID] = set()
        self.version = ""
        self.downgrade_target = ""
        self._backend = backend

    def restore(self) -> None:
        """Replace everything by what the backend holds.

        Raises:
            ValueError: a record cannot be read.
            FutureVersion: this member is too old for the cluster.
        """
        self.members.clear()
        self.removed.clear()
        for _, record in self._backend.range("members", b"", None):
            member = Member.from_json(record)
            self.members[member.id] = member
        for key, _ in self._backend.range("members_removed", b"", None):
            self.removed.add(MemberID(int(key, 16)))
        version = (self._backend.get("cluster", b"clusterVersion") or b"").decode()
        if version:
            _check_version(version)
        self.version = version
        downgrade = self._backend.get("cluster", b"downgrade")
        fields = json.loads(downgrade or b"{}")
        self.downgrade_target = fields["target-version"] if fields.get("enabled") else ""

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

    def others(self) -> list[Member]:
        """All members but the local one, in ascending order of id."""
        return [member for member in self.sorted() if member.id != self.local]

    # The rules of a change, in the order in which etcd asks

    def check_add(self, member: Member) -> None:
        """Whether a member may be added.

        Raises:
            errors.MemberNotFound: its id was removed once; ids are not used again.
            errors.MemberExist, errors.PeerURLExist: its id or one of its peer URLs is taken.
            errors.TooManyLearners: it is a learner beyond the limit.
        """
        self._refuse_removed(member.id)
        if member.id in self.members:
            raise errors.MemberExist
        self._refuse_taken(member.peer_urls, self.members.values())
        if member.is_learner and len(self.learners()) >= self.max_learners:
            raise errors.TooManyLearners

    def check_promote(self, member: MemberID) -> None:
        """Whether a learner may become a voter.

        Raises:
            errors.MemberNotFound: there is no such member.
            errors.MemberNotLearner: it is a voter.
        """
        if not self._known(member).is_learner:
            raise errors.MemberNotLearner

    def check_remove(self, member: MemberID) -> None:
        """Raises errors.MemberNotFound if there is no such member."""
        self._known(member)

    def check_update(self, member: MemberID, peer_urls: Iterable[str]) -> None:
        """Whether a member may have other peer URLs.

        Raises:
            errors.MemberNotFound: there is no such member.
            errors.PeerURLExist: another one has one of them.
        """
        self._known(member)
        self._refuse_taken(peer_urls, (m for m in self.members.values() if m.id != member))

    def _known(self, member: MemberID) -> Member:
        self._refuse_removed(member)
        known = self.members.get(member)
        if known is None:
            raise errors.MemberNotFound
        return known

    def _refuse_removed(self, member: MemberID) -> None:
        if member in self.removed:
            raise errors.MemberNotFound

    @staticmethod
    def _refuse_taken(peer_urls: Iterable[str], by: Iterable[Member]) -> None:
        if not {url for m in by for url in m.peer_urls}.isdisjoint(peer_urls):
            raise errors.PeerURLExist

    # Changes, which the rules have allowed

    def add(self, member: Member) -> None:
        self.members[member.id] = member
        self._backend.put("members", _hex(member.id), member.to_json())

    def promote(self, member: MemberID) -> None:
        self.add(replace(self.members[member], is_learner=False))

    def set_peer_urls(self, member: MemberID, peer_urls: Iterable[str]) -> None:
        self.add(replace(self.members[member], peer_urls=tuple(peer_urls)))

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
        """Take the version that the leader has decided on.

        Raises:
            FutureVersion: this member is too old for it.
        """
        _check_version(version)
        self.version = version
        self._backend.put("cluster", b"clusterVersion", version.encode())

    def set_downgrade(self, enabled: bool, target: str) -> None:
        self.downgrade_target = target if enabled else ""
        record = {"target-version": self.downgrade_target, "enabled": enabled}
        self._backend.put(
            "cluster", b"downgrade", json.dumps(record, separators=(",", ":")).encode()
        )
