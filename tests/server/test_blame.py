from __future__ import annotations

from types import SimpleNamespace

from kvorum import errors
from kvorum.membership import Cluster, Member
from kvorum.server.alone import Alone
from kvorum.server.cluster.blame import Blame
from kvorum.types import MemberID

ME, B, C = MemberID(1), MemberID(2), MemberID(3)


class Buckets:
    def put(self, bucket: str, key: bytes, value: bytes) -> None: ...
    def delete(self, bucket: str, key: bytes) -> None: ...
    def get(self, bucket: str, key: bytes) -> bytes | None: ...
    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> list[tuple[bytes, bytes]]:
        return []


class Bench(Alone):
    """A member of three; ``since`` tells how long the others have been connected."""

    def __init__(self, leader: MemberID, **since: float) -> None:
        self.since = {B: since.get("b"), C: since.get("c")}
        cluster = Cluster(7, ME, Buckets())
        for member in (ME, B, C):
            cluster.add(Member(member, (f"http://{member}:1",)))
        raft = SimpleNamespace(leader=leader, transport=self)
        self.blame = Blame(raft, cluster, 1.0)  # type: ignore[arg-type]

    def active_since(self, member: MemberID) -> float | None:
        return self.since[member]


def test_nobody_leads_and_nobody_knows_why() -> None:
    assert Bench(MemberID(0)).blame.late(5.0) is errors.Timeout


def test_a_follower_looks_at_its_leader() -> None:
    assert Bench(B, b=4.0).blame.late(5.0) is errors.Timeout
    assert Bench(B, b=6.0, c=4.0).blame.late(5.0) is errors.TimeoutDueToConnectionLost
    assert Bench(B, c=4.0).blame.late(5.0) is errors.TimeoutDueToConnectionLost


def test_a_leader_looks_at_its_quorum() -> None:
    assert Bench(ME, b=4.0).blame.late(5.0) is errors.Timeout
    assert Bench(ME, b=6.0, c=7.0).blame.late(5.0) is errors.TimeoutDueToConnectionLost


def test_what_came_while_the_last_leader_was_lost() -> None:
    """Within two election time-outs before this one was elected."""
    blame = Bench(ME, b=1.0).blame
    blame.elected(10.0)
    assert blame.late(7.9) is errors.Timeout
    assert blame.late(8.1) is errors.TimeoutDueToLeaderFail
    assert blame.late(9.9) is errors.TimeoutDueToLeaderFail
    assert blame.late(10.1) is errors.Timeout
