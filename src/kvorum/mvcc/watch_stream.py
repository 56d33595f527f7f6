"""One Watch call: the requests of a client and the replies to them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from kvorum import errors
from kvorum.mvcc.watch_types import (
    FRAGMENT,
    NO_DELETE,
    NO_PUT,
    NO_WATCH,
    OPEN_END,
    PREV_KV,
    Check,
    Sink,
    State,
    Watcher,
    WatchID,
)
from kvorum.mvcc.watch_wire import CANCELED, CREATED, cancel_tail, watch_id_field
from kvorum.pb import etcdserverpb as pb

if TYPE_CHECKING:
    from kvorum.mvcc.watch import WatchHub

EMPTY_RANGE = "mvcc: watcher range is empty"
DUPLICATE_ID = "mvcc: duplicate watch ID provided on the WatchStream"

_FILTERS: dict[int, int] = {
    pb.WatchCreateRequest.NOPUT: NO_PUT,
    pb.WatchCreateRequest.NODELETE: NO_DELETE,
}


class WatchStream:
    """The watches of one client call.

    The owner hands in the requests, calls `on_writable` when the sink takes messages again, and
    `close` when the call ends, however it ends.

    ``blocked`` holds the watchers that wait for the sink, the longest waiting first.
    """

    __slots__ = (
        "_check",
        "_hub",
        "_next_id",
        "_progress_wanted",
        "_unread",
        "blocked",
        "closed",
        "ready",
        "send",
        "watchers",
        "writable",
    )

    def __init__(self, hub: WatchHub, sink: Sink, check: Check | None) -> None:
        self._hub = hub
        self._check = check
        self._next_id = WatchID(0)
        self._progress_wanted = False
        self._unread = 0
        self.send = sink.send  # bound once: a method object for each watch would be memory
        self.writable = sink.writable
        self.watchers: dict[WatchID, Watcher] = {}
        self.blocked: OrderedDict[Watcher, None] = OrderedDict()
        self.ready = False
        self.closed = False

    def handle(self, request: pb.WatchRequest) -> None:
        """Carry out a request of any kind; one of no known kind is ignored, as in etcd.

        Raises:
            errors.RequestTooManyRequests: see `create`.
        """
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            self.create(request.create_request)
        elif kind == "cancel_request":
            self.cancel(WatchID(request.cancel_request.watch_id))
        elif kind == "progress_request":
            self.progress()

    def create(self, request: pb.WatchCreateRequest) -> None:
        """Create a watch, and reply that it was created or why it was not.

        Raises:
            errors.RequestTooManyRequests: the client sends requests and never reads the replies;
                the call must be ended.
        """
        if self.closed:
            return
        key = request.key or b"\0"
        reason = self._refusal(key, request)
        if reason is not None:
            self._reply(watch_id_field(NO_WATCH), cancel_tail(created=True, reason=reason))
            return
        watcher = Watcher(
            self, self._new_id(request), key, _end_of(request), kind=_kind_of(request)
        )
        watcher.id_field = watch_id_field(watcher.id)
        self.watchers[watcher.id] = watcher
        self._hub.admit(watcher, request.start_revision, notices=request.progress_notify)
        self._reply(watcher.id_field, CREATED)

    def _refusal(self, key: bytes, request: pb.WatchCreateRequest) -> str | None:
        """Why a watch can't be created; etcd's texts, in etcd's order of checks."""
        if request.start_revision < 0:
            return errors.Compacted.message
        denied = self._check(key, request.range_end) if self._check else None
        if denied is not None:
            return denied
        if _end_of(request) and key >= request.range_end:
            return EMPTY_RANGE
        if request.watch_id and request.watch_id in self.watchers:
            return DUPLICATE_ID
        return None

    def _new_id(self, request: pb.WatchCreateRequest) -> WatchID:
        if request.watch_id:
            return WatchID(request.watch_id)
        id = self._next_id
        while id in self.watchers:
            id = WatchID(id + 1)
        self._next_id = WatchID(id + 1)
        return id

    def cancel(self, id: WatchID) -> None:
        """End a watch and say so. There is no reply for an id without a watch, as in etcd.

        Raises:
            errors.RequestTooManyRequests: see `create`.
        """
        watcher = self.watchers.pop(id, None)
        if watcher is not None:
            self._hub.discard(watcher)
            self._reply(watcher.id_field, CANCELED)

    def progress(self) -> None:
        """Tell the client up to which revision it has everything: one notice for all its watches,
        with the watch id -1, if all of them are up to date; otherwise nothing, as in etcd.

        If the sink is full, one notice follows when it no longer is.
        """
        live = [w for w in self.watchers.values() if w.state is not State.COMPACTED]
        if not live or any(w.state is not State.SYNCED for w in live):
            return
        self._progress_wanted = not self.writable()
        if not self._progress_wanted:
            self.send(self._hub.front() + watch_id_field(NO_WATCH))

    def on_writable(self) -> None:
        """The sink takes messages again."""
        self._unread = 0
        if self._progress_wanted:
            self._progress_wanted = False
            self.progress()
        if self.blocked:
            self._hub.resume(self)

    def close(self) -> None:
        """Forget all watches; nothing is sent any more."""
        if self.closed:
            return
        self.closed = True
        for watcher in self.watchers.values():
            self._hub.discard(watcher)
        self.watchers.clear()
        self._hub.remove_stream()

    def _reply(self, id_field: bytes, tail: bytes) -> None:
        writable = self.writable()
        self._unread = 0 if writable else self._unread + 1
        if self._unread > self._hub.limits.control_backlog:
            raise errors.RequestTooManyRequests
        self.send(self._hub.present_header() + id_field + tail)


def _end_of(request: pb.WatchCreateRequest) -> bytes | None:
    """None for a single key, b"" for no end at all, which a request writes as one zero byte."""
    if not request.range_end:
        return None
    return OPEN_END if request.range_end == b"\0" else request.range_end


def _kind_of(request: pb.WatchCreateRequest) -> int:
    kind = PREV_KV if request.prev_kv else 0
    if request.fragment:
        kind |= FRAGMENT
    for filter in request.filters:
        kind |= _FILTERS.get(filter, 0)
    return kind
