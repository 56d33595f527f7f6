"""The log's record that a raft snapshot was saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from google.protobuf.message import DecodeError

from kvorum.pb import raftpb, walpb
from kvorum.raft.types import NO_INDEX, NO_TERM, ConfState, SnapshotMetadata
from kvorum.types import Index, MemberID, Term


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot's place in the log. Only the one every log begins with, 0/0, has no conf state;
    nor have those of etcd before 3.5."""

    index: Index = NO_INDEX
    term: Term = NO_TERM
    conf_state: ConfState | None = None

    @classmethod
    def of(cls, metadata: SnapshotMetadata) -> Self:
        return cls(metadata.index, metadata.term, metadata.conf_state)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises ValueError."""
        try:
            message = walpb.Snapshot.FromString(data)
        except DecodeError as error:
            raise ValueError("not a snapshot record") from error
        conf = conf_state(message.conf_state) if message.HasField("conf_state") else None
        return cls(Index(message.index), Term(message.term), conf)

    def encode(self) -> bytes:
        if self.index and self.conf_state is None:
            raise ValueError(f"the snapshot at {self.term}/{self.index} has no conf state")
        message = walpb.Snapshot(index=self.index, term=self.term)
        conf = self.conf_state
        if conf is not None:
            message.conf_state.CopyFrom(
                raftpb.ConfState(
                    voters=conf.voters,
                    learners=conf.learners,
                    voters_outgoing=conf.voters_outgoing,
                    learners_next=conf.learners_next,
                    auto_leave=conf.auto_leave,
                )
            )
        return message.SerializeToString()


def conf_state(message: raftpb.ConfState) -> ConfState:
    return ConfState(
        tuple(map(MemberID, message.voters)),
        tuple(map(MemberID, message.learners)),
        tuple(map(MemberID, message.voters_outgoing)),
        tuple(map(MemberID, message.learners_next)),
        message.auto_leave,
    )
