"""Requests on their way into the log.

A request waits here from its arrival until its entry was applied, its time is up, or the member
stops. All requests of one turn of the event loop go to consensus as one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol

from kvorum import errors
from kvorum.errors import EtcdError
from kvorum.raft.codec import encode_conf_change
from kvorum.raft.types import NO_INDEX, NO_TERM, ConfChange, Entry, EntryType
from kvorum.server.request import RequestIds, encode_request

MAX_WAITING: Final = 100_000
"""Requests that may wait at once; etcd's own bound is 5,000 entries between commit and apply, which
here are never apart for longer than one batch."""
MAX_WAITING_BYTES: Final = 256 * 1024 * 1024

CONF_CHANGE: Final = "conf_change"
"""The kind of a proposal that changes the members; it is no request of the log's schema."""

_NORMAL: Final = EntryType.NORMAL


class Caller(Protocol):
    """Who asked: an RPC, or a part of the server itself."""

    def reply(self, message: bytes, /) -> None: ...
    def fail(self, code: int, message: str, /) -> None: ...


class Ignored:
    """A caller that needs no answer."""

    __slots__ = ()

    def reply(self, message: bytes) -> None:
        pass

    def fail(self, code: int, message: str) -> None:
        pass


class Told:
    """A caller that only wants to know how it went: "" or the error's text."""

    __slots__ = ("_done",)

    def __init__(self, done: Callable[[str], None]) -> None:
        self._done = done

    def reply(self, message: bytes) -> None:
        self._done("")

    def fail(self, code: int, message: str) -> None:
        self._done(message)


class Proposal:
    """One request in flight. It rides on its log entry as ``Entry.local``, so that the member that
    proposed it need not decode it again.
    """

    __slots__ = ("caller", "data", "id", "kind", "request", "started")

    def __init__(
        self, request_id: int, kind: str, request: Any, caller: Caller, data: bytes, started: float
    ) -> None:
        self.id = request_id
        self.kind = kind
        self.request = request
        self.caller = caller
        self.data = data
        self.started = started


