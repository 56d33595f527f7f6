"""A backend's content as a bolt file, made piece by piece while it is sent.

The file begins with where its root is, and its size must be known beforehand; both are known when
all pages have got their places. So the view is gone through twice: the first time only sizes are
looked at, and pages counted. That takes a third of the time, and no disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from kvorum.backend import Bucket
from kvorum.snap.bolt_tree import Item, Pages, Tree, WrittenPages, metas, put_root
from kvorum.snap.bolt_writer import PAGE_SIZE

PIECE: Final = 256 << 10
"""Bytes of a piece, about; a value that is longer makes it longer."""
CHUNK: Final = 500
"""Items between two naps: less than half a millisecond in which the interpreter is not shared."""
NAP: Final = 0.00005
"""Seconds. Enough for the event loop to get the interpreter when it wants it; where it does not,
two thirds of the speed are left."""
RELEASED: Final = 32 << 20
"""Bytes of the database that stay in memory after they were read."""


class View(Protocol):
    """What is exported."""

    def chunks(self, bucket: str, size: int) -> Iterable[list[Item]]: ...

    def release_memory(self) -> None: ...


class BoltExport:
    """The bolt file of a view. For a thread; raises what the view raises.

    Memory: a few pieces, whatever the size of the database.
    """

    def __init__(
        self,
        view: View,
        *,
        page_size: int = PAGE_SIZE,
        nap: Callable[[], None] = lambda: time.sleep(NAP),
    ) -> None:
        """Count the pages, which takes a second or two for a gigabyte."""
        self._view = view
        self._page_size = page_size
        self._nap = nap
        self._counted = Pages(page_size)
        for _ in self._lay_out(self._counted):
            pass

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._counted.next * self._page_size

    def pieces(self) -> Iterator[bytes]:
        """The file, in order."""
        counted = self._counted
        yield metas(self._page_size, counted.root, counted.next)
        pages = WrittenPages(self._page_size)
        for _ in self._lay_out(pages):
            if pages.waiting >= PIECE:
                yield pages.take()
        assert (pages.root, pages.next) == (counted.root, counted.next), "the view has changed"
        yield pages.take()

    def _lay_out(self, pages: Pages) -> Iterator[None]:
        """Give all pages their places, bit by bit."""
        values: dict[bytes, bytes] = {}
        released = pages.next
        for bucket in sorted(Bucket):
            tree = Tree(pages)
            for chunk in self._view.chunks(bucket, CHUNK):
                tree.add(chunk)
                yield
                if (pages.next - released) * self._page_size > RELEASED:
                    released = pages.next
                    self._view.release_memory()
                self._nap()
            values[bucket.encode()] = tree.finish_bucket()
        self._view.release_memory()
        put_root(pages, values)
