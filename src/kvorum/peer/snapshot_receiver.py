"""A database that a peer sends: saved as it comes, and handed to the host when it is whole."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from google_crc32c import extend as crc32c_extend

from kvorum.durations import render as duration
from kvorum.h2.http import HttpResponse, text_response
from kvorum.peer.context import Context
from kvorum.peer.framing import UINT64, checked_size
from kvorum.peer.interface import RemovedMember, WrongMember
from kvorum.peer.sizes import humane_size
from kvorum.raft.codec import decode_message
from kvorum.raft.errors import DecodeError
from kvorum.raft.types import Message, MsgType, Snapshot
from kvorum.snap.errors import SnapError

T = TypeVar("T")

MAX_HEAD: Final = 64 * 1024 * 1024
"""Bytes of the raft message in front of the database. etcd: 64 MiB."""

MAX_INCOMING: Final = 8
"""Snapshots that are taken at the same time. Leaders send one; there are not many leaders."""

UNKNOWN_SENDER: Final = "UNKNOWN_SNAPSHOT_SENDER"

_BLOCK: Final = 1024 * 1024
_PIECES: Final = 1024
"""Bytes, or pieces of them, that are gathered before a thread writes them in one step; Linux takes
1024 at a time."""
_HEAD: Final = 8
_SUM: Final = 4
_WHOLE: Final = 0x48674BC7
"""The CRC-32C of anything with its own behind it."""


class SnapshotReceiver:
    """Takes the bodies of ``POST /raft/snapshot``."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._incoming = 0

    def refused(self, sender: str = UNKNOWN_SENDER) -> None:
        """Count a snapshot that did not arrive."""
        self._ctx.transfer.receive_failures.with_labels(sender).value += 1

    async def receive(
        self, pieces: AsyncIterator[bytes], address: str, *, image: bool = False
    ) -> HttpResponse:
        """The answer to the sender; ``image``: it sends a file of ours, and its checksum. Raises
        ConnectionError if it left before the end."""
        ctx = self._ctx
        try:
            message, rest = await _read_head(pieces)
        except (DecodeError, ConnectionError) as error:
            text = f"failed to decode raft message ({error})"
            ctx.lg.warn(
                "failed to decode Raft message", local_member_id=ctx.local_name, error=error
            )
            ctx.metrics.received_failures.with_labels(address).value += 1
            self.refused(f"{0:x}")
            return text_response(400, text)
        transfer = _Transfer(ctx, message, image)
        if message.type is not MsgType.SNAP or message.snapshot is None:
            transfer.warn("unexpected Raft message type", message_type=str(message.type))
            self.refused(transfer.sender)
            return text_response(400, "wrong raft message type")
        return await self._receive(transfer, rest, pieces)

    async def _receive(
        self, transfer: _Transfer, rest: bytes, pieces: AsyncIterator[bytes]
    ) -> HttpResponse:
        receiving = self._ctx.transfer.receiving.with_labels(transfer.sender)
        receiving.value += 1
        self._incoming += 1
        arrived = False
        try:
            if self._incoming > MAX_INCOMING:
                return transfer.not_saved("too many snapshots at a time")
            if transfer.message.to != self._ctx.us.local or self._ctx.paused:
                return transfer.not_processed("it is meant for another member")
            answer = await transfer.run(rest, pieces)
            arrived = answer.status == 204
            return answer
        finally:
            self._incoming -= 1
            receiving.value -= 1
            if not arrived:
                self.refused(transfer.sender)


class _Transfer:
    """One snapshot that is coming in."""

    def __init__(self, ctx: Context, message: Message, image: bool) -> None:
        self.message = message
        self._image = image
        self.sender = f"{message.from_:x}"
        self._ctx = ctx
        self._started = ctx.loop.time()
        self._snapshot = message.snapshot or Snapshot()
        self._fields = {"local_member_id": ctx.local_name, "remote_snapshot_sender_id": self.sender}

    @property
    def _index(self) -> dict[str, object]:
        return {"incoming_snapshot_index": self._snapshot.metadata.index}

    def warn(self, text: str, **fields: object) -> None:
        self._ctx.lg.warn(text, **self._fields, **fields)

    def not_saved(self, error: object) -> HttpResponse:
        self.warn("failed to save incoming database snapshot", **self._index, error=error)
        return text_response(500, f"failed to save KV snapshot ({error})")

    def not_processed(self, error: object) -> HttpResponse:
        self.warn("failed to process Raft message", error=error)
        return text_response(500, f"failed to process raft message ({error})")

    async def run(self, rest: bytes, pieces: AsyncIterator[bytes]) -> HttpResponse:
        ctx = self._ctx
        head = len(self._snapshot.data)
        ctx.lg.info(
            "receiving database snapshot",
            **self._fields,
            **self._index,
            incoming_snapshot_message_size_bytes=head,
            incoming_snapshot_message_size=humane_size(head),
        )
        file = _File(ctx, ctx.host.snapshot_directory(), summed=self._image)
        try:
            path = await file.save(rest, pieces)
        except ConnectionError as error:
            self.not_saved(error)
            raise
        except OSError as error:
            return self.not_saved(error)
        finally:
            file.close()
        self._log_saved(path, file.size)
        try:
            await ctx.host.receive_snapshot(self.message, path)
        except (RemovedMember, WrongMember, SnapError, OSError) as error:
            with suppress(FileNotFoundError):  # unless the host has taken it away
                path.unlink()
            return self.not_processed(str(error) or type(error).__name__)
        ctx.transfer.received.with_labels(self.sender).value += 1
        seconds = ctx.transfer.receive_seconds.with_labels(self.sender)
        seconds.observe(ctx.loop.time() - self._started)
        return HttpResponse(204)

    def _log_saved(self, path: Path, size: int) -> None:
        ctx = self._ctx
        took = ctx.loop.time() - self._started
        ctx.metrics.received_bytes.with_labels(self.sender).value += size
        ctx.snap.db_save.observe(took)
        text = humane_size(size)
        ctx.lg.info("saved database snapshot to disk", path=str(path), bytes=size, size=text)
        ctx.lg.info(
            "received and saved database snapshot",
            **self._fields,
            **self._index,
            incoming_snapshot_size_bytes=size,
            incoming_snapshot_size=text,
            download_took=duration(int(took * 1e9)),
        )


