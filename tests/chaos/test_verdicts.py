"""What the checkers of a chaos run are told is what they judge: each kind of wrong is found."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from chaos.clients import Records
from chaos.serving import Release, Serving, without_resent
from chaos.verdicts import verdict
from chaos.watchers import ASKED_FOR, Watcher

from kvorum.pb import etcdserverpb as pb
from kvorum.testing.history import Event, Get, GetResult, KeyValue, Operation, Put, PutResult
from kvorum.testing.kvmodel import State
from kvorum.testing.watch_guarantees import Response, Watch


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


def served(log: Path, release: Release, *, ours: bool = False, snapshots: int = 1) -> Serving:
    """By a member on which so many snapshots were installed meanwhile, and one before and after."""
    line = b'{"level":"info","msg":"applying snapshot"}\n'
    log.write_bytes(line * (snapshots + 2))
    size = len(line)
    life = deque([(1.0, "starts"), (2.5, "stands still"), (9.0, "goes on")])
    return Serving("b", release, ours, log, life, 2.0, size, 3.0, size * (snapshots + 1))


def told(serving: Serving, numbers: list[int]) -> str:
    """What is wrong with a watch served by it."""

    async def judged() -> str:
        one = watcher(numbers)
        one.servings[one.current.name] = serving
        return "\n".join(verdict(history(5), [one], State(), 6, compacted=False))

    return asyncio.run(judged())


TWICE = [1, 2, 3, 2, 3, 4, 5]


def test_a_verdict_tells_who_served_the_watch_and_what_befell_it(tmp_path: Path) -> None:
    wrong = told(served(tmp_path / "log", (3, 7, 1), ours=True), TWICE)
    assert "came twice" in wrong
    assert "watch w #0 was served by b (Kvorum) from 2.00 to 3.00;" in wrong
    assert "snapshots installed on it meanwhile: 1;" in wrong
    assert "its last: 1.00 starts, 2.50 stands still" in wrong
    assert "goes on" not in wrong


@pytest.mark.parametrize("numbers", [TWICE, [1, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]])
def test_old_etcd_may_go_back_once_for_each_snapshot(tmp_path: Path, numbers: list[int]) -> None:
    assert told(served(tmp_path / "log", (3, 5, 1)), numbers) == ""
    assert told(served(tmp_path / "log", (3, 5, 7)), numbers) == ""
    for release in [(3, 5, 8), (3, 6, 0), (3, 7, 1)]:
        assert "came twice" in told(served(tmp_path / "log", release), numbers)
    assert "came twice" in told(served(tmp_path / "log", (3, 5, 1), ours=True), numbers)
    assert "came twice" in told(served(tmp_path / "log", (3, 5, 1), snapshots=0), numbers)


def test_old_etcd_may_do_nothing_else(tmp_path: Path) -> None:
    """Not go back more often, nor lose anything, nor send what came before in another order."""
    serving = served(tmp_path / "log", (3, 5, 1))
    again = [1, 2, 3, 2, 3, 2, 3, 4, 5]
    assert "came twice" in told(serving, again)
    assert told(served(tmp_path / "log", (3, 5, 1), snapshots=2), again) == ""
    assert "never came" in told(serving, [1, 2, 2, 4, 5])
    assert "came twice" in told(serving, [1, 2, 3, 3, 2, 4, 5])
    assert "stands at 4, and missed" in told(serving, [1, 2, 3, 2, 3])


def test_old_etcd_is_not_believed_a_notice_that_was_asked_for(tmp_path: Path) -> None:
    """It comes before events that it says have come."""
    for release, ours, believed in [
        ((3, 5, 1), False, False),
        ((3, 5, 8), False, True),
        ((3, 5, 1), True, True),
    ]:
        for watch_id, counts in [(ASKED_FOR, believed), (0, True)]:
            one = watcher([1, 2, 3])
            one.servings[one.current.name] = served(tmp_path / "log", release, ours=ours)
            notice = pb.WatchResponse(watch_id=watch_id)
            notice.header.revision = 6
            assert not one._take(one.current, notice.SerializeToString())
            one.current.responses += watcher([4, 5]).current.responses
            found = "\n".join(verdict(history(5), [one], State(), 6, compacted=False))
            assert ("is not bookmarkable" in found) == counts, (release, ours, watch_id)


def test_what_is_sent_twice_leaves_nothing_behind() -> None:
    """No response that would look like a notice, and no fragment whose end is missing."""
    one, two, three = (Event("put", pair(number)) for number in (1, 2, 3))
    came = [
        Response(2, created=True),
        Response(3, (one,)),
        Response(3, (two,)),
        Response(3),
        Response(3, (one,), fragment=True),
        Response(4, (two, three), fragment=True),
        Response(4, (three,)),
        Response(4),
    ]
    kept = without_resent(Watch(b"k", responses=came), 2).responses
    assert kept == [*came[:4], Response(4, (three,)), came[7]]
    assert without_resent(Watch(b"k", responses=came), 0).responses == came
