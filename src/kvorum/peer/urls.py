"""The URLs of one peer, taken in turn when one does not work."""

from __future__ import annotations

from collections.abc import Iterable

from kvorum.config.urls import URL, parse_url


class URLPicker:
    """Gives the same URL until that is said to be unreachable."""

    def __init__(self, urls: Iterable[str]) -> None:
        """Raises ValueError for a malformed URL, or if there is none."""
        self.update(urls)

    def update(self, urls: Iterable[str]) -> None:
        parsed = tuple(map(parse_url, urls))
        if not parsed:
            raise ValueError("a peer without URLs")
        self.urls = parsed
        self._picked = 0

    def pick(self) -> URL:
        return self.urls[self._picked]

    def unreachable(self, url: URL) -> None:
        """Go to the next one, unless somebody else has done so or the URLs are others now."""
        if url == self.urls[self._picked]:
            self._picked = (self._picked + 1) % len(self.urls)