class Proposer:
    """Gathers proposals, and remembers those that wait for an answer.

    ``wake`` is called when the first proposal of a batch has come; the owner then takes the batch.
    ``clock`` gives seconds, of any origin. While ``crowded`` is set nothing more is taken in.

    ``conf_changes`` are the changes of the members that are to be proposed, for the owner to take.
    ``forwarded`` has the proposals that went to another member, by the bytes of their entries:
    when such an entry comes back with the log, the decoded request is still here.
    """

    def __init__(
        self,
        ids: RequestIds,
        *,
        max_request_bytes: int,
        wake: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.ids = ids
        self.waiting: dict[int, Proposal] = {}
        self.conf_changes: list[Entry] = []
        self.forwarded: dict[bytes, Proposal] = {}
        self.failed = 0
        self.crowded = False
        self.closed: type[EtcdError] | None = None
        self._max_request_bytes = max_request_bytes
        self._wake = wake
        self._clock = clock
        self._entries: list[Entry] = []
        self._bytes = 0

    def propose(self, kind: str, message: bytes, request: Any, caller: Caller) -> None:
        """Put a request into the next batch.

        Args:
            kind: the request's name in InternalRaftRequest, such as ``put``.
            message: the encoded request.
            request: the same, decoded, for the apply.
            caller: gets the reply or the failure, from this call or later, once.
        """
        waiting = self.waiting
        if (
            self.crowded
            or self.closed is not None
            or len(waiting) >= MAX_WAITING
            or self._bytes >= MAX_WAITING_BYTES
        ):
            self._refuse(caller)
            return
        request_id, id_bytes = self.ids.take()
        data = encode_request(kind, message, id_bytes)
        size = len(data)
        if size > self._max_request_bytes:
            fail(caller, errors.RequestTooLarge)
            return
        proposal = Proposal(request_id, kind, request, caller, data, self._clock())
        waiting[request_id] = proposal
        self._bytes += size
        entries = self._entries
        if not entries:
            self._wake()
        entries.append(Entry(NO_TERM, NO_INDEX, _NORMAL, data, proposal))

    def propose_conf_change(self, change: ConfChange, caller: Caller) -> None:
        """Put a change of the members among `conf_changes`. It gets a request id if it has none;
        the caller gets an empty reply, or the failure."""
        if self.closed is not None or len(self.waiting) >= MAX_WAITING:
            self._refuse(caller)
            return
        change = replace(change, id=change.id or self.ids.next())
        kind, data = encode_conf_change(change)
        proposal = Proposal(change.id, CONF_CHANGE, change, caller, data, self._clock())
        self.waiting[change.id] = proposal
        self._bytes += len(data)
        self.conf_changes.append(Entry(NO_TERM, NO_INDEX, kind, data, proposal))
        self._wake()

    def _refuse(self, caller: Caller) -> None:
        self.failed += 1
        fail(caller, self.closed or errors.RequestTooManyRequests)

    def take_batch(self) -> list[Entry]:
        """The entries gathered since the last call, in order of arrival."""
        entries = self._entries
        self._entries = []
        return entries

    def put_back(self, entries: list[Entry]) -> None:
        """Consensus cannot take these entries of the last batch now; they come first in the next.
        Nobody is woken for them."""
        self._entries[:0] = entries

    def forward(self, entries: list[Entry]) -> None:
        """These entries go to another member, and come back without what rides along with them."""
        for entry in entries:
            assert isinstance(entry.local, Proposal)
            self.forwarded[entry.data] = entry.local

    def done(self, request_id: int) -> Proposal | None:
        """A request was applied: hand out who waits for it, if anybody still does."""
        proposal = self.waiting.pop(request_id, None)
        if proposal is not None:
            self._bytes -= len(proposal.data)
        return proposal

    def demoted(self) -> None:
        """This member leads no more: take back what only a leader may propose (``leaders_own`` of
        the caller is true) and consensus has not been given yet, as it would be forwarded now."""
        kept = []
        for entry in self._entries:
            proposal = entry.local
            assert isinstance(proposal, Proposal)
            if getattr(proposal.caller, "leaders_own", False):
                self.done(proposal.id)
                fail(proposal.caller, errors.LeaderChanged)
            else:
                kept.append(entry)
        self._entries = kept

    def drop(self, entries: list[Entry], error: type[EtcdError]) -> None:
        """Consensus did not take these entries: tell their callers."""
        for entry in entries:
            assert isinstance(entry.local, Proposal)
            proposal = self.done(entry.local.id)
            if proposal is not None:
                self.failed += 1
                fail(proposal.caller, error)

    def expire(
        self,
        before: float,
        why: Callable[[float], type[EtcdError]] = lambda started: errors.Timeout,
    ) -> None:
        """Give up on what has waited since before a moment, for the reason that ``why`` gives for
        a start time. What consensus has may be applied all the same, the rest will not be."""
        late = []
        for proposal in self.waiting.values():
            if proposal.started >= before:
                break
            late.append(proposal)
        for proposal in late:
            self.done(proposal.id)
            self.forwarded.pop(proposal.data, None)
            self.failed += 1
            fail(proposal.caller, why(proposal.started))
        if late and self._entries:
            waiting = self.waiting
            self._entries = [e for e in self._entries if e.local.id in waiting]  # type: ignore[attr-defined]

    def close(self, error: type[EtcdError]) -> None:
        """Fail everything that waits, and all that comes from now on."""
        self.closed = error
        self._entries.clear()
        self.conf_changes.clear()
        self.forwarded.clear()
        for proposal in list(self.waiting.values()):
            self.done(proposal.id)
            fail(proposal.caller, error)


def fail(caller: Caller, error: type[EtcdError] | EtcdError) -> None:
    """Answer a caller with one of etcd's errors."""
    caller.fail(error.code, error.message)
