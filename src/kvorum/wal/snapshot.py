"""The log's record that a raft snapshot was saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from google.protobuf.message import DecodeError

from kvorum.pb import walpb
from kvorum.raft import codec
from kvorum.raft.types import NO_INDEX, NO_TERM, ConfState, SnapshotMetadata
from kvorum.types import Index, Term
from kvorum.wal.record import varint


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
        conf = None
        if message.HasField("conf_state"):
            conf = codec.decode_conf_state(message.conf_state.SerializeToString())
        return cls(Index(message.index), Term(message.term), conf)

    def encode(self) -> bytes:
        """Raises ValueError without the conf state that a snapshot needs."""
        head = b"\x08%b\x10%b" % (varint(self.index), varint(self.term))
        if self.conf_state is not None:
            conf = codec.encode_conf_state(self.conf_state)
            return head + b"\x1a" + varint(len(conf)) + conf
        if self.index:
            raise ValueError(f"the snapshot at {self.term}/{self.index} has no conf state")
        return head
