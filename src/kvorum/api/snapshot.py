"""etcdserverpb.Maintenance.Snapshot: the database as a file, for a backup."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from datetime import timedelta
from typing import Final

from kvorum import errors
from kvorum.api.unary import one_request
from kvorum.backend import Backend
from kvorum.errors import Code
from kvorum.h2 import Call, Method
from kvorum.log import get_logger
from kvorum.pb import etcdserverpb as pb
from kvorum.peer.sizes import humane_size
from kvorum.server.dbsnapshot import OpenDatabase, open_database
from kvorum.server.meta import read_storage_version
from kvorum.server.server import Server

BLOCK: Final = 32 << 10
"""Bytes of the file in a message, as etcd cuts it."""
BACKLOG: Final = 512 << 10
"""Bytes that wait for a client before no more are made for it."""
STALL: Final = 300.0
"""Seconds in which a client that has enough waiting for it has to take something."""
MAX_SNAPSHOTS: Final = 4
"""Given out at a time; each may keep old pages of the database, or a copy of it."""

lg = get_logger()


class SnapshotService:
    """Snapshot."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._running = 0

    def methods(self) -> dict[str, Method]:
        return {"/etcdserverpb.Maintenance/Snapshot": Method(self.snapshot, streaming=True)}

    def snapshot(self, call: Call) -> None:
        one_request(call, pb.SnapshotRequest, lambda _: self._start(call))

    def _start(self, call: Call) -> None:
        if self._running >= MAX_SNAPSHOTS:
            raise errors.RequestTooManyRequests
        self._running += 1
        task = self._server.run(call, self._send(call))
        task.add_done_callback(self._ended)

        def cancel() -> None:
            task.cancel()

        call.on_cancel = cancel

    def _ended(self, _: object) -> None:
        self._running -= 1

    async def _send(self, call: Call) -> None:
        server = self._server
        started = server.now()
        async with open_database(server.backend) as database:
            version = read_storage_version(database.small)
            fields = {
                "total_bytes": database.size,
                "size": humane_size(database.size),
                "storage_version": version,
            }
            lg.info("sending database snapshot to client", **fields)
            if not await _Outlet(call, server.backend, version).send_file(database):
                call.fail(Code.ABORTED, f"snapshot: nothing was taken for {STALL:.0f} seconds")
                return
        took = timedelta(seconds=server.now() - started)
        lg.info("successfully sent database snapshot to client", **fields, took=took)
        call.finish()


class _Outlet:
    """A call that is sent a file, and no more than its client takes."""

    def __init__(self, call: Call, backend: Backend, version: str) -> None:
        self._call = call
        self._backend = backend
        self._version = version
        self._taken = asyncio.Event()
        call.on_writable = self._taken.set

    async def send_file(self, database: OpenDatabase) -> bool:
        """Send it in blocks, each with what is still to come, and then its SHA-256. False: the
        client has taken nothing for too long."""
        digest = hashlib.sha256()
        remaining = database.size
        async for blocks in _blocks(database.chunks):
            await self._backend.in_thread(lambda blocks=blocks: _update(digest, blocks))  # type: ignore[misc]
            for block in blocks:
                remaining -= len(block)
                if not await self._send(remaining, block):
                    return False
        assert remaining == 0, f"{remaining} bytes of {database.size} were never sent"
        lg.info(
            "sending database sha256 checksum to client",
            total_bytes=database.size,
            checksum_size=digest.digest_size,
        )
        return await self._send(0, digest.digest())

    async def _send(self, remaining: int, blob: bytes) -> bool:
        response = pb.SnapshotResponse(remaining_bytes=remaining, blob=blob, version=self._version)
        self._taken.clear()
        self._call.send(response.SerializeToString())
        if self._call.backlog < BACKLOG:
            return True
        try:
            async with asyncio.timeout(STALL):
                await self._taken.wait()
        except TimeoutError:
            return False
        return True


def _update(digest: hashlib._Hash, blocks: list[bytes]) -> None:
    for block in blocks:
        digest.update(block)


async def _blocks(pieces: AsyncIterable[bytes]) -> AsyncIterator[list[bytes]]:
    """The same bytes in pieces of `BLOCK`, some at a time; the last may be shorter."""
    rest = b""
    async for piece in pieces:
        data = rest + piece
        whole = len(data) // BLOCK * BLOCK
        yield [data[start : start + BLOCK] for start in range(0, whole, BLOCK)]
        rest = data[whole:]
    if rest:
        yield [rest]
