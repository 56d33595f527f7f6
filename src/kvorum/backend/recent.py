"""Records that ranges have read before.

A range of a thousand keys spends half of its time in a thousand look-ups in LMDB, and the ranges
that are asked for are mostly asked for again. A record never changes once it is written, so none
here can be out of date.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

MAX_BYTES: Final = 32 << 20
"""What is kept at the most; beyond it all is forgotten."""
OVERHEAD: Final = 150
"""Bytes that a kept record costs besides its own."""
MAX_RANGE: Final = 10_000
"""Records of a larger range are not kept: one walk over a large store would push out all."""


class RecentRecords:
    """Keeps records by revision."""

    __slots__ = ("_bytes", "_records")

    def __init__(self) -> None:
        self._records: dict[bytes, bytes] = {}
        self._bytes = 0

    def clear(self) -> None:
        """Forget all: the database was replaced."""
        self._records.clear()
        self._bytes = 0

    def get_many(
        self, revs: Sequence[bytes], load: Callable[[Sequence[bytes]], list[bytes]]
    ) -> list[bytes]:
        """The records of these revisions in their order; `load` gets those that are not here."""
        found = list(map(self._records.get, revs))
        if None not in found:
            return found  # type: ignore[return-value] # nothing is None, as was just checked
        missing = [rev for rev, record in zip(revs, found, strict=True) if record is None]
        loaded = load(missing)
        if len(missing) <= MAX_RANGE:
            self._keep(missing, loaded)
        if len(missing) == len(revs):
            return loaded
        rest = iter(loaded)
        return [next(rest) if record is None else record for record in found]

    def _keep(self, revs: Sequence[bytes], records: list[bytes]) -> None:
        self._bytes += sum(map(len, records)) + OVERHEAD * len(records)
        if self._bytes > MAX_BYTES:
            self.clear()
            return
        self._records.update(zip(revs, records, strict=True))
