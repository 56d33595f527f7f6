"""The server on an asyncio loop: sockets on one side, the I/O-free connections on the other."""

from __future__ import annotations

import asyncio
import socket as sockets
import ssl as tls
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol, cast

from kvorum.h2.call import Call
from kvorum.h2.deadlines import Deadlines
from kvorum.h2.frames import PREFACE
from kvorum.h2.http import Answer, HttpHandler, HttpRequest, WantsSource
from kvorum.h2.http1 import Http1Connection
from kvorum.h2.limits import Limits
from kvorum.h2.method import Method
from kvorum.h2.responder import Responder
from kvorum.h2.server_core import ServerConnection
from kvorum.h2.service import Service

ALPN: Final = ["h2", "http/1.1"]
_SWEEP: Final = 1.0  # seconds between looks at every connection's time limits
_LINGER: Final = 1.0  # grpc-go: a closed connection's peer gets so long to read what it was told


class _Core(Protocol):
    closed: bool
    out: list[Any]

    @property
    def choked(self) -> bool: ...

    next_check: float

    def receive(self, data: bytes, now: float) -> None: ...
    def take(self) -> bytes: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...
    def lost(self) -> None: ...
    def finish(self) -> bool: ...
    def drain(self, now: float) -> None: ...
    def tick(self, now: float) -> None: ...


class Link(asyncio.Protocol):
    """One accepted connection."""

    def __init__(self, server: GrpcServer) -> None:
        self._server = server
        self._time = server.loop.time
        self._early = b""
        self._core: _Core | None = None
        self._since = server.loop.time()
        self._stalled: tuple[float, int] | None = None
        self._stopped = False
        self._choked = False
        self._ending: float | None = None
        self.transport: asyncio.Transport

    # --- asyncio's calls ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._server.link_made(self)

    def data_received(self, data: bytes) -> None:
        server = self._server
        server.bytes_in += len(data)
        core = self._core
        if core is None:
            data = self._early = self._early + data
            core = self._choose()
            if core is None:
                return
        core.receive(data, self._time())
        if core.out:
            # Not at once: when many sockets are ready, answers given together make the next
            # requests come together, and each turn of the loop carries more.
            server.mark(self)
        else:
            self.flush()
            # What the handlers have put off until the end of the turn may answer at once; its
            # output then leaves before the loop waits again.
            server.arm()

    def eof_received(self) -> bool:
        """The client sends no more. An HTTP/1.1 answer under way is still wanted."""
        if self._core is None or not self._core.finish():
            return False
        self.flush()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.links.discard(self)
        if self._core is not None:
            self._core.lost()
        self._server.link_gone()

    def pause_writing(self) -> None:
        self._stalled = (self._time(), self.transport.get_write_buffer_size())
        if self._core is not None:
            self._core.hold()

    def resume_writing(self) -> None:
        self._stalled = None
        if self._stopped:
            self._stopped = False
            if not self._choked:
                self.transport.resume_reading()
        if self._core is not None:
            self._core.release()
            if self._choked:
                self._wake()

    # --- ours -----------------------------------------------------------------------------------

    def _choose(self) -> _Core | None:
        """HTTP/2 is told by its preface, of which three bytes are enough to exclude HTTP/1.1."""
        early = self._early
        if len(early) < 3 and PREFACE.startswith(early):
            return None
        self._early = b""
        server = self._server
        peer = _address(self.transport.get_extra_info("peername"))
        secure = self.transport.get_extra_info("sslcontext") is not None
        certificate = self.transport.get_extra_info("peercert")
        now = self._time()
        core: _Core
        if early.startswith(PREFACE[:3]):
            core = ServerConnection(
                server.service,
                server.limits,
                self._wake,
                now,
                peer=peer,
                secure=secure,
                certificate=certificate,
            )
        else:
            core = Http1Connection(
                server.run_http,
                server.limits,
                self._wake,
                now,
                peer=peer,
                secure=secure,
                certificate=certificate,
                wants_source=server.wants_source,
            )
        self._core = core
        return core

    def _wake(self) -> None:
        self._server.mark(self)

    def flush(self) -> None:
        core = self._core
        transport = self.transport
        if core is None or transport.is_closing():
            return  # lost since it was marked
        data = core.take()
        if self._ending is not None:
            return  # an answer that came after its connection was given up
        if data:
            self._server.bytes_out += len(data)
            transport.write(data)
            if self._stalled is not None and not self._stopped:
                self._stop_reading()
        if core.choked is not self._choked:
            self._choke(core.choked)
        if core.closed and self._ending is None:
            self._end()

    def _choke(self, choked: bool) -> None:
        """Read no more while the core has more than it should; it says when to go on."""
        self._choked = choked
        if self.transport.is_closing():
            return
        if choked:
            self.transport.pause_reading()
        elif not self._stopped:
            self.transport.resume_reading()

    def _stop_reading(self) -> None:
        if self.transport.get_write_buffer_size() > self._server.limits.stop_reading:
            self._stopped = True
            if not self._choked:
                self.transport.pause_reading()

    def _end(self) -> None:
        """Say what was to be said, then end; closing at once could destroy unread words."""
        self._ending = self._time() + _LINGER
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        else:
            self.transport.close()

    def drain(self) -> None:
        if self._core is None:
            self.transport.close()
        else:
            self._core.drain(self._time())
            self.flush()

    def sweep(self, now: float) -> None:
        """What time does to a connection."""
        limits = self._server.limits
        if self._ending is not None:
            left = self.transport.get_write_buffer_size()
            if now >= self._ending + (limits.write_stall_timeout if left else 0.0):
                self.transport.abort()
        elif self._core is None:
            if now >= self._since + limits.handshake_timeout:
                self.transport.abort()
        elif self._core.next_check <= now:
            self._core.tick(now)
            self.flush()
        if self._stalled is not None:
            self._check_stall(now)

    def _check_stall(self, now: float) -> None:
        assert self._stalled is not None
        since, size = self._stalled
        left = self.transport.get_write_buffer_size()
        if left < size:
            self._stalled = (now, left)
        elif now >= since + self._server.limits.write_stall_timeout:
            self.transport.abort()


