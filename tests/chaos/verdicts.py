"""What is looked at when everything has healed and all is quiet."""

from __future__ import annotations

from collections.abc import Sequence

from chaos.clients import Records
from chaos.serving import without_resent
from chaos.watchers import Watcher

from kvorum.testing.kvmodel import State
from kvorum.testing.linearizability import Undecided, check
from kvorum.testing.watch_guarantees import Watch, check_watches


def verdict(
    records: Records,
    watchers: Sequence[Watcher],
    initial: State,
    revision: int,
    *,
    compacted: bool,
) -> list[str]:
    """What is wrong with what clients and watchers were told, up to a revision that all watchers
    have had the time to reach. ``compacted``: some of the history was."""
    watches = [excused(watcher, watch) for watcher in watchers for watch in watcher.watches]
    events = [event for watch in watches for event in watch.events()]
    try:
        judged = check(records.operations, initial=initial, events=events)
    except Undecided as error:
        return [f"the history could not be judged: {error}"]
    if not judged.ok:
        return [judged.explanation]
    wrong = [
        each
        for each in check_watches(watches, judged.events)
        # The pair before may be compacted by the time that a watch is sent the one after.
        if not (compacted and each.promise == "faithful" and "pair before" in each.what)
    ]
    found = [str(each) for each in wrong]
    named = {each.watch for each in wrong}
    for watcher in watchers:
        reached = watcher.reached()
        missing = [
            event
            for at, made in judged.events.items()
            if reached < at <= revision
            for event in made
            if watcher.current.wants(event)
        ]
        if missing:
            found.append(f"{watcher.name} stands at {reached}, and missed {missing[0]}")
            named.add(watcher.current.name)
        found += [
            f"watch {name} was served by {serving}"
            for name, serving in watcher.servings.items()
            if name in named
        ]
    return found


def excused(watcher: Watcher, watch: Watch) -> Watch:
    """Without what its member is known to send twice."""
    serving = watcher.servings.get(watch.name)
    return without_resent(watch, serving.resends()) if serving else watch
