"""A member inside a Python program.

::

    config = kvorum.embed.config(data_dir="/var/lib/kvorum")
    async with kvorum.embed.Member(config):
        ...  # any etcd client can use http://localhost:2379 now

A program runs the member on its own event loop (uvloop makes it twice as fast) and may run several.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from kvorum.api.gate import Gate
from kvorum.api.health import HealthService
from kvorum.api.http import HttpService
from kvorum.api.mirror import mirror_calls
from kvorum.api.peering import Peering
from kvorum.api.services import build_methods
from kvorum.backend import BackendError
from kvorum.config import ServerConfig, make
from kvorum.config.urls import URL
from kvorum.h2 import GrpcServer, HttpHandler, Limits, Method
from kvorum.log import get_logger
from kvorum.peer.http_client import HttpClient
from kvorum.server.bootstrap.booted import Booted
from kvorum.server.bootstrap.start import bootstrap
from kvorum.server.errors import StartError
from kvorum.server.server import GRPC_OVERHEAD, Server
from kvorum.telemetry import Telemetry
from kvorum.wal import WALError

__all__ = ["Member", "ServerConfig", "config"]

DRAIN_SECONDS: Final = 0.5
_BACKLOG: Final = 1024

Bound = list[tuple[URL, socket.socket]]

config = make

lg = get_logger()


class Member:
    """One member: its server and its listeners. Belongs to the event loop that it is started on."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.telemetry = Telemetry(extensive=config.metrics == "extensive")
        self._server: Server | None = None
        self._listeners: list[GrpcServer] = []
        self._health = HealthService()
        self._sockets: list[socket.socket] = []
        self._http: HttpClient | None = None
        self._peering: Peering | None = None
        self._gate: Gate | None = None

    @property
    def server(self) -> Server:
        """The server inside, from `start` on."""
        assert self._server is not None, "the member was not started"
        return self._server

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open the data directory, take part in consensus, and then let clients in.

        Raises:
            StartError, WALError, BackendError: the member cannot run; nothing is left open.
        """
        config = self.config
        try:
            peers = self._bind(config.listen_peer_urls, listen=False)
            clients = self._bind(config.listen_client_urls)
            plain = self._bind(config.listen_client_http_urls)
            metrics = self._bind(config.listen_metrics_urls)
            self._http = HttpClient(source=config.local_address)
            booted = await bootstrap(config, asyncio.get_running_loop(), self._http)
            await self._start_server(booted, self._http, peers)
            await self._until_ready()
            http = HttpService(self.server, self.telemetry)
            both = None if plain else http.handle
            methods = build_methods(self.server, self._health)
            mirror_calls(self.telemetry, methods, self._listeners)
            self._gate = Gate(self.server, methods)
            self._gate.start()
            await self._serve(clients, methods, both, "grpc" if plain else "grpc+http")
            await self._serve(plain, {}, http.handle, "http")
            await self._serve(metrics, {}, http.handle_metrics, "metrics")
        except BaseException as why:
            try:
                await self.stop()
            except (WALError, BackendError) as error:
                lg.warn("failed to stop after a failed start", error=error)
            raise why
        self._health.set_serving(True)

    async def _start_server(self, booted: Booted, http: HttpClient, peers: Bound) -> None:
        """The others are let in before consensus begins: they may have to be heard for it."""
        self._peering = peering = Peering(self.config, booted, http, self.telemetry)
        self._server = Server(
            self.config, self.telemetry, booted, make_transport=peering.connect, http=http
        )
        if booted.applied and self.config.feature_gates.enabled("InitialCorruptCheck"):
            await self._server.corruption.initial_check()
        try:
            await peering.listen(self._server, peers)
        except OSError as error:
            raise StartError(f"listen for peers: {error.strerror or error}") from error
        self._server.start()

    async def _until_ready(self) -> None:
        ready = asyncio.ensure_future(self.server.ready.wait())
        failure = self.server.failure
        failure.add_done_callback(lambda _: ready.cancel())
        try:
            await ready
        except asyncio.CancelledError:
            if failure.done():
                raise failure.result() from None
            raise
        lg.info("ready to serve client requests")

    def _bind(self, urls: Iterable[URL], *, listen: bool = True) -> Bound:
        """Take the addresses before anything else is touched: they are what is mostly wrong. Who
        connects where we do not ``listen`` yet is refused, and does not wait for an answer."""
        bound = []
        for url in urls:
            try:
                listening = _bound_socket(url, reuse_port=self.config.socket_reuse_port)
                self._sockets.append(listening)
                if listen:
                    listening.listen(_BACKLOG)
            except OSError as error:
                raise StartError(f"listen {url}: {error.strerror or error}") from error
            bound.append((url, listening))
        return bound

    async def _serve(
        self, bound: Bound, methods: dict[str, Method], http: HttpHandler | None, traffic: str
    ) -> None:
        if not bound:
            return
        listener = GrpcServer(methods, http, self._limits(), report=self.server.failed)
        self._listeners.append(listener)
        for url, listening in bound:
            await listener.listen(sock=listening)
            lg.info("serving client traffic insecurely", traffic=traffic, address=str(url))

    def _limits(self) -> Limits:
        config = self.config
        return Limits(
            max_receive_message=config.max_request_bytes + GRPC_OVERHEAD,
            max_concurrent_streams=config.max_concurrent_streams,
            keepalive_interval=config.grpc_keepalive_interval,
            keepalive_timeout=config.grpc_keepalive_timeout,
            keepalive_min_time=config.grpc_keepalive_min_time,
        )

    async def stop(self) -> None:
        """Let calls in flight finish for a moment, then bring everything to disk and close.

        Raises:
            WALError, BackendError: not everything came to disk; all is closed.
        """
        self._health.set_serving(False)
        if self._gate is not None:
            self._gate.close()
        lg.info("closing etcd server", name=self.config.name, data_dir=self.config.data_dir)
        try:
            await asyncio.gather(*(listener.drain(DRAIN_SECONDS) for listener in self._listeners))
            if self._server is not None:
                await self._server.stop()
        finally:
            if self._peering is not None:
                await self._peering.close()
            if self._http is not None:
                await self._http.close()
            for listener in self._listeners:
                listener.close()
            self._listeners.clear()
            for listening in self._sockets:
                listening.close()
            self._sockets.clear()
        lg.info("closed etcd server", name=self.config.name, data_dir=self.config.data_dir)

    async def wait_fatal(self) -> BaseException:
        """Return why the member died, when it does."""
        return await asyncio.shield(self.server.failure)


def _bound_socket(url: URL, *, reuse_port: bool) -> socket.socket:
    """Raises OSError, and then leaves nothing open."""
    if url.is_unix:
        with suppress(FileNotFoundError):
            os.unlink(url.socket_path)  # left by a former process
        family: int = socket.AF_UNIX
        address: Any = url.socket_path
    else:
        flags = socket.AI_PASSIVE
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM, flags=flags)[0]
        family, address = found[0], found[4]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening
