"""Whether two lists of URLs name the same places.

One may hold a host's name where the other holds its address; then DNS decides, and is asked again
for a while, since a member often starts before its name is known.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

from kvorum.config.urls import URL, parse_url
from kvorum.log import get_logger
from kvorum.server.bootstrap.names import Names

PATIENCE: Final = 30.0
"""Seconds in which all names have to be found."""

RETRY_INTERVAL: Final = 1.0

lg = get_logger()


def quoted(texts: Iterable[str]) -> str:
    """A list of strings as etcd's messages show it."""
    return "[" + " ".join(f'"{text}"' for text in texts) + "]"


class UrlMatcher:
    """Compares; all that one asks of it shares the patience, and what was looked up once."""

    def __init__(
        self, names: Names, *, patience: float = PATIENCE, interval: float = RETRY_INTERVAL
    ) -> None:
        self._names = names
        self._interval = interval
        self._deadline = asyncio.get_running_loop().time() + patience
        self._known: dict[str, str] = {}

    async def difference(self, ours: Sequence[str], theirs: Sequence[str]) -> str:
        """Empty if both name the same places in any order, else what is wrong, as etcd says it."""
        if len(ours) != len(theirs):
            return f"len({quoted(ours)}) != len({quoted(theirs)})"
        if same_text(ours, theirs):
            return ""
        try:
            resolved = [[await self._resolved(url) for url in urls] for urls in (ours, theirs)]
        except OSError as error:
            return str(error)
        for one, other in zip(*map(sorted, resolved), strict=True):
            if one != other:
                return f'resolved urls: "{one}" != "{other}"'
        return ""

    async def _resolved(self, text: str) -> str:
        url = parse_url(text)
        if url.is_unix or url.host == "localhost" or _as_ip(url.host):
            return str(_normal(url))
        try:
            address = self._known.get(url.host) or await self._look_up(url)
        except OSError as error:
            raise OSError(f'failed to resolve "{url}" ({error})') from error
        self._known[url.host] = address
        return str(_normal(url._replace(netloc=_join(address, url.port))))

    async def _look_up(self, url: URL) -> str:
        loop = asyncio.get_running_loop()
        while True:
            try:
                address = await self._names.address(url.host)
            except OSError as error:
                lg.warn("failed to resolve URL Host", url=str(url), host=url.host, error=error)
                if loop.time() + self._interval > self._deadline:
                    raise
                await asyncio.sleep(self._interval)
            else:
                lg.info("resolved URL Host", url=str(url), host=url.host, resolved_addr=address)
                return address


def same_text(ours: Iterable[str], theirs: Iterable[str]) -> bool:
    """Whether the lists are equal without asking anybody, but for how addresses are written."""
    return sorted(map(normal, ours)) == sorted(map(normal, theirs))


def normal(text: str) -> str:
    return str(_normal(parse_url(text)))


def _normal(url: URL) -> URL:
    """One way to write an address; host names know no case."""
    if url.is_unix:
        return url
    ip = _as_ip(url.host)
    host = str(ip) if ip else url.host.lower()
    return url._replace(netloc=_join(host, url.port))


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _as_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
