"""The ResponseHeader that opens every reply, as bytes."""

from __future__ import annotations

from kvorum.pb.wire import int64_field, varint
from kvorum.types import MemberID, Revision, Term


class HeaderWriter:
    """Encodes ``{cluster_id, member_id, revision, raft_term}`` as field 1 of a reply.

    Only the revision differs between two replies of one batch, so the rest is encoded once, and
    the last header is kept for the replies that share its revision.
    """

    __slots__ = ("_last", "_last_revision", "_prefix", "_suffix", "term")

    def __init__(self, cluster: int, member: MemberID) -> None:
        self._prefix = b"%b%b\x18" % (int64_field(1, cluster), int64_field(2, member))
        self._suffix = b""
        self._last_revision = -1
        self._last = b""
        self.term = Term(0)

    def set_term(self, term: Term) -> None:
        self.term = term
        self._suffix = int64_field(4, term)
        self._last_revision = -1

    def field(self, revision: Revision) -> bytes:
        """The header as a whole field: key, length, message."""
        if revision != self._last_revision:
            body = b"%b%b%b" % (self._prefix, varint(revision), self._suffix)
            self._last = b"\n%b%b" % (varint(len(body)), body)
            self._last_revision = revision
        return self._last


def revision_only(revision: Revision) -> bytes:
    """The header inside the answers of a txn: the revision alone (etcd leaves out the rest)."""
    body = int64_field(3, revision)
    return b"\n%b%b" % (varint(len(body)), body)
