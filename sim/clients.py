"""Clients that read and write keys, each one thing after the other, at whichever member serves."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final, Literal

from kvorum import errors
from kvorum.pb import etcdserverpb as pb
from kvorum.testing.history import Compare, Delete, Get, Operation, Put, Request, Txn
from sim import words
from sim.calls import ClientCall, Outcome

if TYPE_CHECKING:
    from sim.cluster import Cluster
    from sim.member import Member
    from sim.plan import Plan

TIMEOUT: Final = 3.0
RELATIONS: Final[list[Literal["<", ">", "="]]] = ["<", ">", "="]
RETRY: Final = 0.1
"""Seconds until a client looks again for a member that serves."""

_REFUSALS: Final = frozenset(
    each.message
    for each in (
        errors.KeyNotFound,
        errors.LeaseNotFound,
        errors.Compacted,
        errors.FutureRev,
        errors.NotSupportedForLearner,
        errors.RequestTooManyRequests,
    )
)
"""Answers which say that a request had no effect and never will."""


class Records:
    """What all clients asked and were told."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.revision = 0
        """The newest that anybody was told of."""
        self.acknowledged = 0
        """The newest revision of an acknowledged write."""
        self.answered = 0
        self.unknown = 0

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        result = operation.result
        if result is None:
            self.unknown += 1
            return
        self.answered += 1
        self.revision = max(self.revision, result.revision)
        if not isinstance(operation.request, Get):
            self.acknowledged = max(self.acknowledged, result.revision)


class Caller:
    """Calls members, and writes down what comes of it."""

    def __init__(self, cluster: Cluster, records: Records, name: str, random: Random) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.records = records
        self.name = name
        self.random = random
        self._favourite: Member | None = None

    def member(self) -> Member | None:
        """One that serves: mostly the same, as clients stay where they are connected."""
        serving = self.cluster.serving()
        if self._favourite not in serving or self.random.random() < 0.1:
            self._favourite = self.random.choice(serving) if serving else None
        return self._favourite

    def unary(
        self, path: str, message: bytes, done: Callable[[Outcome], None], timeout: float = TIMEOUT
    ) -> bool:
        """Call some member; False if there is none."""
        member = self.member()
        if member is None or member.process is None:
            return False
        clients = self.cluster.clients
        clients.unary(member.process, member.methods[path], message, done, timeout=timeout)
        return True

    def stream(
        self,
        path: str,
        on_message: Callable[[bytes], None],
        on_end: Callable[[Outcome], None],
        read_time: float = 0.0,
    ) -> ClientCall | None:
        """Open a stream to some member; None if there is none."""
        member = self.member()
        if member is None or member.process is None:
            return None
        return self.cluster.clients.stream(
            member.process, member.methods[path], on_message, on_end, read_time=read_time
        )

    def ask(self, request: Request, done: Callable[[Operation | None], None]) -> None:
        """Make a request of the key space; ``done`` gets the operation, None if it had no effect
        or there was nobody to ask."""
        start = self.world.now
        path, message = words.encode(request)

        def ended(outcome: Outcome) -> None:
            done(self._take(request, start, outcome))

        if not self.unary(path, message, ended):
            self.world.after(RETRY, done, None)

    def _take(self, request: Request, start: float, outcome: Outcome) -> Operation | None:
        if outcome.code:
            if isinstance(request, Get) or (outcome.by_server and outcome.error in _REFUSALS):
                return None
            operation = Operation(self.name, request, start, self.world.now)
        else:
            result = words.decode(request, outcome.message)
            operation = Operation(self.name, request, start, self.world.now, result)
        self.records.add(operation)
        return operation


