"""Whether the members still hold the same: three checks, as etcd makes them.

============  ==========================================  =======================================
check         when                                        who is found to be wrong
============  ==========================================  =======================================
initial       before a member serves                      this member: it does not start
periodic      at intervals, by the leader                 the first that differs from the leader
compact hash  at intervals, by the leader, for each       whoever differs from the majority; if
              compaction whose hash is remembered         there is none, the cluster (member 0)
============  ==========================================  =======================================

Hashes compare only if they are of the same revision and the same compaction revision. Who is found
wrong gets the CORRUPT alarm, with which all members refuse to serve. Nobody is accused for not
answering.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, Final, Protocol

from kvorum import errors
from kvorum.log import get_logger
from kvorum.mvcc.hash import KeyValueHash
from kvorum.server.cluster.peer_hashes import ClusterMismatch, PeerHash
from kvorum.server.errors import CorruptMember
from kvorum.types import MemberID, Revision

WHOLE_CLUSTER: Final = MemberID(0)
"""Stands for all members, when it cannot be told who is wrong."""

_UNANSWERED: Final[Sequence[tuple[type[Exception], str]]] = (
    (errors.FutureRev, "cannot fetch hash from slow remote peer"),
    (errors.Compacted, "cannot fetch hash from remote peer; local member is behind"),
    (ClusterMismatch, "cluster ID mismatch"),
)

lg = get_logger()


class Parts(Protocol):
    """The member, as far as it is checked."""

    member: MemberID
    timeout: float
    """Seconds that a request may take."""

    def is_leader(self) -> bool: ...

    def stored_hashes(self) -> Sequence[KeyValueHash]:
        """Those of compactions that are remembered."""

    async def hash_kv(self, rev: int = 0) -> tuple[KeyValueHash, Revision]:
        """The hash at a revision (0: now), and the newest revision. Raises EtcdError."""

    async def ask_peers(self, rev: int) -> list[PeerHash]:
        """What all others answer."""

    async def until_fresh(self) -> None:
        """Return once all is applied that was committed at the call. Raises EtcdError."""

    def raise_corrupt(self, member: MemberID) -> None:
        """Propose the CORRUPT alarm."""


class CorruptionChecks:
    """``initial_check`` is for before the start; `start` begins the others: ``interval`` and
    ``compact_interval`` are in seconds, 0 for never. ``spawn`` runs a coroutine until the server
    stops."""

    def __init__(self, parts: Parts, *, interval: float, compact_interval: float) -> None:
        self._parts = parts
        self._name = f"{parts.member:x}"
        self._interval = interval
        self._compact_interval = compact_interval
        self._checked = 0
        """The newest compaction that all members were found to agree on."""

    def start(self, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        """Begin to check at intervals."""
        if self._interval:
            lg.info(
                "enabled corruption checking",
                local_member_id=self._name,
                interval=timedelta(seconds=self._interval),
            )
            spawn(self._repeat(self._interval, self.periodic_check))
        if self._compact_interval:
            spawn(self._repeat(self._compact_interval, self.compact_hash_check))

    async def _repeat(self, interval: float, check: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval)
            if not self._parts.is_leader():
                continue
            try:
                await check()
            except Exception as error:
                lg.warn("failed to check hash KV", error=str(error) or type(error).__name__)

    # Before the start

    async def initial_check(self) -> None:
        """Compare this member's store with those of the members that run.

        Raises:
            CorruptMember: it differs from another's.
        """
        parts = self._parts
        timeout = timedelta(seconds=parts.timeout)
        lg.info("starting initial corruption check", local_member_id=self._name, timeout=timeout)
        own, _ = await parts.hash_kv()
        peers = await parts.ask_peers(own.rev)
        if sum(self._differs(own, peer) for peer in peers):
            raise CorruptMember(f"{self._name} found data inconsistency with peers")
        lg.info("initial corruption checking passed; no corruption", local_member_id=self._name)

    def _differs(self, own: KeyValueHash, peer: PeerHash) -> bool:
        fields = {
            "local_member_id": self._name,
            "local_member_revision": own.rev,
            "local_member_compact_revision": own.compact_rev,
            "local_member_hash": own.hash,
            "remote_peer_id": f"{peer.member:x}",
            "remote_peer_endpoints": peer.urls,
        }
        theirs = peer.hash
        if theirs is None:
            for kind, text in _UNANSWERED:
                if isinstance(peer.error, kind):
                    lg.warn(text, **fields, error=str(peer.error))
            return False
        fields |= {
            "remote_peer_revision": peer.revision,
            "remote_peer_compact_revision": theirs.compact_rev,
            "remote_peer_hash": theirs.hash,
        }
        if own.hash == theirs.hash:
            return False
        if own.compact_rev == theirs.compact_rev:
            lg.warn("found different hash values from remote peer", **fields)
            return True
        lg.warn("found different compact revision values from remote peer", **fields)
        return False

    # Now and then, by the leader

    async def periodic_check(self) -> None:
        """Compare the stores of all members as they are now; the first that is found wrong is
        accused. Raises EtcdError, RequestFailed: nothing can be said."""
        parts = self._parts
        first, _ = await parts.hash_kv()
        peers = await parts.ask_peers(first.rev)
        await parts.until_fresh()
        second, revision = await parts.hash_kv()
        wrong = self._wrong_here(first, second)
        answers = [(peer, peer.hash) for peer in peers if peer.hash is not None]
        for peer, theirs in answers:
            if self._is_wrong(peer, theirs, first, second, revision):
                wrong.append(peer.member)
        if wrong:
            parts.raise_corrupt(wrong[0])
        lg.info("finished peer corruption check", number_of_peers_checked=len(answers))

    def _wrong_here(self, first: KeyValueHash, second: KeyValueHash) -> list[MemberID]:
        """One member cannot have two hashes of the same."""
        if first.hash == second.hash or first[1:] != second[1:]:
            return []
        lg.warn(
            "found hash mismatch",
            revision_1=first.rev,
            compact_revision_1=first.compact_rev,
            hash_1=first.hash,
            revision_2=second.rev,
            compact_revision_2=second.compact_rev,
            hash_2=second.hash,
        )
        return [self._parts.member]

    def _is_wrong(
        self,
        peer: PeerHash,
        theirs: KeyValueHash,
        first: KeyValueHash,
        second: KeyValueHash,
        revision: Revision,
    ) -> bool:
        """Whether the answer is impossible, given what the leader had before and has after it."""
        name = f"{peer.member:x}"
        if peer.revision > revision:
            lg.warn(
                "revision from follower must be less than or equal to leader's",
                leader_revision=revision,
                follower_revision=peer.revision,
                follower_peer_id=name,
            )
            return True
        compacted = {
            "leader_compact_revision": second.compact_rev,
            "follower_compact_revision": theirs.compact_rev,
            "follower_peer_id": name,
        }
        if theirs.compact_rev > second.compact_rev:
            lg.warn(
                "compact revision from follower must be less than or equal to leader's",
                **compacted,
            )
            return True
        if theirs.compact_rev == first.compact_rev and theirs.hash != first.hash:
            lg.warn(
                "same compact revision then hashes must match",
                **compacted,
                leader_hash=first.hash,
                follower_hash=theirs.hash,
            )
            return True
        return False

    # The hashes of compactions

    async def compact_hash_check(self) -> None:
        """Compare what the members computed when they compacted, the newest that all still have."""
        parts = self._parts
        lg.info(
            "starting compact hash check",
            local_member_id=self._name,
            timeout=timedelta(seconds=parts.timeout),
        )
        count = 0
        for own in sorted(parts.stored_hashes(), key=lambda h: h.rev, reverse=True):
            if own.rev <= self._checked:
                break
            count += 1
            peers = await parts.ask_peers(own.rev)
            if peers and self._settles(own, peers):
                break
        lg.info("finished compaction hash check", number_of_hashes_checked=count)

    def _settles(self, own: KeyValueHash, peers: list[PeerHash]) -> bool:
        """Whether nothing is to be found out any more with older compactions: all agree on this
        one, or somebody was accused."""
        groups, answers = self._grouped(own, peers)
        if len(groups) > 1:
            self._accuse(own, groups, members=len(peers) + 1)
            return True
        fields = {
            "number_of_peers_checked": answers,
            "revision": own.rev,
            "compact_revision": own.compact_rev,
        }
        if answers < len(peers):
            lg.warn(
                "skipped revision in compaction hash check; was not able to check all peers",
                number_of_peers=len(peers),
                **fields,
            )
            return False
        lg.info("successfully checked hash on whole cluster", **fields)
        self._checked = max(self._checked, own.rev)
        return True

    def _grouped(
        self, own: KeyValueHash, peers: list[PeerHash]
    ) -> tuple[dict[int, list[MemberID]], int]:
        """Members by hash, of those that tell of the same compaction; and how many others do."""
        groups: dict[int, list[MemberID]] = defaultdict(list)
        groups[own.hash].append(self._parts.member)
        answers = 0
        for peer in peers:
            if peer.hash is not None and peer.hash.compact_rev == own.compact_rev:
                groups[peer.hash.hash].append(peer.member)
                answers += 1
                continue
            reason = "no response"
            if peer.hash is not None:
                reason = (
                    f"the peer's CompactRevision {peer.hash.compact_rev} doesn't match leader's"
                    f" CompactRevision {own.compact_rev}"
                )
            lg.warn(
                "Skipped peer's hash",
                number_of_peers=len(peers),
                leader_id=self._name,
                peer_id=f"{peer.member:x}",
                reason=reason,
            )
        return groups, answers

    def _accuse(
        self, own: KeyValueHash, groups: dict[int, list[MemberID]], *, members: int
    ) -> None:
        """All but the majority; or the cluster, if no majority agrees."""
        fields = {
            "leader_id": self._name,
            "leader_revision": own.rev,
            "leader_compact_revision": own.compact_rev,
            "leader_hash": own.hash,
        }
        majority = next((h for h, ids in groups.items() if len(ids) > members // 2), None)
        if majority is None:
            lg.error(
                "Detected compaction hash mismatch but cannot identify the corrupted members,"
                " so intentionally set the memberID as 0",
                **fields,
            )
            self._parts.raise_corrupt(WHOLE_CLUSTER)
        for value, ids in groups.items():
            if value == majority:
                continue
            if majority is not None:
                for member in ids:
                    self._parts.raise_corrupt(member)
            lg.error(
                "Detected compaction hash mismatch",
                **fields,
                peer_hash=value,
                peer_ids=", ".join(f"{member:x}" for member in ids),
                quorum_exist=majority is not None,
            )
