"""Watches: every change, once, in order, to everybody who asked for it.

The hub is told of changes once per apply batch. A watcher that has everything so far is *synced*
and gets its part of the batch at once. One that starts in the past, or whose client does not read
fast enough, holds nothing but the next revision it needs, and reads history from the store until it
has caught up. No clock, no socket: time is passed in, and responses go to a sink as bytes.

What a client may rely on (etcd's guarantees): events of a watch come in revision order, each once,
none left out, all events of a revision in one response (unless it asked for fragments), and a watch
started at the revision after the last one received goes on where the former ended.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

from kvorum import failpoint
from kvorum.instruments import Registry
from kvorum.mvcc.watch_batch import EventBatch, Response
from kvorum.mvcc.watch_group import Crowd, WatcherGroup
from kvorum.mvcc.watch_progress import ProgressClock
from kvorum.mvcc.watch_stream import WatchStream
from kvorum.mvcc.watch_sync import Laggards, Positions, read_slice
from kvorum.mvcc.watch_types import (
    FRAGMENT,
    Change,
    Check,
    HeaderField,
    Sink,
    State,
    Watcher,
    WatchID,
    WatchLimits,
    WatchStore,
)
from kvorum.mvcc.watch_wire import cancel_tail, fragments
from kvorum.telemetry import MvccMetrics
from kvorum.types import Revision

__all__ = [
    "Change",
    "Check",
    "Sink",
    "WatchHub",
    "WatchID",
    "WatchLimits",
    "WatchStore",
    "WatchStream",
]


class WatchHub:
    """All watches of a member.

    ``rev`` is the revision up to which changes have been notified. Invariant: a SYNCED watcher has
    been given everything up to ``rev``; FUTURE ones start above ``rev + 1``, UNSYNCED ones need
    something at or below ``rev``.

    Args:
        store: where history is read.
        header: the encoded header field at a revision.
        wake: called when `sync_step` gets work to do, until it returns False again.
        now: the time at the start, in the seconds that `tick` is given.
        seed: of the spread of progress notices.
    """

    def __init__(
        self,
        store: WatchStore,
        header: HeaderField,
        *,
        limits: WatchLimits | None = None,
        metrics: MvccMetrics | None = None,
        wake: Callable[[], None] | None = None,
        now: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.limits = limits or WatchLimits()
        self.rev = store.rev
        self.stream_total = 0
        self.watcher_total = 0
        self.blocked_total = 0
        self._store = store
        self._header = header
        self._wake = wake
        self._awake = False
        self._now = now
        self._synced = WatcherGroup()
        self._future = Positions()
        self._laggards = Laggards()
        self._ready: deque[WatchStream] = deque()
        self._progress = ProgressClock(self.limits.progress_interval, random.Random(seed))
        self._metrics = metrics or MvccMetrics(Registry())
        self._metrics.watch_streams.follow(lambda: self.stream_total)
        self._metrics.watchers.follow(lambda: self.watcher_total)
        self._metrics.slow_watchers.follow(lambda: self.slow_watcher_total)

    @property
    def slow_watcher_total(self) -> int:
        """Watchers that are behind: those that read history and those whose sink is full."""
        return self._laggards.size + self.blocked_total

    def stream(self, sink: Sink, check: Check | None = None) -> WatchStream:
        """A stream for one Watch call; ``check`` decides what its client may watch."""
        self.stream_total += 1
        return WatchStream(self, sink, check)

    # Changes

    def notify(self, changes: Sequence[Change]) -> None:
        """Send the changes of finished transactions, in order, each transaction whole."""
        if not changes:
            return
        last = Revision(int.from_bytes(changes[-1][0][:8], "big"))
        assert last > self.rev, f"changes up to {last} come after {self.rev}"
        self.rev = last
        if self._synced.size:
            self._publish(changes, last)
        if self._future.size:
            self._wake_future()

    def _publish(self, changes: Sequence[Change], last: Revision) -> None:
        batch = self._batch(changes, last, previous=self._previous)
        refused: list[tuple[Watcher, int]] = []
        for spot in self._synced.match(changes):
            places = spot.pending
            spot.pending = []
            for crowd in tuple(spot.crowds):  # here and below: a send may close streams
                responses = batch.responses(crowd.kind, places)
                if responses:
                    crowd.sent_rev = last
                    self._deliver(crowd, responses, refused)
        for watcher, rev in refused:
            if watcher.state is State.SYNCED:
                self._synced.remove(watcher)
                self._block(watcher, rev)

    def _batch(
        self,
        changes: Sequence[Change],
        last: Revision,
        *,
        previous: Callable[[Change], bytes | None],
    ) -> EventBatch:
        limit = self.limits.response_bytes
        return EventBatch(changes, last, header=self._header, previous=previous, limit=limit)

    def _previous(self, change: Change) -> bytes | None:
        """The pair before the revision, not before the change: of two changes of a key in one
        transaction, both have the same (etcd reads it at the revision before)."""
        before = change[3]
        if before is None:
            return None
        if before[:8] == change[0][:8]:
            return self._previous_in_history(change)
        return self._store.kv_by_rev(before)

    def _deliver(
        self, crowd: Crowd, responses: list[Response], refused: list[tuple[Watcher, int]]
    ) -> None:
        """Send to a whole crowd; those with a full sink go to ``refused``, with where they stop."""
        watchers = tuple(crowd.watchers)
        if len(responses) > 1 or crowd.kind & FRAGMENT or failpoint.active:
            for watcher in watchers:
                rest = self._send(watcher, responses)
                if rest is not None:
                    refused.append((watcher, rest.first))
            return
        response = responses[0]
        front, tail = response.front, response.tail
        whole = front + tail  # all that watch under id 0 share it
        before = len(refused)
        for watcher in watchers:
            if watcher.writable():
                id_field = watcher.id_field
                watcher.send(front + id_field + tail if id_field else whole)
            else:
                refused.append((watcher, response.first))
        sent = len(watchers) - len(refused) + before
        self._metrics.events.value += sent * len(response.events)

    def _send(self, watcher: Watcher, responses: list[Response]) -> Response | None:
        """Send one after the other; the first for which there is no room is returned."""
        for response in responses:
            if not watcher.writable():
                return response
            front = response.front + watcher.id_field
            if failpoint.active:
                failpoint.hit("beforeSendWatchResponse")
            if watcher.kind & FRAGMENT:
                for piece in fragments(front, response.events, self.limits.fragment_bytes):
                    watcher.send(piece)
            else:
                watcher.send(front + response.tail)
            self._metrics.events.value += len(response.events)
        return None

    # Where a watcher is kept

    def admit(self, watcher: Watcher, start: int, *, notices: bool) -> None:
        """Take in a new watcher. ``start`` 0 is the revision after the store's."""
        self.watcher_total += 1
        watcher.next_rev = start or self._store.rev + 1
        self._settle(watcher)
        if notices:
            watcher.progress_mark = self.rev
            self._progress.add(watcher, self._now)

    def _settle(self, watcher: Watcher) -> None:
        """Put a watcher that is nowhere to where its ``next_rev`` belongs."""
        ahead = watcher.next_rev - self.rev
        if ahead == 1:
            watcher.state = State.SYNCED
            self._synced.add(watcher)
        elif ahead > 1:
            watcher.state = State.FUTURE
            self._future.add(watcher)
        else:
            watcher.state = State.UNSYNCED
            self._laggards.add(watcher)
            self._call()

    def _block(self, watcher: Watcher, next_rev: int) -> None:
        watcher.next_rev = next_rev
        watcher.state = State.BLOCKED
        watcher.stream.blocked[watcher] = None
        self.blocked_total += 1

    def _wake_future(self) -> None:
        due = self._future.between(0, self.rev + 1, most=self._future.size)
        for watcher in due:
            self._future.remove(watcher)
            self._settle(watcher)

    def discard(self, watcher: Watcher) -> None:
        """Forget a watcher, wherever it is."""
        self._take_out(watcher)
        if watcher.state is not State.COMPACTED:
            self._end(watcher)
        watcher.state = State.CLOSED

    def _take_out(self, watcher: Watcher) -> None:
        state = watcher.state
        if state is State.SYNCED:
            self._synced.remove(watcher)
        elif state is State.FUTURE:
            self._future.remove(watcher)
        elif state is State.UNSYNCED:
            self._laggards.remove(watcher)
        elif state is State.BLOCKED:
            del watcher.stream.blocked[watcher]
            self.blocked_total -= 1

    def _end(self, watcher: Watcher) -> None:
        self.watcher_total -= 1
        if watcher.lane >= 0:
            self._progress.remove(watcher)

    def remove_stream(self) -> None:
        self.stream_total -= 1

    def restore(self) -> None:
        """The store's content was replaced, by a snapshot of the leader: whoever was up to date has
        to read what happened in between."""
        last, self.rev = self.rev, self._store.rev
        for watcher in self._synced.watchers():
            self._synced.remove(watcher)
            watcher.next_rev = last + 1
            self._settle(watcher)
        for watcher in self._laggards.group.watchers():
            self._laggards.remove(watcher)
            self._settle(watcher)
        self._wake_future()

    # Catching up

    def resume(self, stream: WatchStream) -> None:
        """A stream with blocked watchers is writable."""
        if not stream.ready:
            stream.ready = True
            self._ready.append(stream)
            self._call()

    def _call(self) -> None:
        if not self._awake:
            self._awake = True
            if self._wake is not None:
                self._wake()

    def sync_step(self) -> bool:
        """Do a bounded part of the catching up; True if there is more to do now."""
        self._unblock()
        if self._laggards.size:
            if self._laggards.lowest() < self._store.compact_rev:
                self._cancel_compacted()
            else:
                self._catch_up()
        self._awake = bool(self._laggards.size or self._ready)
        return self._awake

    def _unblock(self) -> None:
        room = self.limits.slice_watchers
        for _ in range(len(self._ready)):
            if room <= 0:
                return
            stream = self._ready.popleft()
            count = min(room, self.limits.unblock_watchers, len(stream.blocked))
            for _ in range(count):
                watcher, _none = stream.blocked.popitem(last=False)
                self.blocked_total -= 1
                self._settle(watcher)
            room -= count
            stream.ready = bool(stream.blocked) and stream.writable()
            if stream.ready:
                self._ready.append(stream)

    def _cancel_compacted(self) -> None:
        """End watchers whose history is gone. etcd's reply has neither a reason nor a revision in
        its header, and the id stays taken until the client cancels it too."""
        compact_rev = self._store.compact_rev
        front, tail = self._header(Revision(0)), cancel_tail(compact_rev=compact_rev)
        most = self.limits.slice_watchers
        for watcher in self._laggards.between(0, compact_rev - 1, most=most):
            if watcher.state is not State.UNSYNCED:
                continue
            self._laggards.remove(watcher)
            if watcher.writable():
                watcher.state = State.COMPACTED
                self._end(watcher)
                watcher.send(front + watcher.id_field + tail)
            else:
                self._block(watcher, watcher.next_rev)

    def _catch_up(self) -> None:
        laggards, limits = self._laggards, self.limits
        first = Revision(laggards.next_slice(self.rev, limits.slice_changes))
        changes, last = read_slice(self._store.history(first, self.rev), self.rev, limits)
        riders = laggards.between(first, last, most=limits.slice_watchers)
        batch = self._batch(changes, last, previous=self._previous_in_history)
        touched = laggards.group.match(changes)
        for watcher in riders:
            if watcher.state is State.UNSYNCED:
                self._ride(watcher, batch)
        for spot in touched:
            spot.pending = []

    def _previous_in_history(self, change: Change) -> bytes | None:
        before = Revision(int.from_bytes(change[0][:8], "big") - 1)
        return self._store.kv_at(change[1], before)

    def _ride(self, watcher: Watcher, batch: EventBatch) -> None:
        """Give a laggard its part of a slice, and put it behind the slice."""
        assert watcher.crowd is not None, f"watch {watcher.id} is in no group"
        places = [i for i in watcher.crowd.spot.pending if batch.rev(i) >= watcher.next_rev]
        responses = batch.responses(watcher.kind, places) if places else []
        rest = self._send(watcher, responses)
        if watcher.state is not State.UNSYNCED:
            return
        if responses and responses[0] is not rest:
            watcher.was_sent = True
        if rest is not None:
            self._laggards.remove(watcher)
            self._block(watcher, rest.first)
        elif batch.last < self.rev:
            self._laggards.advance(watcher, batch.last + 1)
        else:
            self._laggards.remove(watcher)
            watcher.next_rev = batch.last + 1
            self._settle(watcher)

    # Progress

    def present_header(self) -> bytes:
        """The header field of a reply to a request."""
        return self._header(self._store.rev)

    def front(self) -> bytes:
        """The header field of a progress notice: up to here a synced watcher has everything."""
        return self._header(self.rev)

    def tick(self, now: float) -> None:
        """Send the progress notices that are due, as far as one tick's bound allows.

        A watcher that was sent events since its last notice was due is left out, as in etcd.
        """
        self._now = now
        for watcher in self._progress.due(now, self.limits.progress_notices):
            crowd = watcher.crowd
            if watcher.state is State.SYNCED and crowd is not None:
                quiet = not watcher.was_sent and crowd.sent_rev <= watcher.progress_mark
                if quiet and watcher.writable():
                    watcher.send(self.front() + watcher.id_field)
            watcher.was_sent = False
            watcher.progress_mark = self.rev
