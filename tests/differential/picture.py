"""The generator's picture of the store: good enough to aim requests at what is there."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

KEYS = [
    *(b"k%02d" % number for number in range(28)),
    b"a",
    b"aa",
    b"a\0",
    b"a\0b",
    b"b",
    b"dir/",
    b"dir/x",
    b"dir/y/z",
    b"\0",
    b"\0\0",
    b"\xff",
    b"\xff\xff",
    "schlüssel".encode(),
    b"\xc3\x28 no utf-8",
    b"long" * 200,
]
LEASES = [*range(1, 13), 0x7FFF_FFFF_FFFF_FFF0, 1 << 40, -9]
UNKNOWN_LEASES = [77, 1 << 50, -77]


@dataclass(slots=True)
class OpenWatch:
    """A watch the generator asked for; ``past``: it may still be catching up."""

    stream: int
    watch_id: int
    request: Any
    past: bool


@dataclass(slots=True)
class Picture:
    """What is believed to be in the store. ``revision`` runs a little ahead or behind."""

    rng: random.Random
    revision: int = 1
    compacted: int = 0
    live: dict[bytes, Any] = field(default_factory=dict)
    leases: set[int] = field(default_factory=set)
    watches: list[OpenWatch] = field(default_factory=list)
    counter: int = 0

    def refresh(self, kvs: Iterable[Any], revision: int) -> None:
        self.live = {kv.key: kv for kv in kvs}
        self.revision = revision

    def chance(self, percent: float) -> bool:
        return self.rng.random() * 100 < percent

    def key(self) -> bytes:
        if self.live and self.chance(60):
            return self.rng.choice(list(self.live))
        return self.rng.choice(KEYS)

    def range_end(self, key: bytes) -> bytes:
        """Every form there is: none, prefix, open, ordered, inverted, empty."""
        form = self.rng.random()
        if form < 0.35:
            return b""
        if form < 0.55:
            return prefix_end(key if self.chance(50) else key[:1])
        if form < 0.65:
            return b"\0"
        other = self.key()
        if form < 0.90:
            return max(key, other)
        return min(key, other) if form < 0.97 else key

    def past(self) -> int:
        """A revision that can still be read."""
        low = max(1, self.compacted)
        return self.rng.randint(low, max(low, self.revision))

    def any_revision(self) -> int:
        """Past, present, future, compacted, senseless."""
        choices = [
            self.past(),
            self.past(),
            self.past(),
            self.revision,
            self.revision + 1,
            self.revision + self.rng.randint(2, 5000),
            self.compacted,
            self.compacted - self.rng.randint(1, 3),
            -self.rng.randint(1, 9),
            (1 << 63) - 1,
        ]
        return self.rng.choice(choices)

    def value(self) -> bytes:
        roll = self.rng.random()
        if roll < 0.06:
            return b""
        if roll < 0.20:
            return self.rng.choice([b"same", b"x", b"y"])
        if roll < 0.22:
            return self.rng.randbytes(self.rng.randint(2_000, 20_000))
        self.counter += 1
        return b"v%d" % self.counter

    def lease(self) -> int:
        """A lease to attach: mostly none, else one that exists, or one that does not."""
        roll = self.rng.random()
        if roll < 0.70:
            return 0
        if roll < 0.93 and self.leases:
            return self.rng.choice(sorted(self.leases))
        return self.rng.choice(UNKNOWN_LEASES)

    def lease_id(self) -> int:
        return self.rng.choice(LEASES if self.chance(85) else UNKNOWN_LEASES)


def prefix_end(key: bytes) -> bytes:
    """The first key after all that begin with ``key``, as clients compute it."""
    for position in range(len(key) - 1, -1, -1):
        if key[position] != 0xFF:
            return key[:position] + bytes([key[position] + 1])
    return b"\0"
