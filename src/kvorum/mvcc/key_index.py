"""The history of one key: which of its revisions exist, in which generation.

A generation is one life of the key: the revisions of its puts, and as the last one that of the
delete that ended it. A key put at 2 and 3, deleted at 5 and put at 7 has::

    older: [[2, 3, 5t]]    revs: [7]

What compaction leaves of it (`compact`), and what HashKV counts as kept (`kept_at`):

======  ==============================  ======
at      left                            kept
======  ==============================  ======
2       [[2, 3, 5t]]    [7]             2
3, 4    [[3, 5t]]       [7]             3
5       [[5t]]          [7]             none: a tombstone stays, but does not count
6       []              [7]             none: 7 is later
======  ==============================  ======

When neither generations nor revisions are left the key goes from the index.
"""

from __future__ import annotations

from bisect import bisect_left

from kvorum.mvcc.revision import before, is_tombstone
from kvorum.types import RevKey


class KeyIndex:
    """Revisions are ascending, within a generation and from one to the next.

    ``revs`` is the life that lasts, empty when the key is deleted; ``created`` and ``version`` are
    the main revision that began it and the number of puts in it, and mean nothing when it is empty.
    """

    __slots__ = ("created", "older", "revs", "version")

    def __init__(self, revs: list[RevKey], created: int, version: int) -> None:
        self.revs = revs
        self.created = created
        self.version = version
        self.older: list[list[RevKey]] = []

    def end_life(self, tombstone: RevKey) -> None:
        """The key was deleted. Its current generation must not be empty."""
        assert self.revs, f"{tombstone!r} deletes a key that is deleted"
        assert self.revs[-1] < tombstone, (self.revs[-1], tombstone)
        self.revs.append(tombstone)
        self.older.append(self.revs)
        self.revs = []

    def live_at(self, bound: bytes) -> RevKey | None:
        """The newest revision below `bound` (see `before`), None if the key did not exist then."""
        revs = self.revs
        if revs and revs[0] < bound:
            return revs[bisect_left(revs, bound) - 1]
        for generation in reversed(self.older):
            if generation[-1] < bound:
                return None  # between two lives
            if generation[0] < bound:
                return generation[bisect_left(generation, bound) - 1]
        return None

    def _generation_at(self, at: int) -> list[RevKey]:
        """The first that was alive at `at` or later, the current one if there is none."""
        low = before(at)
        for generation in self.older:
            if generation[-1] >= low:
                return generation
        return self.revs

    def kept_at(self, at: int) -> RevKey | None:
        """The revision that a compaction at `at` has to keep, None if there is none or if it is a
        tombstone. Later puts, deletes and compactions up to `at` do not change the answer."""
        generation = self._generation_at(at)
        place = bisect_left(generation, before(at + 1))
        if place == 0 or is_tombstone(generation[place - 1]):
            return None
        return generation[place - 1]

    def compact(self, at: int) -> tuple[list[list[RevKey]], bool]:
        """Forget what nobody can read at `at` or later: the revisions forgotten, in lists, and
        whether one at or before `at` is left."""
        generation = self._generation_at(at)
        gone: list[list[RevKey]] = []
        while self.older and self.older[0] is not generation:
            gone.append(self.older.pop(0))
        place = bisect_left(generation, before(at + 1))
        if place > 1:
            gone.append(generation[: place - 1])
            rest = generation[place - 1 :]
            if generation is self.revs:
                self.revs = rest
            else:
                self.older[0] = rest
        return gone, place > 0

    @property
    def is_empty(self) -> bool:
        return not self.revs and not self.older
