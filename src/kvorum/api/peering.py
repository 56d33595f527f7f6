"""The way between this member and the others: its transport, and its listener at the peer URLs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from socket import socket
from typing import Final

from kvorum.config import ServerConfig
from kvorum.config.urls import URL, strings
from kvorum.h2 import GrpcServer
from kvorum.log import get_logger
from kvorum.peer.context import Timing
from kvorum.peer.http_client import HttpClient
from kvorum.peer.interface import Host, Transport
from kvorum.peer.rafthttp import Rafthttp
from kvorum.peer.service import PEER_LIMITS, PeerService, wants_source
from kvorum.server.bootstrap.booted import Booted
from kvorum.server.cluster.peer_hashes import HASH_PATH, HashRoute
from kvorum.server.cluster.peer_routes import peer_routes
from kvorum.server.server import Server
from kvorum.telemetry import Telemetry

DIAL_SECONDS: Final = 1.0
"""For a connection to another member, an election time-out on top, as in etcd."""
DRAIN_SECONDS: Final = 0.5

lg = get_logger()


class Peering:
    """``connect`` makes the transport of a server, ``listen`` lets the others in."""

    def __init__(
        self, config: ServerConfig, booted: Booted, http: HttpClient, telemetry: Telemetry
    ) -> None:
        self._config = config
        self._member = booted.member
        self._cluster_id = booted.cluster.id
        self._http = http
        self._telemetry = telemetry
        self._service: PeerService | None = None
        self._listener: GrpcServer | None = None

    def connect(self, host: Host) -> Transport:
        """A `MakeTransport`."""
        config = self._config
        transport = Rafthttp(
            host,
            local=self._member,
            cluster_id=self._cluster_id,
            urls=strings(config.initial_advertise_peer_urls),
            http=self._http,
            telemetry=self._telemetry,
            source=config.local_address,
            timing=_timing(config),
        )
        self._service = PeerService(transport)
        return transport

    async def listen(self, server: Server, bound: Iterable[tuple[URL, socket]]) -> None:
        """Serve at sockets that are bound already. Raises OSError."""
        assert self._service is not None, "the server has no transport yet"
        for path, handler in peer_routes(server).items():
            self._service.mount(path, handler)
        self._service.mount(HASH_PATH, HashRoute(server.cluster, server.store).handle)
        limits = replace(
            PEER_LIMITS,
            http_idle_timeout=self._config.raft_read_timeout,
            write_stall_timeout=self._config.raft_write_timeout,
        )
        self._listener = GrpcServer(
            {}, self._service.handle, limits, report=server.failed, wants_source=wants_source
        )
        for url, listening in bound:
            await self._listener.listen(sock=listening)
            lg.info("serving peer traffic", address=str(url))

    async def close(self) -> None:
        """The transport was closed before."""
        if self._listener is not None:
            await self._listener.drain(DRAIN_SECONDS)
            self._listener.close()


def _timing(config: ServerConfig) -> Timing:
    """A stream is kept alive by three heartbeats in the time after which a silent one is given up.
    That of the others is not known; all members should have the same."""
    return Timing(
        dial=DIAL_SECONDS + config.election_timeout / 1000,
        idle=config.raft_read_timeout,
        heartbeat=config.raft_read_timeout / 3,
    )
