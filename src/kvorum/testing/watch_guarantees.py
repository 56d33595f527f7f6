"""Whether what a watch was sent is what etcd promises of watches.

The promises (etcd's "KV API guarantees"), by the names that `Violation` uses:

=============  ===================================================================================
ordered        events come by revision
unique         no event comes twice
reliable       none is left out between the first and the last that came
atomic         all events of a revision come in one response, or in the fragments of one
resumable      a watch begun after the last event received goes on there, without a gap
bookmarkable   a progress notice of a revision means that everything up to it has come
faithful       an event is what happened: kind, pair and, if asked for, the pair before
=============  ===================================================================================

What happened comes from elsewhere: from the order that `linearizability.check` finds, from a
member's own store, or from another watch that is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Final, NamedTuple

from kvorum.testing.history import Event, in_range

Writes = Mapping[int, Sequence[Event]]
"""The events of each revision, in the order of the transaction; with the pairs before."""


@dataclass(frozen=True, slots=True)
class Response:
    """One message of a watch.

    ``revision`` is that of its header. Without events it is the word that the watch was created, a
    progress notice, or its end: then ``canceled`` is set, and ``compacted`` is the revision that it
    would have to be at to go on. ``fragment``: more of this response follows.
    """

    revision: int
    events: tuple[Event, ...] = ()
    created: bool = False
    canceled: bool = False
    compacted: int = 0
    fragment: bool = False


@dataclass(slots=True)
class Watch:
    """What was asked, and what came, in the order in which it came.

    ``start`` 0 is from the present on. ``resumes`` is the watch that this one goes on from: it was
    begun at the revision after the last one that came there.
    """

    key: bytes
    end: bytes = b""
    start: int = 0
    prev: bool = False
    puts: bool = True
    deletes: bool = True
    resumes: Watch | None = None
    name: str = ""
    responses: list[Response] = field(default_factory=list)

    def wants(self, event: Event) -> bool:
        """Whether an event is one that it was to be sent."""
        wanted = self.puts if event.kind == "put" else self.deletes
        return wanted and in_range(event.kv.key, self.key, self.end)

    def events(self) -> Iterator[Event]:
        for response in self.responses:
            yield from response.events

    def reached(self) -> int:
        """The revision up to which it has told everything; 0 if it has told nothing."""
        told = [event.kv.mod for event in self.events()]
        return max([*told, *(r.revision for r in self.responses if is_bookmark(r))], default=0)

    def next_start(self) -> int:
        """Where a watch that resumes it has to begin."""
        return self.reached() + 1 if self.reached() else self.start


class Violation(NamedTuple):
    promise: str
    watch: str
    what: str

    def __str__(self) -> str:
        return f"watch {self.watch} is not {self.promise}: {self.what}"


LIMIT: Final = 10
"""Violations that are named of one watch; mostly the first brings about the rest."""


def is_bookmark(response: Response) -> bool:
    """Whether it is a progress notice."""
    return not (response.events or response.created or response.canceled or response.fragment)


def check_watch(watch: Watch, writes: Writes, *, until: int = 0) -> list[Violation]:
    """What is wrong with a watch. ``until``: it has to have told everything up to that revision,
    as one that was alive and given time to the end."""
    found: list[tuple[str, str]] = []
    for check in (_order, _atomicity, _bookmarks):
        found += check(watch)
    found += _faith(watch, writes)
    found += _reliability(watch, writes, until)
    found += _resumption(watch)
    name = watch.name or f"{watch.key!r}"
    return [Violation(promise, name, what) for promise, what in found[:LIMIT]]


def check_watches(watches: Sequence[Watch], writes: Writes, *, until: int = 0) -> list[Violation]:
    """The same for several."""
    return [wrong for watch in watches for wrong in check_watch(watch, writes, until=until)]


Found = Iterator[tuple[str, str]]


def _order(watch: Watch) -> Found:
    seen: set[tuple[int, bytes]] = set()
    last = 0
    for event in watch.events():
        place = (event.kv.mod, event.kv.key)
        if place in seen:
            yield "unique", f"{event} came twice"
        elif event.kv.mod < last:
            yield "ordered", f"{event} came after revision {last}"
        seen.add(place)
        last = max(last, event.kv.mod)


def _atomicity(watch: Watch) -> Found:
    """Fragments count as one response up to the last, which is not marked."""
    whole = 0
    seen: dict[int, int] = {}
    for response in watch.responses:
        for revision in sorted({event.kv.mod for event in response.events}):
            if seen.setdefault(revision, whole) != whole:
                yield "atomic", f"the events of revision {revision} came in several responses"
        whole += not response.fragment


def _bookmarks(watch: Watch) -> Found:
    """Nothing that a notice says to have come may come after it."""
    bookmark = 0
    for response in watch.responses:
        for event in response.events:
            if event.kv.mod <= bookmark:
                yield "bookmarkable", f"{event} came after the notice of revision {bookmark}"
        if is_bookmark(response):
            if response.revision < bookmark:
                what = f"a notice of revision {response.revision} came after that of {bookmark}"
                yield "bookmarkable", what
            bookmark = max(bookmark, response.revision)


def _faith(watch: Watch, writes: Writes) -> Found:
    for event in watch.events():
        happened = {each.kv.key: each for each in writes.get(event.kv.mod, ())}
        real = happened.get(event.kv.key)
        if real is None:
            yield "faithful", f"{event} never happened"
        elif not watch.wants(event):
            yield "faithful", f"{event} was not asked for"
        elif (event.kind, event.kv) != (real.kind, real.kv):
            yield "faithful", f"{event} is told of {real}"
        elif watch.prev and event.prev != real.prev:
            yield "faithful", f"{event} is told with another pair before than {real}"
        if event.kv.mod < watch.start:
            yield "faithful", f"{event} is older than the start at {watch.start}"


def _reliability(watch: Watch, writes: Writes, until: int) -> Found:
    """Every event up to the last that came, to the last notice, or to where it had to get."""
    reached = watch.reached()
    first = watch.start or _created_at(watch) + 1
    told = {(event.kv.mod, event.kv.key) for event in watch.events()}
    ended = any(response.canceled for response in watch.responses)
    last = reached if ended else max(reached, until)
    if first <= 0:
        return
    for revision in range(first, last + 1):
        for event in writes.get(revision, ()):
            if watch.wants(event) and (revision, event.kv.key) not in told:
                bookmarked = any(r.revision >= revision for r in watch.responses if is_bookmark(r))
                yield "bookmarkable" if bookmarked else "reliable", f"{event} never came"


def _created_at(watch: Watch) -> int:
    """The revision at which a watch of the present began; -1 if it never did."""
    return next((r.revision for r in watch.responses if r.created), -1)


def _resumption(watch: Watch) -> Found:
    """Of the chain that ends here, the two last links; whoever checks all watches has seen the
    rest. Together they have to be as good as one watch."""
    former = watch.resumes
    if former is None:
        return
    if watch.start != former.next_start():
        yield "resumable", f"it begins at {watch.start}, the one before ended at {former.reached()}"
    last = max((event.kv.mod for event in former.events()), default=0)
    for event in watch.events():
        if event.kv.mod <= last:
            yield "resumable", f"{event} had come to the watch before, which ended at {last}"


def writes_of(watches: Sequence[Watch]) -> dict[int, tuple[Event, ...]]:
    """What happened as far as watches tell, each event once, by revision and key."""
    every = {(event.kv.mod, event.kv.key): event for watch in watches for event in watch.events()}
    ordered = sorted(every.items())
    return {
        revision: tuple(event for _, event in group)
        for revision, group in groupby(ordered, key=lambda item: item[0][0])
    }


def gaps(writes: Writes) -> list[tuple[int, int]]:
    """Revisions between which something is missing, as (last before, first after)."""
    return [(a, b) for a, b in pairwise(sorted(writes)) if b != a + 1]
