"""The member as its transport sees it: messages in, databases in and out, and reports."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from kvorum.backend import BackendError
from kvorum.log import get_logger
from kvorum.membership import Cluster
from kvorum.peer.interface import OutgoingSnapshot, RemovedMember, WrongMember
from kvorum.raft.types import Message, MsgType
from kvorum.server.cluster.sending import SnapshotSender
from kvorum.server.install import SnapshotInstaller
from kvorum.server.raftnode import RaftNode
from kvorum.types import MemberID

lg = get_logger()


class PeerHost:
    """A `Host`. ``gone`` is called when a peer says that this member was removed."""

    def __init__(
        self,
        *,
        member: MemberID,
        cluster: Cluster,
        raft: RaftNode,
        installer: SnapshotInstaller,
        sender: SnapshotSender,
        directory: Path,
        gone: Callable[[], None],
    ) -> None:
        self._id = member
        self._cluster = cluster
        self._raft = raft
        self._installer = installer
        self._sender = sender
        self._directory = directory
        self._gone = gone

    def receive(self, message: Message) -> None:
        """Take a raft message for this or the next turn of the loop. Raises RemovedMember,
        WrongMember."""
        self._check(message)
        if message.type is MsgType.SNAP:
            # Without its database it is of no use, and nobody sends it in this way.
            lg.warn("ignored a snapshot without a database", from_member=f"{message.from_:x}")
            return
        self._raft.receive(message)

    async def receive_snapshot(self, message: Message, database: Path) -> None:
        """Take a MsgSnap with its database. Raises RemovedMember, WrongMember, SnapError."""
        self._check(message)
        assert message.snapshot is not None
        await self._installer.adopt(database, message.snapshot.metadata.index)
        self._raft.receive(message)

    def _check(self, message: Message) -> None:
        if message.from_ in self._cluster.removed:
            lg.warn(
                "rejected Raft message from removed member",
                local_member_id=f"{self._id:x}",
                removed_member_id=f"{message.from_:x}",
            )
            raise RemovedMember(f"{message.from_:x}")
        if message.to != self._id:
            lg.warn(
                "rejected Raft message to mismatch member",
                local_member_id=f"{self._id:x}",
                mismatch_member_id=f"{message.to:x}",
            )
            raise WrongMember(f"{message.to:x}")

    def snapshot_directory(self) -> Path:
        return self._directory

    def open_snapshot(
        self, message: Message, *, image: bool = False
    ) -> AbstractAsyncContextManager[OutgoingSnapshot]:
        """The database for a MsgSnap. Raises BackendError, at once if the state is being replaced:
        a member may come to lead before it has installed what another leader sent it."""
        if self._installer.busy:
            raise BackendError("the database is being replaced")
        return self._sender.open(message, image=image)

    def is_removed(self, member: MemberID) -> bool:
        return member in self._cluster.removed

    def report_unreachable(self, member: MemberID) -> None:
        self._raft.report_unreachable(member)

    def report_snapshot(self, member: MemberID, ok: bool) -> None:
        self._sender.reported(member, ok)
        self._raft.report_snapshot(member, ok)

    def told_removed(self) -> None:
        self._gone()
