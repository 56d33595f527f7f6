"""Watch streams as a client sees them, and what each watch must have been sent by now.

What a watch must see is worked out from the member's own full history, which one watch over
everything delivers. So a test can wait exactly as long as an event is still due, and a missing,
doubled or foreign event is noticed on each server alone, before the two are compared.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from support.rpc import WATCH_PATH, Client, Reply

from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb

WAIT_SECONDS = 15.0


class WatchFault(AssertionError):
    """A watch broke a promise that every etcd keeps."""


@dataclass(slots=True)
class Change:
    """One event of the full history, as far as other watches' expectations need it."""

    revision: int
    key: bytes
    deleted: bool


@dataclass(slots=True)
class WatchRecord:
    """One watch: what was asked, and all that came."""

    request: Any
    created: Any
    compacted_at: int  # the member's compact revision at the time of creation
    events: list[bytes] = field(default_factory=list)
    received: int = 0
    last_revision: int = 0
    closed: tuple[int, str] | None = None
    expected: int = 0
    scanned: int = 0
    fragment_open: bool = False
    promised: int = 0  # progress told: nothing up to here is still to come
    forgotten: bool = False  # closed together with its stream

    @property
    def start(self) -> int:
        return self.request.start_revision or self.created.header.revision + 1

    @property
    def refused(self) -> bool:
        return bool(self.created.canceled)

    @property
    def behind(self) -> bool:
        """Asked for history that was gone already: the server must cancel it."""
        return 0 < self.request.start_revision < self.compacted_at

    @property
    def at_compaction(self) -> bool:
        return self.request.start_revision == self.compacted_at

    def wants(self, change: Change) -> bool:
        filters = self.request.filters
        banned = pb.WatchCreateRequest.NODELETE if change.deleted else pb.WatchCreateRequest.NOPUT
        return (
            change.revision >= self.start
            and banned not in filters
            and not self.ignores(change.revision, change.deleted)
            and in_range(change.key, self.request.key or b"\0", self.request.range_end)
        )

    def ignores(self, revision: int, deleted: bool) -> bool:
        """See "tombstone at the compact revision" in ``differences.py``."""
        return deleted and self.at_compaction and revision == self.compacted_at

    def take(self, response: Any) -> None:
        if response.compact_revision or response.canceled:
            self.closed = (response.compact_revision, response.cancel_reason)
            return
        for event in response.events:
            self._take_event(event)
        self._check_batch(response)

    def _take_event(self, event: Any) -> None:
        revision = event.kv.mod_revision
        if self.ignores(revision, event.type == mvccpb.Event.DELETE):
            return
        if revision < self.last_revision:
            raise WatchFault(f"event of revision {revision} after {self.last_revision}: {event}")
        if revision <= self.promised:
            raise WatchFault(f"event of {revision} after progress of {self.promised}: {event}")
        self.events.append(event.SerializeToString(deterministic=True))
        self.received += 1

    def _check_batch(self, response: Any) -> None:
        """One revision is never split over two responses, unless they are fragments."""
        if not response.events:
            return
        first = response.events[0].kv.mod_revision
        last = response.events[-1].kv.mod_revision
        if first == self.last_revision and not self.fragment_open:
            raise WatchFault(f"revision {first} came in two responses")
        if last > response.header.revision:
            raise WatchFault(f"event of {last} under header revision {response.header.revision}")
        self.last_revision = max(self.last_revision, last)
        self.fragment_open = response.fragment

    def recount(self, history: list[Change]) -> None:
        """Bring ``expected`` up to the end of ``history``."""
        if self.behind or self.refused or self.closed is not None:
            return
        for position in range(self.scanned, len(history)):
            self.expected += self.wants(history[position])
        self.scanned = len(history)

    def settled_for_good(self) -> bool:
        return self.refused or self.forgotten or self.closed is not None

    def settled(self) -> bool:
        if self.settled_for_good():
            return True
        return not self.behind and self.received >= self.expected


def in_range(key: bytes, first: bytes, end: bytes) -> bool:
    if not end:
        return key == first
    return key >= first if end == b"\0" else first <= key < end