def _address(name: object) -> str:
    """host:port, or empty for a unix socket."""
    if not isinstance(name, tuple):
        return ""
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class GrpcServer:
    """Serves gRPC methods, and plain HTTP on the same ports.

    ``methods`` maps paths (``/package.Service/Method``) to methods. ``http_handler`` gets what is
    not gRPC; without one it is refused. ``report`` gets exceptions that handlers let out.
    ``wants_source`` picks the HTTP/1.1 requests whose bodies come as they arrive (``chunks``).
    ``bytes_in`` and ``bytes_out`` count what went over the sockets.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        http_handler: HttpHandler | None = None,
        limits: Limits | None = None,
        *,
        report: Callable[[BaseException], None] | None = None,
        wants_source: WantsSource | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.limits = limits or Limits()
        self.methods = methods
        self.wants_source = wants_source
        self.links: set[Link] = set()
        self.bytes_in = 0
        self.bytes_out = 0
        self._deadlines = Deadlines(self._arm)
        self._timer: asyncio.TimerHandle | None = None
        self._report = report
        self._draining = False
        self._responder = Responder(http_handler, report)
        http = self.run_http if http_handler is not None else None
        self.service = Service(methods, self._deadlines, http=http, report=report)
        self._listeners: list[asyncio.Server] = []
        self._dirty: list[Link] = []
        self._armed = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()

    @property
    def connections(self) -> int:
        return len(self.links)

    # --- listening ------------------------------------------------------------------------------

    async def listen(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        ssl: tls.SSLContext | None = None,
        reuse_port: bool = False,
        sock: sockets.socket | None = None,
        path: str | None = None,
        backlog: int = 1024,
    ) -> asyncio.Server:
        """Listen on host and port, on an existing socket, or on a unix socket's path. An ``ssl``
        context is made to offer HTTP/2 by ALPN, as gRPC clients insist on it."""
        if ssl is not None:
            ssl.set_alpn_protocols(ALPN)
        handshake = self.limits.handshake_timeout if ssl is not None else None
        create = self.loop.create_server
        server: asyncio.Server
        if path is not None:
            server = await self.loop.create_unix_server(
                self._link, path, ssl=ssl, backlog=backlog, ssl_handshake_timeout=handshake
            )
        elif sock is not None:
            server = await create(
                self._link, sock=sock, ssl=ssl, backlog=backlog, ssl_handshake_timeout=handshake
            )
        else:
            server = await create(
                self._link,
                host,
                port or 0,
                ssl=ssl,
                backlog=backlog,
                reuse_port=reuse_port or None,
                ssl_handshake_timeout=handshake,
            )
        self._listeners.append(server)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(_SWEEP, self._sweep)
        return server

    def _link(self) -> Link:
        return Link(self)

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(_SWEEP, self._sweep)
        now = self.loop.time()
        for link in list(self.links):
            self._guarded(link, partial(link.sweep, now))

    # --- output given outside of a read ---------------------------------------------------------

    def mark(self, link: Link) -> None:
        """The connection has output: all such are written once in the next loop turn."""
        if not self._armed:
            self.arm()
        self._dirty.append(link)

    def arm(self) -> None:
        """Have marked connections written after all that was put off until now."""
        if not self._armed:
            self._armed = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is there now, without waiting for the next turn."""
        self._armed = False
        dirty, self._dirty = self._dirty, []
        for link in dirty:
            self._guarded(link, link.flush)

    def _guarded(self, link: Link, work: Callable[[], None]) -> None:
        """A bug that shows on one connection ends that one; the others must go on."""
        try:
            work()
        except Exception as error:
            link.transport.abort()
            if self._report is None:
                raise
            self._report(error)

    # --- deadlines ------------------------------------------------------------------------------

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        for call in self._deadlines.expire(self.loop.time()):
            call.expire()
        due = self._deadlines.next_due
        if due is not None and self._timer is None:
            self._arm(due)

    # --- plain HTTP -----------------------------------------------------------------------------

    def run_http(self, answer: Answer, request: HttpRequest) -> None:
        self._responder.run(answer, request)

    # --- the end --------------------------------------------------------------------------------

    def link_made(self, link: Link) -> None:
        self.links.add(link)
        if self._draining:  # accepted just before listening stopped
            link.transport.close()

    def link_gone(self) -> None:
        if not self.links:
            self._emptied.set()

    def stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - a bound, not a cancel
        """Take no new connections or calls, let those under way finish; False if ``timeout``
        seconds were not enough. ``close`` must follow."""
        self._draining = True
        self.stop_listening()
        self._emptied.clear()
        for link in list(self.links):
            link.drain()
        if not self.links:
            return True
        try:
            await asyncio.wait_for(self._emptied.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """End everything now."""
        self.stop_listening()
        for link in list(self.links):
            link.transport.abort()
        self._responder.close()
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        self._sweeper = None


__all__ = ["Call", "GrpcServer", "Link"]
