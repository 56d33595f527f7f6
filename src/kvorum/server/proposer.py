"""Requests on their way into the log.

A request waits here from its arrival until its entry was applied, its time is up, or the member
stops. All requests of one turn of the event loop go to consensus as one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from kvorum import errors
from kvorum.errors import EtcdError
from kvorum.raft.types import NO_INDEX, NO_TERM, Entry, EntryType
from kvorum.server.request import RequestIds, encode_request

MAX_WAITING: Final = 100_000
"""Requests that may wait at once; etcd's own bound is 5,000 entries between commit and apply, which
here are never apart for longer than one batch."""
MAX_WAITING_BYTES: Final = 256 * 1024 * 1024

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

    __slots__ = ("caller", "id", "kind", "request", "size", "started")

    def __init__(
        self, request_id: int, kind: str, request: Any, caller: Caller, size: int, started: float
    ) -> None:
        self.id = request_id
        self.kind = kind
        self.request = request
        self.caller = caller
        self.size = size
        self.started = started


class Proposer:
    """Gathers proposals, and remembers those that wait for an answer.

    ``wake`` is called when the first proposal of a batch has come; the owner then takes the batch.
    ``clock`` gives seconds, of any origin. While ``crowded`` is set nothing more is taken in.
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
            self.failed += 1
            fail(caller, self.closed or errors.RequestTooManyRequests)
            return
        request_id, id_bytes = self.ids.take()
        data = encode_request(kind, message, id_bytes)
        size = len(data)
        if size > self._max_request_bytes:
            fail(caller, errors.RequestTooLarge)
            return
        proposal = Proposal(request_id, kind, request, caller, size, self._clock())
        waiting[request_id] = proposal
        self._bytes += size
        entries = self._entries
        if not entries:
            self._wake()
        entries.append(Entry(NO_TERM, NO_INDEX, _NORMAL, data, proposal))

    def take_batch(self) -> list[Entry]:
        """The entries gathered since the last call, in order of arrival."""
        entries = self._entries
        self._entries = []
        return entries

    def done(self, request_id: int) -> Proposal | None:
        """A request was applied: hand out who waits for it, if anybody still does."""
        proposal = self.waiting.pop(request_id, None)
        if proposal is not None:
            self._bytes -= proposal.size
        return proposal

    def drop(self, entries: list[Entry], error: type[EtcdError]) -> None:
        """Consensus did not take these entries: tell their callers."""
        for entry in entries:
            assert isinstance(entry.local, Proposal)
            proposal = self.done(entry.local.id)
            if proposal is not None:
                self.failed += 1
                fail(proposal.caller, error)

    def expire(self, before: float) -> None:
        """Give up on what has waited since before a moment. It may be applied all the same."""
        late = []
        for proposal in self.waiting.values():
            if proposal.started >= before:
                break
            late.append(proposal)
        for proposal in late:
            self.done(proposal.id)
            self.failed += 1
            fail(proposal.caller, errors.Timeout)

    def close(self, error: type[EtcdError]) -> None:
        """Fail everything that waits, and all that comes from now on."""
        self.closed = error
        self._entries.clear()
        for proposal in list(self.waiting.values()):
            self.done(proposal.id)
            fail(proposal.caller, error)


def fail(caller: Caller, error: type[EtcdError] | EtcdError) -> None:
    """Answer a caller with one of etcd's errors."""
    caller.fail(error.code, error.message)
