"""The three checks among made-up members: who is accused, and who is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from corruption_kit import quiet_lines

from kvorum import errors
from kvorum.mvcc.hash import KeyValueHash
from kvorum.server.cluster import corruption
from kvorum.server.cluster.corruption import WHOLE_CLUSTER, CorruptionChecks
from kvorum.server.cluster.peer_hashes import ClusterMismatch, PeerHash
from kvorum.server.errors import CorruptMember
from kvorum.types import MemberID, Revision

LEADER, B, C, D, E = (MemberID(number) for number in range(0xA, 0xF))
Answer = tuple[int, int, int] | Exception | None
"""(hash, compaction revision, newest revision), or why there is no answer."""


def kv_hash(value: int, compact_rev: int = -1, rev: int = 10) -> KeyValueHash:
    return KeyValueHash(value, compact_rev, rev)


@dataclass
class Members:
    """The leader, and what the others answer at each revision."""

    own: list[tuple[KeyValueHash, int]] = field(default_factory=list)
    """Its hash and newest revision, one time after the other; the last stays."""
    answers: dict[int, dict[MemberID, Answer]] = field(default_factory=dict)
    stored: list[KeyValueHash] = field(default_factory=list)
    leads: bool = True
    stale: type[errors.EtcdError] | None = None
    member: MemberID = LEADER
    timeout: float = 7.0
    asked: list[int] = field(default_factory=list)
    accused: list[int] = field(default_factory=list)

    def is_leader(self) -> bool:
        return self.leads

    def stored_hashes(self) -> Sequence[KeyValueHash]:
        return self.stored

    async def hash_kv(self, rev: int = 0) -> tuple[KeyValueHash, Revision]:
        assert rev == 0
        found, current = self.own.pop(0) if len(self.own) > 1 else self.own[0]
        return found, Revision(current)

    async def ask_peers(self, rev: int) -> list[PeerHash]:
        self.asked.append(rev)
        return [
            PeerHash(member, ("http://x",), error=answer)
            if answer is None or isinstance(answer, Exception)
            else PeerHash(member, ("http://x",), kv_hash(*answer[:2], rev), answer[2])
            for member, answer in self.answers.get(rev, {}).items()
        ]

    async def until_fresh(self) -> None:
        if self.stale is not None:
            raise self.stale

    def raise_corrupt(self, member: MemberID) -> None:
        self.accused.append(member)


def checks(members: Members, **intervals: float) -> CorruptionChecks:
    return CorruptionChecks(members, **({"interval": 0.0, "compact_interval": 0.0} | intervals))


# Before the start


def initial(answers: dict[MemberID, Answer], own: KeyValueHash | None = None) -> None:
    members = Members(own=[(own or kv_hash(1), 10)], answers={10: answers})
    asyncio.run(checks(members).initial_check())
    assert members.asked == [10]
    assert members.accused == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((1, -1, 10), ""),
        ((1, -1, 99), ""),
        ((2, 5, 10), "found different compact revision values from remote peer"),
        (errors.FutureRev(), "cannot fetch hash from slow remote peer"),
        (errors.Compacted(), "cannot fetch hash from remote peer; local member is behind"),
        (ClusterMismatch(), "cluster ID mismatch"),
        (OSError("refused"), ""),
        (None, ""),
    ],
)
def test_what_does_not_keep_a_member_from_starting(
    answer: Answer, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    initial({B: answer, C: (1, -1, 10)})
    lines = quiet_lines(capfd)
    assert lines.pop(0) == "starting initial corruption check"
    assert lines.pop() == "initial corruption checking passed; no corruption"
    assert lines == ([said] if said else [])


def test_another_hash_keeps_a_member_from_starting(capfd: pytest.CaptureFixture[str]) -> None:
    """All that differ are logged."""
    with pytest.raises(CorruptMember, match=r"^a found data inconsistency with peers$"):
        initial({B: (2, -1, 10), C: (1, -1, 10), D: (3, -1, 10)})
    assert quiet_lines(capfd)[1:] == ["found different hash values from remote peer"] * 2


def test_a_member_alone_starts() -> None:
    initial({})


# Now and then


@pytest.mark.parametrize(
    ("answers", "accused", "said"),
    [
        ({B: (1, 5, 10), C: (1, 5, 12)}, [], ""),
        ({B: (1, 5, 10), C: None}, [], ""),
        ({B: None, C: OSError("refused")}, [], ""),
        ({B: (2, 5, 10), C: (1, 5, 10)}, [B], "same compact revision then hashes must match"),
        ({B: (1, 5, 10), C: (2, 5, 10)}, [C], "same compact revision then hashes must match"),
        ({B: (2, 4, 10), C: (1, 5, 10)}, [], ""),
        ({B: (2, 5, 10), C: (3, 5, 10)}, [B], "same compact revision then hashes must match"),
        (
            {B: (1, 5, 13), C: (1, 5, 10)},
            [B],
            "revision from follower must be less than or equal to leader's",
        ),
        (
            {B: (1, 5, 10), C: (1, 9, 10)},
            [C],
            "compact revision from follower must be less than or equal to leader's",
        ),
        ({B: (7, 6, 10), C: (1, 5, 10)}, [], ""),
    ],
)
def test_the_periodic_check(
    answers: dict[MemberID, Answer],
    accused: list[MemberID],
    said: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The leader was at revision 10, compacted at 5, then at 12, compacted at 6."""
    members = Members(own=[(kv_hash(1, 5), 10), (kv_hash(9, 6, 12), 12)], answers={10: answers})
    asyncio.run(checks(members).periodic_check())
    assert members.accused == accused
    lines = quiet_lines(capfd)
    assert lines.pop() == "finished peer corruption check"
    assert set(lines) == ({said} if said else set())