class KVClient:
    """Asks for this and that until it is stopped, some things at a time. Keys are few, so
    that clients meet; values are never written twice, so that it is plain which write a read has
    seen."""

    def __init__(self, caller: Caller, plan: Plan, values: Callable[[], bytes]) -> None:
        self.stopped = False
        self.busy = 0
        self._window = plan.window
        self._only_reads = caller.random.random() < 0.3
        self._caller = caller
        self._random = caller.random
        self._keys = [b"k%02d" % number for number in range(plan.keys)]
        self._think = plan.think
        self._value = values
        self._seen: dict[bytes, int] = {}  # mod revisions, for transactions that may succeed

    def start(self) -> None:
        self._pause()

    def _pause(self) -> None:
        """After the last answer to a round of requests."""
        delay = self._random.expovariate(1 / self._think)
        self._caller.world.after(delay, self._go)

    def _go(self) -> None:
        if self.stopped:
            return
        # Mostly one thing at a time, sometimes all that it may ask for.
        self.busy = 1 if self._random.random() < 0.8 else self._random.randint(1, self._window)
        for _ in range(self.busy):
            self._caller.ask(self._request(), self._answered)

    def _answered(self, operation: Operation | None) -> None:
        self.busy -= 1
        if operation is not None:
            self._remember(operation)
        if not self.busy:
            self._pause()

    def _remember(self, operation: Operation) -> None:
        result = operation.result
        if result is None:
            return
        for kv in getattr(result, "kvs", ()):
            self._seen[kv.key] = kv.mod
        if isinstance(operation.request, Put):
            self._seen[operation.request.key] = result.revision

    def _request(self) -> Request:
        random = self._random
        key = random.choice(self._keys)
        dice = random.uniform(0.35, 0.65) if self._only_reads else random.random()
        if dice < 0.35:
            return Put(key, self._value(), prev=random.random() < 0.2)
        if dice < 0.6:
            return self._get(key)
        if dice < 0.7:
            return self._stale_get(key)
        if dice < 0.76:
            return Delete(key, prev=random.random() < 0.3)
        if dice < 0.78:
            return Delete(key, random.choice(self._keys) + b"~")
        return self._txn(key)

    def _get(self, key: bytes) -> Get:
        if self._random.random() < 0.2:
            return Get(b"k", b"l", limit=self._random.choice([0, 0, 2]))
        return Get(key)

    def _stale_get(self, key: bytes) -> Get:
        newest = self._caller.records.revision
        if newest > 1 and self._random.random() < 0.3:
            return Get(key, revision=self._random.randint(max(1, newest - 20), newest))
        return Get(key, b"l" if self._random.random() < 0.2 else b"", serializable=True)

    def _txn(self, key: bytes) -> Txn:
        random = self._random
        other = random.choice(self._keys)
        compares = [Compare(key, "mod", "=", self._seen.get(key, 0))]
        if random.random() < 0.3:
            compares = [Compare(key, "version", random.choice(RELATIONS), random.randint(0, 3))]
        success: list[Request] = [Put(key, self._value(), prev=random.random() < 0.3)]
        if other != key:
            more: list[Request] = [Put(other, self._value()), Delete(other), Get(other)]
            success.append(random.choice(more))
        success.append(Get(key))
        failure: list[Request] = [Get(key)]
        if random.random() < 0.2:
            failure = [Put(key, self._value()), Get(other)]
        return Txn(tuple(compares), tuple(success), tuple(failure))


class Compactor:
    """Compacts now and then, some revisions behind what was last heard of."""

    def __init__(self, caller: Caller, interval: float) -> None:
        self.stopped = False
        self.compacted = 0
        self._caller = caller
        self._interval = interval

    def start(self) -> None:
        self._caller.world.after(self._caller.random.expovariate(1 / self._interval), self._go)

    def _go(self) -> None:
        if self.stopped:
            return
        self.start()
        revision = self._caller.records.revision - self._caller.random.randint(0, 60)
        if revision > max(1, self.compacted):
            request = pb.CompactionRequest(revision=revision).SerializeToString()
            self._caller.unary(
                words.COMPACT, request, lambda outcome: self._done(revision, outcome)
            )

    def _done(self, revision: int, outcome: Outcome) -> None:
        if not outcome.code:
            self.compacted = max(self.compacted, revision)
            self._caller.cluster.trace(f"compacted at {revision}")
