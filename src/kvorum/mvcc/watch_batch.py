"""A batch of changes as response bytes, encoded once for all watchers that it concerns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from kvorum.mvcc.kv import create_and_version
from kvorum.mvcc.watch_types import NO_DELETE, NO_PUT, PREV_KV, Change, HeaderField
from kvorum.mvcc.watch_wire import delete_event, put_event, put_event_with_prev
from kvorum.types import Revision

TOMBSTONE_KEY_SIZE = 18

Previous: TypeAlias = Callable[[Change], bytes | None]


class Response:
    """Events for watchers, without what is each watcher's own (the watch_id).

    ``front`` is the header field, ``tail`` the events field by field, ``events`` the same as a
    list; ``first`` is the revision of the first event.
    """

    __slots__ = ("events", "first", "front", "tail")

    def __init__(self, front: bytes, events: list[bytes], first: int) -> None:
        self.front = front
        self.events = events
        self.tail = events[0] if len(events) == 1 else b"".join(events)
        self.first = first


class EventBatch:
    """The changes of consecutive revisions up to ``last``, in order.

    ``previous`` finds the KeyValue before a change. Events are encoded when first asked for, one
    encoding with and one without the previous value; responses are kept by what is in them.
    """

    __slots__ = ("_cache", "_changes", "_events", "_header", "_limit", "_previous", "front", "last")

    def __init__(
        self,
        changes: Sequence[Change],
        last: Revision,
        *,
        header: HeaderField,
        previous: Previous,
        limit: int,
    ) -> None:
        self._changes = changes
        self._header = header
        self._previous = previous
        self._limit = limit
        self._events: dict[int, bytes] = {}
        self._cache: dict[object, list[Response]] = {}
        self.last = last
        self.front = header(last)

    def rev(self, i: int) -> int:
        return int.from_bytes(self._changes[i][0][:8], "big")

    def responses(self, kind: int, places: Sequence[int]) -> list[Response]:
        """What watchers of ``kind`` get of the changes at ``places`` (not empty): nothing if all
        are filtered out, else one response, or several if they would be too large for one."""
        kind &= PREV_KV | NO_PUT | NO_DELETE
        key = kind | places[0] << 3 if len(places) == 1 else (kind, *places)
        known = self._cache.get(key)
        if known is None:
            known = self._cache[key] = self._build(kind, places)
        return known

    def _build(self, kind: int, places: Sequence[int]) -> list[Response]:
        if kind & (NO_PUT | NO_DELETE):
            places = [i for i in places if not kind & self._filter(i)]
            if not places:
                return []
        prev_kv = kind & PREV_KV
        first = self.rev(places[0])
        if len(places) == 1:  # the most frequent case by far
            return [Response(self.front, [self._event(places[0], prev_kv)], first)]
        events = [self._event(i, prev_kv) for i in places]
        if sum(map(len, events)) <= self._limit:
            return [Response(self.front, events, first)]
        return self._split(events, [self.rev(i) for i in places])

    def _filter(self, i: int) -> int:
        return NO_DELETE if len(self._changes[i][0]) == TOMBSTONE_KEY_SIZE else NO_PUT

    def _event(self, i: int, prev_kv: int) -> bytes:
        known = self._events.get(i << 1 | prev_kv)
        if known is None:
            known = self._events[i << 1 | prev_kv] = self._encode(self._changes[i], prev_kv)
        return known

    def _encode(self, change: Change, prev_kv: int) -> bytes:
        prev = self._previous(change) if prev_kv else None
        if len(change[0]) == TOMBSTONE_KEY_SIZE:
            return delete_event(change[2], int.from_bytes(change[0][:8], "big"), prev)
        # A put that creates has none, also if its own transaction deleted the key first.
        if prev is None or create_and_version(change[2])[1] == 1:
            return put_event(change[2])
        return put_event_with_prev(change[2], prev)

    def _split(self, events: list[bytes], revs: list[int]) -> list[Response]:
        """Cut between revisions; only a response of a single revision may pass the limit.

        The header of each but the last tells its own last revision: a client that resumes from a
        header misses nothing.
        """
        cuts = [0]
        size = 0
        for start, stop in _runs(revs):
            run = sum(map(len, events[start:stop]))
            if size and size + run > self._limit:
                cuts.append(start)
                size = 0
            size += run
        cuts.append(len(events))
        responses = []
        for start, stop in pairwise(cuts):
            last = stop == len(events)
            front = self.front if last else self._header(Revision(revs[stop - 1]))
            responses.append(Response(front, events[start:stop], revs[start]))
        return responses


def _runs(revs: list[int]) -> list[tuple[int, int]]:
    """The (start, stop) of each run of equal revisions."""
    starts = [i for i, rev in enumerate(revs) if not i or rev != revs[i - 1]]
    return list(zip(starts, [*starts[1:], len(revs)], strict=True))
