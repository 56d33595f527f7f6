"""Runs the same steps on two servers side by side and stops at the first difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from differential.compare import Comparer, response_type, session_differences
from differential.generator import Generator
from differential.picture import LEASES, UNKNOWN_LEASES
from differential.steps import Kind, Step, shorten
from differential.target import Target
from support.rpc import COMPACT, HASH_KV, LEASE_GRANT, LEASE_LEASES, LEASE_REVOKE, RANGE, Reply

from kvorum.pb import etcdserverpb as pb

CHUNK = 50
CHECKPOINT_CHUNKS = 20


@dataclass(slots=True)
class Mismatch(AssertionError):
    """The first difference found, with all that is needed to see it again."""

    position: int
    step: Step | None
    old: str
    new: str

    def __str__(self) -> str:
        asked = "(watches)" if self.step is None else self.step.describe()
        return f"step {self.position}: {asked}\n  reference: {self.old}\n  tested:    {self.new}"


class Runner:
    """Two targets in lock step, a chunk of steps at a time."""

    def __init__(self, old: Target, new: Target, *, keep_going: bool = False) -> None:
        self._keep_going = keep_going
        self.old = old
        self.new = new
        self.comparer = Comparer(newer=new.newer)
        self.done: list[Step] = []
        self.outcomes: Counter[str] = Counter()
        self.mismatches: dict[str, Mismatch] = {}
        self.events = 0
        self._pool = ThreadPoolExecutor(2)

    def generate(self, generator: Generator, count: int) -> None:
        """``count`` fresh steps."""
        for number in range(-(-count // CHUNK)):
            steps = generator.take(min(CHUNK, count - number * CHUNK))
            replies = self.run(steps)
            if number % CHECKPOINT_CHUNKS == CHECKPOINT_CHUNKS - 1:
                self.checkpoint()
            generator.observe(steps, replies)
            self._refresh(generator)
        self.checkpoint()

    def _refresh(self, generator: Generator) -> None:
        now = self.old.everything_now()
        generator.at.refresh(now.kvs, now.header.revision)

    def replay(self, steps: Sequence[Step]) -> None:
        for first in range(0, len(steps), CHUNK):
            self.run(steps[first : first + CHUNK])
        self.checkpoint()

    def run(self, steps: Sequence[Step]) -> list[Reply]:
        """The reference's replies; Mismatch if the other server's differ."""
        first = len(self.done)
        self.done.extend(steps)
        old, new = self._pool.map(lambda target: target.run(steps), (self.old, self.new))
        for number, step in enumerate(steps):
            self._count(step, old[number])
            if not self.comparer.same(step, old[number], new[number]):
                self._differ(first + number, step, old[number], new[number])
        return old

    def _differ(self, position: int, step: Step, old: Reply, new: Reply) -> None:
        """Stop, or keep the first mismatch of each sort."""
        mismatch = Mismatch(position, step, _text(step, old), _text(step, new))
        if not self._keep_going or self.new.fault is not None:
            raise mismatch
        sort = f"{step.kind} {step.path} {old.code} {old.details} {new.code} {new.details}"
        self.mismatches.setdefault(sort, mismatch)

    def _count(self, step: Step, reply: Reply) -> None:
        """For the run's own coverage: which methods gave which outcomes."""
        name = step.path.rsplit("/", 1)[-1] if step.kind is Kind.CALL else step.kind.value
        text = reply.details.split(" (", 1)[0] if reply.code != "INTERNAL" else "unparsable"
        outcome = "not for the reference" if step.new_only else text or reply.code
        self.outcomes[f"{name}: {outcome}"] += 1

    def checkpoint(self) -> None:
        """Every watch has what is due to it, and the same on both."""
        self.run([Step(Kind.BARRIER)])
        pairs = zip(self.old.all_sessions, self.new.all_sessions, strict=True)
        for old, new in pairs:
            self.events += sum(len(record.events) for record in old.records)
            for difference in session_differences(old, new):
                mismatch = Mismatch(len(self.done), None, shorten(difference), "")
                if not self._keep_going:
                    raise mismatch
                self.mismatches.setdefault("watches", mismatch)

    def let_leases_expire(self) -> None:
        """Nothing else is written meanwhile, so the deletions have a known revision."""
        grants = [pb.LeaseGrantRequest(TTL=ttl, ID=900 + ttl) for ttl in (1, 3)]
        self.run(
            [Step(Kind.EXPIRE, LEASE_GRANT.path, grant.SerializeToString()) for grant in grants]
        )

    def compare_state(self) -> None:
        """Live pairs, leases and the hash of the whole history."""
        self.run(
            [
                _call(RANGE, pb.RangeRequest(key=b"\0", range_end=b"\0")),
                _call(LEASE_LEASES, pb.LeaseLeasesRequest()),
                _call(HASH_KV, pb.HashKVRequest()),
            ]
        )

    def compact_all(self) -> None:
        """A compaction at the current revision that is done when it returns."""
        revision = self.old.everything_now().header.revision
        self.run([_call(COMPACT, pb.CompactionRequest(revision=revision, physical=True))])

    def restart(self) -> None:
        """Restart both. See "negative lease" in ``differences.py`` for what goes before."""
        negative = [pb.LeaseRevokeRequest(ID=number) for number in (*LEASES, *UNKNOWN_LEASES)]
        self.run([_call(LEASE_REVOKE, request) for request in negative if request.ID < 0])
        list(self._pool.map(Target.restart, (self.old, self.new)))

    def close(self) -> None:
        self._pool.shutdown()
        self.old.close()
        self.new.close()


def _text(step: Step, reply: Reply) -> str:
    if not reply.ok:
        return f"{reply.code}: {reply.details}"
    kind = response_type(step)
    if kind is None:
        return reply.body[:500].hex()
    shown = shorten(str(kind.FromString(reply.body)).replace("\n", " "))
    return shown if len(shown) < 6000 else shown[:6000] + " ..."


def _call(rpc: object, request: object) -> Step:
    return Step(Kind.CALL, rpc.path, request.SerializeToString())  # type: ignore[attr-defined]
