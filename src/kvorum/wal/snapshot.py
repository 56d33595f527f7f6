"""The log's record that a raft snapshot was saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from kvorum.raft import codec
from kvorum.raft.types import NO_INDEX, NO_TERM, ConfState, SnapshotMetadata
from kvorum.raft.wire import bytes_field, fields, uint_field
from kvorum.types import Index, Term


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
        index, term, conf = NO_INDEX, NO_TERM, None
        for number, value, (start, end) in fields(data, 0, len(data)):
            if number == 1:
                index = Index(value)
            elif number == 2:
                term = Term(value)
            elif number == 3:
                conf = codec.decode_conf_state(data[start:end])
        return cls(index, term, conf)

    def encode(self) -> bytes:
        head = uint_field(1, self.index) + uint_field(2, self.term)
        if self.conf_state is not None:
            return head + bytes_field(3, codec.encode_conf_state(self.conf_state))
        if self.index:
            raise ValueError(f"the snapshot at {self.term}/{self.index} has no conf state")
        return head