class WatchSession:
    """One watch stream and its watches, in the order of their creation."""

    def __init__(self, client: Client, *, trust_progress: bool = False) -> None:
        self.changed = threading.Condition()
        self._trust_progress = trust_progress
        self.records: list[WatchRecord] = []
        self.by_id: dict[int, WatchRecord] = {}
        self.answers: list[Any] = []  # created and cancel replies, in order
        self.progress: list[tuple[int, int]] = []
        self.ended: Reply | None = None
        self.fault: str = ""
        self._asked: tuple[Any, int] | None = None
        self._stream = client.stream(WATCH_PATH)
        self._stream.start(self._on_message, self._on_end)

    def _on_end(self, status: Reply) -> None:
        with self.changed:
            self.ended = status
            self.changed.notify_all()

    def _on_message(self, message: bytes) -> None:
        response = pb.WatchResponse.FromString(message)
        with self.changed:
            try:
                self._dispatch(response)
            except WatchFault as fault:
                self.fault = self.fault or str(fault)
            self.changed.notify_all()

    def _dispatch(self, response: Any) -> None:
        if response.created:
            self._on_created(response)
        elif not response.events and not response.canceled and not response.compact_revision:
            self._on_progress(response)
        elif response.watch_id not in self.by_id:
            raise WatchFault(f"a response for no known watch: {response}")
        else:
            record = self.by_id[response.watch_id]
            by_compaction = response.compact_revision != 0
            if response.canceled and not by_compaction:
                self.answers.append(response)
            if record.closed is None:
                record.take(response)

    def _on_progress(self, response: Any) -> None:
        self.progress.append((response.watch_id, response.header.revision))
        if self._trust_progress and response.watch_id == -1:
            for record in self.by_id.values():
                record.promised = response.header.revision

    def _on_created(self, response: Any) -> None:
        if self._asked is None:
            raise WatchFault(f"a created reply that nobody asked for: {response}")
        request, compacted_at = self._asked
        self._asked = None
        record = WatchRecord(request, response, compacted_at)
        self.records.append(record)
        self.answers.append(response)
        if not response.canceled:
            self.by_id[response.watch_id] = record

    def create(self, request: Any, compacted_at: int) -> Reply:
        """Create one watch; the created reply, or the status the stream ended with."""
        with self.changed:
            before = len(self.answers)
            self._asked = (request.create_request, compacted_at)
            self._stream.send(request.SerializeToString())
            return self._next_answer(before, "created reply")

    def cancel(self, request: Any) -> Reply:
        with self.changed:
            before = len(self.answers)
            known = request.cancel_request.watch_id in self.by_id
            self._stream.send(request.SerializeToString())
            if not known:
                return Reply(b"")
            answer = self._next_answer(before, "cancel reply")
            self.by_id.pop(request.cancel_request.watch_id)
            return answer

    def _next_answer(self, before: int, what: str) -> Reply:
        self.wait(lambda: len(self.answers) > before or self.ended is not None, what)
        if len(self.answers) > before:
            return Reply(self.answers[before].SerializeToString())
        assert self.ended is not None
        return self.ended

    def send_raw(self, request: bytes) -> Reply:
        """Send bytes that must end the stream, and wait for that."""
        with self.changed:
            self._stream.send(request)
            self.wait(lambda: self.ended is not None, "end of the stream")
            self._forget()
            assert self.ended is not None
            return self.ended

    def send(self, request: Any) -> None:
        self._stream.send(request.SerializeToString())

    def wait(self, condition: Any, what: str) -> None:
        """Wait under ``changed``, bounded."""
        if not self.changed.wait_for(lambda: bool(self.fault) or condition(), WAIT_SECONDS):
            raise WatchFault(f"no {what} within {WAIT_SECONDS:g} s")
        if self.fault:
            raise WatchFault(self.fault)

    def settle(self, history: list[Change], only: int | None = None) -> None:
        """Wait until each watch (or the one with id ``only``) has all that is due to it."""
        with self.changed:
            chosen = self.records if only is None else [self.by_id[only]]
            open_ones = [record for record in chosen if not record.settled_for_good()]
            for record in open_ones:
                record.recount(history)
            self.wait(lambda: all(record.settled() for record in open_ones), "due watch events")
            for record in open_ones:
                self._check_surplus(record)

    def _check_surplus(self, record: WatchRecord) -> None:
        if record.closed is None and record.received > record.expected:
            raise WatchFault(
                f"{record.received} events instead of {record.expected} for {record.request}"
            )

    def close(self) -> None:
        self._stream.close()
        with self.changed:
            self._forget()

    def _forget(self) -> None:
        for record in self.records:
            record.forgotten = True
        self.by_id.clear()


class HistorySession(WatchSession):
    """The watch over everything, which carries on where an earlier one's ``history`` ends."""

    def __init__(self, client: Client, history: list[Change]) -> None:
        self.history = history
        start = history[-1].revision + 1 if history else 1
        super().__init__(client)
        create = pb.WatchCreateRequest(
            key=b"\0", range_end=b"\0", start_revision=start, prev_kv=True
        )
        self.create(pb.WatchRequest(create_request=create), 0)

    def _dispatch(self, response: Any) -> None:
        super()._dispatch(response)
        self.history.extend(
            Change(event.kv.mod_revision, event.kv.key, event.type == mvccpb.Event.DELETE)
            for event in response.events
        )

    def wait_revision(self, revision: int) -> None:
        def reached() -> bool:
            return bool(self.history) and self.history[-1].revision >= revision

        with self.changed:
            if revision > 1:
                self.wait(reached, f"event of revision {revision}")
