"""The words of watching: what it asks of the store and of the transport, and what a watch is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NewType, Protocol, TypeAlias

from kvorum.types import Revision, RevKey

if TYPE_CHECKING:
    from kvorum.mvcc.watch_group import Crowd
    from kvorum.mvcc.watch_stream import WatchStream

WatchID = NewType("WatchID", int)
"""A watch's id on its stream, a signed 64-bit number; 0 in a request asks for a new one."""

NO_WATCH: Final = WatchID(-1)
"""The id in replies that concern no watch, or all watches, of a stream."""

Change: TypeAlias = tuple[RevKey, bytes, bytes, RevKey | None]
"""One change of one key: where it is stored (18 bytes for a delete, else 17), the key, the stored
KeyValue bytes, and where the key's value before it is stored (None: the key did not exist)."""

HeaderField: TypeAlias = Callable[[Revision], bytes]
"""Gives a reply's header at a revision as a whole encoded field; at revision 0 without one."""

Check: TypeAlias = Callable[[bytes, bytes], str | None]
"""Says why a client may not watch (key, range_end), or None when it may."""

OPEN_END: Final = b""
"""The end of a range without one. Exact watches have the end None."""

PREV_KV: Final = 1
NO_PUT: Final = 2
NO_DELETE: Final = 4
FRAGMENT: Final = 8
"""The bits of a watch's kind. Watches of one place and one kind get the same bytes."""


class Sink(Protocol):
    """Where a stream's responses go: one call of the transport.

    ``send`` never blocks and never refuses. ``writable`` turns false when what has been sent but
    not written out passes the transport's mark; the stream's ``on_writable`` must be called when it
    turns true again. A ``send`` that finds the connection broken or overfull may close this stream
    and others right there; nothing else may be called from within it.
    """

    def send(self, message: bytes) -> None: ...
    def writable(self) -> bool: ...


class WatchStore(Protocol):
    """What watching needs of the store."""

    @property
    def rev(self) -> Revision:
        """The revision of the last finished transaction."""

    @property
    def compact_rev(self) -> Revision:
        """History below it is gone; below 1 if nothing was ever compacted."""

    def history(self, first: Revision, last: Revision) -> Iterator[Change]:
        """Changes of the revisions first..last, both included, in revision order.

        The last element of each may be None whether or not the key existed. The iterator is read
        before anything else happens to the store.
        """

    def kv_at(self, key: bytes, rev: Revision) -> bytes | None:
        """The KeyValue of ``key`` as of ``rev``; None if there is none or it was compacted."""

    def kv_by_rev(self, rev_key: RevKey) -> bytes | None:
        """The KeyValue stored under ``rev_key``; None if compacted."""


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """Bounds of the work and memory of watching."""

    response_bytes: int = 1 << 20
    """Events of several revisions share a response up to this size: below the 4 MiB that gRPC
    clients take by default, with room for one revision of the default request limit."""
    fragment_bytes: int = 2 << 20
    """Size at which a response is cut for watches that asked for fragments: etcd's
    --max-request-bytes (1.5 MiB) and its overhead of 512 KiB."""
    slice_changes: int = 1000
    """Changes read in one step of catching up, about 2 ms of the loop's time."""
    slice_bytes: int = 4 << 20
    """And their bytes; the revision that crosses either limit is read to its end."""
    slice_watchers: int = 512
    """Watchers served in one step of catching up, as in etcd."""
    unblock_watchers: int = 128
    """Watchers of one stream that resume at a time: a sink that fills up again after a few
    messages must not cost a pass over all the watchers behind it."""
    control_backlog: int = 16384
    """Replies to requests that a stream may have sent while its sink was not writable: a client
    that asks but never reads is cut off. About 1 MiB."""
    progress_interval: float = 600.0
    """Seconds between progress notices on a quiet watch."""
    progress_notices: int = 1000
    """Progress notices in one tick; the rest follows at the next."""


class State(Enum):
    """Where a watcher is kept. A watcher is in exactly one place."""

    SYNCED = "in the hub's synced group; has everything up to the hub's revision"
    FUTURE = "in the hub's future; starts above the hub's revision"
    UNSYNCED = "among the laggards; reads history from next_rev on"
    BLOCKED = "in its stream's blocked; waits for a writable sink, then reads from next_rev on"
    COMPACTED = "nowhere but under its id; what it asked for is gone"
    CLOSED = "nowhere"


class Watcher:
    """One watch.

    ``next_rev`` is the first revision it has not been given; while SYNCED that is the hub's
    revision plus one, and ``next_rev`` is out of date. ``id_field`` is its encoded watch_id field,
    empty for id 0. ``was_sent`` and ``progress_mark`` serve progress notices: whether history was
    sent since the last notice was due (its crowd remembers the other events), and the revision at
    that time.
    """

    __slots__ = (
        "crowd",
        "end",
        "id",
        "id_field",
        "key",
        "kind",
        "lane",
        "next_rev",
        "progress_mark",
        "send",
        "state",
        "stream",
        "was_sent",
        "writable",
    )

    def __init__(
        self, stream: WatchStream, id: WatchID, key: bytes, end: bytes | None, *, kind: int
    ) -> None:
        self.stream = stream
        self.id = id
        self.id_field = b""
        self.key = key
        self.end = end
        self.kind = kind
        self.next_rev = 0
        self.state = State.CLOSED
        self.crowd: Crowd | None = None
        self.send = stream.send
        self.writable = stream.writable
        self.lane = -1
        self.was_sent = False
        self.progress_mark = 0
