"""What the transport between members and the member itself owe each other.

`Transport` is what a member sends through; `Host` is what the transport asks of the member. Both
are used on the event loop only. Besides `rafthttp` there is a transport for simulations.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kvorum.raft.types import Message
from kvorum.types import MemberID


@dataclass(frozen=True, slots=True)
class OutgoingSnapshot:
    """A database on its way to a peer: the MsgSnap as it is to be sent (its index and term are
    those of the database, not those that raft asked for), the size of the file in bytes, and the
    file itself, piece by piece: a bbolt file or, if ``image``, our own."""

    message: Message
    size: int
    chunks: AsyncIterator[bytes]
    image: bool = False


class Transport(Protocol):
    """Sends raft messages. Nothing here blocks, and a peer that is slow or dead costs the others
    nothing: what finds a full queue is dropped, and reported to the host as unreachable."""

    def send(self, messages: Sequence[Message]) -> None:
        """Take messages to other members; those to unknown members are dropped. A MsgSnap is sent
        with the database that `Host.open_snapshot` gives."""

    def add_peer(self, member: MemberID, urls: Iterable[str]) -> None:
        """Begin to speak with a member; one that is known already keeps its URLs."""

    def update_peer(self, member: MemberID, urls: Iterable[str]) -> None: ...

    def remove_peer(self, member: MemberID) -> None:
        """Stop speaking with a member."""

    def active_since(self, member: MemberID) -> float | None:
        """Loop time since when messages of the member have been coming in without a break; None if
        it is not connected."""

    def pause(self) -> None:
        """Neither send nor receive, as if cut off; for tests."""

    def resume(self) -> None: ...

    async def close(self) -> None: ...


class Host(Protocol):
    """The member, as its transport sees it."""

    def receive(self, message: Message) -> None:
        """Take a raft message from a peer; it is stepped in this or the next turn of the loop.

        Raises:
            RemovedMember: its sender was removed from the cluster.
            WrongMember: it is meant for somebody else.
        """

    async def receive_snapshot(self, message: Message, database: Path) -> None:
        """Take a MsgSnap and its database, a whole file on disk, bbolt's or ours, that now belongs
        to the host. Raises what `receive` raises; SnapError, OSError: the database cannot be
        taken."""

    def snapshot_directory(self) -> Path:
        """Where incoming databases are written to, as ``tmp*``."""

    def open_snapshot(
        self, message: Message, *, image: bool = False
    ) -> AbstractAsyncContextManager[OutgoingSnapshot]:
        """The database for a MsgSnap that raft wants sent; ``image``: the receiver can use a
        database file of ours."""

    def is_removed(self, member: MemberID) -> bool:
        """Whether the member once belonged to the cluster and was removed."""

    def report_unreachable(self, member: MemberID) -> None: ...

    def report_snapshot(self, member: MemberID, ok: bool) -> None:
        """A MsgSnap was delivered, or failed."""

    def told_removed(self) -> None:
        """A peer says that this member was removed from the cluster: it has to stop."""


class RemovedMember(Exception):
    """A message from a member that was removed from the cluster."""


class WrongMember(Exception):
    """A message meant for another member."""


MakeTransport = Callable[[Host], Transport]