def test_a_leader_whose_own_hash_changes_is_wrong(capfd: pytest.CaptureFixture[str]) -> None:
    members = Members(
        own=[(kv_hash(1), 10), (kv_hash(2), 10)], answers={10: {B: (1, -1, 10), C: (1, -1, 10)}}
    )
    asyncio.run(checks(members).periodic_check())
    assert members.accused == [LEADER]
    assert "found hash mismatch" in quiet_lines(capfd)


@pytest.mark.parametrize("second", [kv_hash(2, -1, 11), kv_hash(2, 3, 10)])
def test_a_leader_whose_store_has_changed_is_not(second: KeyValueHash) -> None:
    members = Members(own=[(kv_hash(1), 10), (second, 11)], answers={10: {B: (1, -1, 10)}})
    asyncio.run(checks(members).periodic_check())
    assert members.accused == []


def test_a_leader_that_is_none_any_more_accuses_nobody() -> None:
    members = Members(own=[(kv_hash(1), 10)], answers={10: {B: (2, -1, 10)}}, stale=errors.Timeout)
    with pytest.raises(errors.Timeout):
        asyncio.run(checks(members).periodic_check())
    assert members.accused == []


# The hashes of compactions


@pytest.mark.parametrize(
    ("answers", "accused"),
    [
        ({B: (1, 5, 99), C: (1, 5, 99)}, []),
        ({B: (2, 5, 99), C: (1, 5, 99)}, [B]),
        ({B: (2, 5, 99), C: (2, 5, 99)}, [LEADER]),
        ({B: (2, 5, 99), C: (3, 5, 99)}, [WHOLE_CLUSTER]),
        ({B: (2, 5, 99), C: None}, [WHOLE_CLUSTER]),
        ({B: (2, 5, 99)}, [WHOLE_CLUSTER]),
        ({B: (2, 4, 99), C: (1, 5, 99)}, []),
        ({B: None, C: errors.Compacted()}, []),
        ({B: (1, 5, 99), C: (2, 5, 99), D: (3, 5, 99), E: (1, 5, 99)}, [C, D]),
        ({B: (2, 5, 99), C: (2, 5, 99), D: (2, 5, 99), E: (3, 5, 99)}, [LEADER, E]),
        ({B: (1, 5, 99), C: (2, 5, 99), D: (2, 5, 99), E: None}, [WHOLE_CLUSTER]),
        ({B: (1, 5, 99), C: (2, 5, 99), D: (2, 5, 99)}, [WHOLE_CLUSTER]),
    ],
)
def test_who_differs_from_the_majority(
    answers: dict[MemberID, Answer], accused: list[MemberID]
) -> None:
    """A majority of all members, not of those that answer."""
    members = Members(answers={50: answers}, stored=[kv_hash(1, 5, 50)])
    asyncio.run(checks(members).compact_hash_check())
    assert sorted(members.accused) == accused
    assert members.asked == [50]


