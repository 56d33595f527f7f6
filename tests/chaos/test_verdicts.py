"""What the checkers of a chaos run are told is what they judge: each kind of wrong is found."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

from chaos.clients import Records
from chaos.verdicts import verdict
from chaos.watchers import Watcher

from kvorum.testing.history import Event, Get, GetResult, KeyValue, Operation, Put, PutResult
from kvorum.testing.kvmodel import State
from kvorum.testing.watch_guarantees import Response


def pair(number: int) -> KeyValue:
    return KeyValue(b"k", b"%d" % number, 2, number + 1, number, 0)


def history(count: int) -> Records:
    """So many puts of one key, at the revisions from 2 on, and a read after each."""
    records = Records()
    for number in range(1, count + 1):
        revision, start = number + 1, float(2 * number)
        put = Operation("a", Put(b"k", b"%d" % number), start, start + 0.5, PutResult(revision))
        told = GetResult(revision, (pair(number),), 1)
        records.add(put)
        records.add(Operation("b", Get(b"k"), start + 1, start + 1.5, told))
    return records


def watcher(numbers: list[int]) -> Watcher:
    made = Watcher("w", [None], Random(1), b"k", b"", start=2)  # type: ignore[list-item]
    for number in numbers:
        event = Event("put", pair(number))
        made.current.responses.append(Response(number + 1, (event,)))
    return made


def wrong(records: Records, numbers: list[int]) -> str:
    return "\n".join(verdict(records, [watcher(numbers)], State(), 6, compacted=False))


async def judge() -> None:
    assert wrong(history(5), [1, 2, 3, 4, 5]) == ""

    stale = history(5)
    stale.operations[-1] = replace(stale.operations[-1], result=GetResult(5, (pair(4),), 1))
    assert "has no newer revision" in wrong(stale, [1, 2, 3, 4, 5])

    lost = history(5)
    lost.operations[8:] = [
        Operation("a", Put(b"k", b"new"), 10.0, 10.5, PutResult(5))  # the fourth was acknowledged
    ]
    assert "two writes have revision 5" in wrong(lost, [1, 2, 3, 4])

    assert "never came" in wrong(history(5), [1, 2, 4, 5])
    assert "came twice" in wrong(history(5), [1, 2, 2, 3, 4, 5])
    assert "stands at 4, and missed" in wrong(history(5), [1, 2, 3])


def test_each_wrong_is_found() -> None:
    asyncio.run(judge())