class _File:
    """A temporary file that a thread of its own writes, so that a slow disk stops nobody. Jobs run
    in order, so the file is not closed below a write that is still under way."""

    def __init__(self, ctx: Context, folder: Path, *, summed: bool) -> None:
        """``summed``: the last 4 bytes are the CRC-32C of the others, and no part of the file."""
        self.size = 0
        self._summed = summed
        self._sum = 0
        self._ctx = ctx
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "kvorum-receive-snapshot")
        self._path: Path | None = None
        self._fd = -1
        self._writing: asyncio.Future[None] | None = None
        self._kept = False

    async def save(self, first: bytes, pieces: AsyncIterator[bytes]) -> Path:
        """Write and sync everything; the file then belongs to the caller. Raises OSError."""
        await self._do(self._open)
        block, held = [first], len(first)
        async for piece in pieces:
            block.append(piece)
            held += len(piece)
            if held >= _BLOCK or len(block) >= _PIECES:
                full, block, held = block, [], 0
                await self._write_behind(full)
        if block:
            await self._write_behind(block)
        await self._written()
        await self._do(self._check_sum)
        started = self._ctx.timer()
        await self._do(lambda: os.fsync(self._fd))
        self._ctx.snap.db_fsync.observe(self._ctx.timer() - started)
        self._kept = True
        assert self._path is not None
        return self._path

    async def _write_behind(self, block: list[bytes]) -> None:
        """One block is written while the next one comes in."""
        await self._written()
        self._writing = self._ctx.loop.run_in_executor(self._thread, lambda: self._write(block))

    async def _written(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    def close(self) -> None:
        """Close the file, and remove it unless all of it was saved."""
        if self._writing is not None:
            self._writing.add_done_callback(_ignore_result)
        self._thread.submit(self._close)
        self._thread.shutdown(wait=False)

    async def _do(self, job: Callable[[], T]) -> T:
        return await self._ctx.loop.run_in_executor(self._thread, job)

    # --- in the thread --------------------------------------------------------------------------

    def _open(self) -> None:
        self._fd, name = tempfile.mkstemp(prefix="tmp", dir=self._folder)
        self._path = Path(name)

    def _write(self, block: list[bytes]) -> None:
        size = sum(map(len, block))
        written = os.writev(self._fd, block)
        if written < size:
            left = memoryview(b"".join(block))[written:]
            while left:
                left = left[os.write(self._fd, left) :]
        if self._summed:
            for piece in block:
                self._sum = crc32c_extend(self._sum, piece)
        _write_back(self._fd, self.size, size)
        self.size += size

    def _check_sum(self) -> None:
        if not self._summed:
            return
        if self._sum != _WHOLE:
            raise OSError(errno.EIO, "the database is not what was sent: its checksum is wrong")
        self.size -= _SUM
        os.ftruncate(self._fd, self.size)

    def _close(self) -> None:
        if self._path is None:
            return
        os.close(self._fd)
        if not self._kept:
            with suppress(FileNotFoundError):
                self._path.unlink()


async def _read_head(pieces: AsyncIterator[bytes]) -> tuple[Message, bytes]:
    """The raft message, and what came with it of the database.

    Raises DecodeError; ConnectionError if the sender left.
    """
    parts: list[bytes] = []
    held, need = 0, _HEAD
    async for piece in pieces:
        parts.append(piece)
        held += len(piece)
        if held < need:
            continue
        data = b"".join(parts)
        length = checked_size(UINT64.unpack_from(data)[0], MAX_HEAD)
        need = _HEAD + length
        if held >= need:
            return decode_message(data, _HEAD, need), data[need:]
        parts = [data]
    raise DecodeError("unexpected EOF")


def _ignore_result(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()


def _write_back(fd: int, start: int, length: int) -> None:
    """Have the disk begin now, so that the sync finds little left to do, and the disk's other users
    are not kept waiting by all of it at once. On Linux this waits for nothing."""
    if sys.platform == "linux":
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)