def test_the_newest_that_all_know_is_compared() -> None:
    """Older ones, up to the first that settles it."""
    fine: dict[MemberID, Answer] = {B: (1, 5, 99), C: (1, 5, 99)}
    members = Members(
        stored=[kv_hash(1, 5, rev) for rev in (20, 30, 40, 50)],
        answers={50: fine | {B: None}, 40: fine | {C: (1, 4, 99)}, 30: fine, 20: fine},
    )
    checker = checks(members)
    asyncio.run(checker.compact_hash_check())
    assert members.asked == [50, 40, 30]
    asyncio.run(checker.compact_hash_check())
    assert members.asked == [50, 40, 30, 50, 40]
    members.answers[50] = fine
    asyncio.run(checker.compact_hash_check())
    asyncio.run(checker.compact_hash_check())
    assert members.asked == [50, 40, 30, 50, 40, 50]
    assert members.accused == []


def test_who_is_accused_is_accused_again_until_somebody_acts() -> None:
    members = Members(
        stored=[kv_hash(1, 5, 50), kv_hash(1, -1, 5)],
        answers={50: {B: (2, 5, 99), C: (1, 5, 99)}, 5: {}},
    )
    checker = checks(members)
    asyncio.run(checker.compact_hash_check())
    asyncio.run(checker.compact_hash_check())
    assert members.accused == [B, B]
    assert members.asked == [50, 50]


def test_what_a_compact_hash_check_says(capfd: pytest.CaptureFixture[str]) -> None:
    def said(answers: dict[MemberID, Answer]) -> list[str]:
        members = Members(answers={50: answers}, stored=[kv_hash(1, 5, 50)])
        asyncio.run(checks(members).compact_hash_check())
        first, *between, last = quiet_lines(capfd)
        assert (first, last) == (
            "starting compact hash check",
            "finished compaction hash check",
        )
        return between

    assert said({B: (1, 5, 99)}) == ["successfully checked hash on whole cluster"]
    assert said({B: None, C: (1, 4, 99)}) == [
        "Skipped peer's hash",
        "Skipped peer's hash",
        "skipped revision in compaction hash check; was not able to check all peers",
    ]
    assert said({B: (2, 5, 99), C: (1, 5, 99)}) == ["Detected compaction hash mismatch"]
    assert said({B: (2, 5, 99)}) == [
        "Detected compaction hash mismatch but cannot identify the corrupted members,"
        " so intentionally set the memberID as 0",
        "Detected compaction hash mismatch",
        "Detected compaction hash mismatch",
    ]
    assert said({}) == []


# When


def ticking(members: Members, *, ticks: int, **intervals: float) -> None:
    """Run the loops for so many intervals, without waiting."""

    async def main() -> None:
        tasks: list[asyncio.Task[None]] = []
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) > ticks:
                raise asyncio.CancelledError
            await real(0)

        real = asyncio.sleep
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(corruption.asyncio, "sleep", sleep)
            loop = asyncio.get_running_loop()
            checks(members, **intervals).start(lambda work: tasks.append(loop.create_task(work)))
            await asyncio.gather(*tasks, return_exceptions=True)
        assert set(slept) <= set(intervals.values())

    asyncio.run(main())


Setting = Callable[[Members], Any]


@pytest.mark.parametrize(
    ("intervals", "periodic", "compact"),
    [
        ({}, 0, 0),
        ({"interval": 5.0}, 3, 0),
        ({"compact_interval": 60.0}, 0, 3),
    ],
)
def test_checks_come_at_their_intervals(
    intervals: dict[str, float], periodic: int, compact: int
) -> None:
    members = Members(own=[(kv_hash(1), 10)], stored=[kv_hash(1, 5, 50)])
    ticking(members, ticks=3, **intervals)
    assert members.asked == [10] * periodic + [50] * compact


def test_only_the_leader_checks() -> None:
    members = Members(own=[(kv_hash(1), 10)], stored=[kv_hash(1, 5, 50)], leads=False)
    ticking(members, ticks=3, interval=5.0, compact_interval=60.0)
    assert members.asked == []


def test_a_check_that_fails_is_not_the_last(capfd: pytest.CaptureFixture[str]) -> None:
    members = Members(own=[(kv_hash(1), 10)], stale=errors.Timeout)
    ticking(members, ticks=3, interval=5.0)
    assert members.asked == [10] * 3
    assert quiet_lines(capfd).count("failed to check hash KV") == 3
