"""Sockets under the sans-I/O connections, and the epoll loop that turns them."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final

from bench.connection import Connection, Failure, ProtocolError

READ_SIZE: Final = 65_536
SILENCE: Final = 30.0
"""Seconds without one reply, while some are awaited, after which a run is given up."""


class LoadError(Exception):
    """The run is worthless: replies were errors, missing or wrong. The text says which."""


class Wire:
    """A socket with its connection, and when each request in flight was started.

    ``starts`` maps stream ids to ``time.perf_counter()`` seconds.
    """

    __slots__ = ("backlog", "connection", "fd", "sock", "starts", "watched")

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.fd = self.sock.fileno()
        self.connection = Connection()
        self.starts: dict[int, float] = {}
        self.backlog = b""
        self.watched = False

    def close(self) -> None:
        self.sock.close()

    def receive(self) -> list[int]:
        """Read once; returns the streams that ended well. Raises LoadError at end of file."""
        try:
            data = self.sock.recv(READ_SIZE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise LoadError(self._lost(str(error))) from error
        if not data:
            raise LoadError(self._lost("closed by the server"))
        try:
            return self.connection.feed(data)
        except ProtocolError as error:
            raise LoadError(f"the server broke the protocol: {error}") from error

    def transmit(self) -> None:
        """Send what the connection has to send, as far as the socket takes it."""
        out = self.connection.out
        if self.backlog:
            out.insert(0, self.backlog)
        data = b"".join(out) if len(out) != 1 else out[0]
        out.clear()
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise LoadError(self._lost(str(error))) from error
        self.backlog = data[sent:] if sent < len(data) else b""

    def _lost(self, why: str) -> str:
        said = f" ({self.connection.goaway})" if self.connection.goaway else ""
        waiting = max(len(self.starts), len(self.connection.sinks))
        return f"connection lost with {waiting} requests open: {why}{said}"


class Loop:
    """Waits for many wires at once."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.wires: dict[int, Wire] = {}

    def add(self, wires: Iterable[Wire]) -> None:
        for wire in wires:
            self.wires[wire.fd] = wire
            self._epoll.register(wire.fd, select.EPOLLIN)

    def remove(self, wire: Wire) -> None:
        """Forget a wire; the owner closes it."""
        if self.wires.pop(wire.fd, None) is not None:
            self._epoll.unregister(wire.fd)

    def close(self) -> None:
        """Close the loop and all its wires."""
        for wire in self.wires.values():
            wire.close()
        self.wires.clear()
        self._epoll.close()

    def sleep(self, seconds: float) -> bool:
        """Wait until a wire is readable or the time is over; finer than epoll's milliseconds."""
        return bool(select.select([self._epoll], [], [], max(0.0, seconds))[0])

    def turn(self, timeout: float) -> list[tuple[Wire, list[int]]]:
        """Wait at most ``timeout`` seconds, read; the wires read with their finished streams.

        The caller transmits on the returned wires.
        """
        read = []
        wires = self.wires
        for fd, event in self._epoll.poll(timeout):
            wire = wires[fd]
            if event & ~select.EPOLLOUT:
                read.append((wire, wire.receive()))
            if event & select.EPOLLOUT:
                wire.transmit()
                self.watch(wire)
        return read

    def watch(self, wire: Wire) -> None:
        """Ask for writability while a wire has a backlog; call after a transmit that left one."""
        wanted = bool(wire.backlog)
        if wanted != wire.watched:
            wire.watched = wanted
            mask = select.EPOLLIN | (select.EPOLLOUT if wanted else 0)
            self._epoll.modify(wire.fd, mask)

    def send(self, wire: Wire) -> None:
        """Transmit and see to the rest."""
        wire.transmit()
        if wire.backlog or wire.watched:
            self.watch(wire)


class Patience:
    """Raises LoadError when nothing has come for ``SILENCE`` seconds."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def progress(self) -> None:
        self._last = time.perf_counter()

    def check(self, what: Callable[[], str]) -> None:
        if time.perf_counter() - self._last > SILENCE:
            raise LoadError(f"no reply for {SILENCE:.0f} s: {what()}")


def describe(failures: list[Failure]) -> str:
    """Failed replies in one line: how many, and the first."""
    first = failures[0]
    return f"{len(failures)} replies were errors, the first: code {first.code} {first.message!r}"
