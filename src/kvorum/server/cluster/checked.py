"""A server, as its corruption checks see it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from kvorum.config import ServerConfig
from kvorum.membership import Cluster
from kvorum.mvcc.hash import KeyValueHash
from kvorum.mvcc.store import Store
from kvorum.pb import etcdserverpb as pb
from kvorum.server.awaited import until_fresh
from kvorum.server.cluster.corruption import CorruptionChecks
from kvorum.server.cluster.peer_hashes import PeerHash, PeerHashes
from kvorum.server.cluster.to_leader import Requests
from kvorum.server.proposer import Ignored, Proposer
from kvorum.server.reads import ReadGate
from kvorum.types import MemberID


class Server(Protocol):
    """The parts that are needed."""

    config: ServerConfig
    cluster: Cluster
    store: Store
    proposer: Proposer
    reads: ReadGate
    http: Requests
    loop: asyncio.AbstractEventLoop

    def is_leader(self) -> bool: ...


def corruption_checks(server: Server) -> CorruptionChecks:
    """The checks that the configuration asks for."""
    config = server.config
    compact = config.feature_gates.enabled("CompactHashCheck")
    return CorruptionChecks(
        _Checked(server),
        interval=config.corrupt_check_time,
        compact_interval=config.compact_hash_check_time if compact else 0.0,
    )


class _Checked:
    """The server's `corruption.Parts`."""

    def __init__(self, server: Server) -> None:
        self.member = server.cluster.local
        self.timeout = server.config.request_timeout
        self.is_leader = server.is_leader
        self.hash_kv = server.store.hash_kv
        self._server = server
        self._peers = PeerHashes(server.cluster, server.http, self.timeout)

    def stored_hashes(self) -> Sequence[KeyValueHash]:
        return self._server.store.hashes

    async def ask_peers(self, rev: int) -> list[PeerHash]:
        return await self._peers.ask(rev)

    async def until_fresh(self) -> None:
        await until_fresh(self._server.reads, self._server.loop)

    def raise_corrupt(self, member: MemberID) -> None:
        alarm = pb.AlarmRequest(memberID=member, action=pb.AlarmRequest.ACTIVATE, alarm=pb.CORRUPT)
        self._server.proposer.propose("alarm", alarm.SerializeToString(), alarm, Ignored())
