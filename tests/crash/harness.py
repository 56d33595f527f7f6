"""One server, many deaths: run a load, end the server, start it again, hold it to its word."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from crash import checks
from crash.checks import LeaseView, Model
from crash.history import Event, Outcome, Pair, Recorder, Watched
from crash.workload import Epoch, Mind, Watcher, make_minds, make_watches, pair_of
from support.member import Member
from support.rpc import HASH_KV, LEASE_LEASES, LEASE_TTL, RANGE, Client

READ_SECONDS = 60.0
ACK_SECONDS = 20.0

Killer = Callable[[Epoch], None]


class CrashRun:
    """A member with a load that knows what it was promised.

    ``minds`` may be given to choose the clients; see ``workload.make_minds``.
    """

    def __init__(self, member: Member, seed: int, minds: dict[str, Mind] | None = None) -> None:
        self.member = member
        self.rng = random.Random(seed)
        self.minds = make_minds(seed) if minds is None else minds
        self.watches = make_watches()
        self.model = Model()
        self.known: dict[int, list[Event]] = {}
        self.compacted = 0
        self.asked = 0
        self.hash: tuple[int, int, int] | None = None
        self.acked = 0

    def cycle(self, end: Killer) -> None:
        """One epoch under load, its end by ``end``, a restart, and all checks."""
        if not self.member.running:
            self.member.start()
        recorder = Recorder()
        recorder.compact_asked = self.asked
        epoch = Epoch(self.member.endpoint, recorder, self.model.revision)
        epoch.start(self.minds, self.watches)
        try:
            end(epoch)
        finally:
            epoch.join()
        self.acked += recorder.acked
        self.member.start()
        self.verify(recorder)

    def verify(self, recorder: Recorder) -> None:
        """Hold the running, idle member against everything recorded; AssertionError if wrong."""
        with Client(self.member.endpoint) as client:
            wrong = self._settle_compaction(client, recorder)
            wrong += self._verify(client, recorder)
            wrong += self._check_hash(client)
        if wrong:
            shown = "\n".join(str(line)[:600] for line in wrong[:15])
            raise AssertionError(f"{len(wrong)} violations:\n{shown}\n{self.member.log_tail()}")

    def _settle_compaction(self, client: Client, recorder: Recorder) -> list[str]:
        """Find the compact revision: at least what was acknowledged, at most what was asked."""
        acked = max(self.compacted, recorder.compacted)
        self.asked = max(self.asked, recorder.compact_asked)
        found = max(client.call(HASH_KV).compact_revision, 0)
        self.compacted = found
        if found in (acked, self.asked):
            return []
        return [f"compact revision {found}; acknowledged {acked}, asked {self.asked}"]

    def _verify(self, client: Client, recorder: Recorder) -> list[str]:
        now = client.call(RANGE, key=b"\0", range_end=b"\0")
        revision = now.header.revision
        events = self.read_log(revision)
        new = [event for event in events if event.revision > self.model.revision]
        wrong = checks.check_unchanged(self.known, events, self.compacted)
        wrong += checks.replay(self.model, new)
        wrong += checks.check_ops(self.model, recorder.ops, new)
        wrong += checks.check_order(recorder.ops)
        wrong += checks.check_reads(self.model, recorder.reads, recorder.ops)
        live: dict[bytes, Pair] = {kv.key: pair_of(kv) for kv in now.kvs}
        wrong += checks.check_state(self.model, live, revision)
        revokes = [op for op in recorder.ops if op.revokes]
        views = lease_views(client)
        wrong += checks.check_leases(self.model, recorder.grants, revokes, views)
        wrong += self._check_watches(new, revision)
        self._remember(events)
        return wrong

    def read_log(self, revision: int) -> list[Event]:
        """Every event that is not compacted, up to ``revision``."""
        everything = Watched("log", b"\0", b"\xff" * 4, self.compacted + 1)
        if revision <= max(1, self.compacted):
            return []
        watcher = Watcher(self.member.endpoint, everything)
        watcher.wait_revision(revision, READ_SECONDS)
        watcher.close()
        return everything.events

    def _check_watches(self, new: list[Event], revision: int) -> list[str]:
        """Resume each watch, and let it catch up."""
        wrong = []
        for watched in self.watches:
            due = sum(watched.covers(event.key) for event in new)
            watcher = Watcher(self.member.endpoint, watched)
            watcher.wait_count(due, READ_SECONDS)
            watcher.close()
            wrong += [f"watch {watched.name}: {watcher.refused}"] if watcher.refused else []
            wrong += checks.check_watch(watched, new)
            watched.events = []
            watched.next_revision = revision + 1
        return wrong

    def _remember(self, events: list[Event]) -> None:
        self.known = defaultdict(list)
        for event in events:
            self.known[event.revision].append(event)

    def _check_hash(self, client: Client) -> list[str]:
        """The hash of old history does not change, unless it was compacted."""
        wrong = []
        if self.hash is not None and self.hash[1] == self.compacted:
            old, _, revision = self.hash
            now = client.call(HASH_KV, revision=revision).hash
            wrong = [f"hash of revision {revision} was {old}, is {now}"] if now != old else []
        reply = client.call(HASH_KV)
        self.hash = (reply.hash, self.compacted, reply.header.revision)
        return wrong

    def kill(self, epoch: Epoch) -> None:
        """SIGKILL after a random number of acknowledged writes, and a random moment more.

        Without the moment the kill would always come just after an answer, hence after an fsync.
        """
        count = self.rng.randint(1, 600)
        assert epoch.recorder.wait_acks(count, ACK_SECONDS), self.member.log_tail()
        epoch.stop.wait(self.rng.uniform(0.0, 0.01))
        self.member.kill()

    def kill_while_starting(self) -> None:
        """Start the server and kill it at some moment before or after it serves."""
        self.member.stop()
        self.member.spawn()
        assert self.member.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.member.process.wait(self.rng.uniform(0.0, 0.6))
        self.member.kill()
        self.member.start()
        self.verify(Recorder())


def lease_views(client: Client) -> dict[int, LeaseView]:
    views = {}
    for status in client.call(LEASE_LEASES).leases:
        reply: Any = client.call(LEASE_TTL, ID=status.ID, keys=True)
        views[status.ID] = LeaseView(reply.grantedTTL, reply.TTL, set(reply.keys))
    return views


def unanswered(recorder: Recorder) -> int:
    return sum(op.outcome is Outcome.UNKNOWN for op in recorder.ops)
