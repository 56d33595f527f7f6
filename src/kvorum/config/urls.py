"""URLs of listeners and members, as etcd's flags take them."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

SCHEMES: Final = ("http", "https", "unix", "unixs")
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)([?#].*)?", re.DOTALL)
_HOST_PORT: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*):([^:]*)")


class URL(NamedTuple):
    """A parsed URL. `netloc` is ``host:port`` (of a unix socket: what stands before the path)."""

    scheme: str
    netloc: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def is_unix(self) -> bool:
        return self.scheme in ("unix", "unixs")

    @property
    def is_tls(self) -> bool:
        return self.scheme in ("https", "unixs")

    @property
    def host(self) -> str:
        """Without brackets; empty for a unix socket."""
        return "" if self.is_unix else self.netloc.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """0 for a unix socket, and where the port was left out: any free one."""
        return 0 if self.is_unix else int(self.netloc.rpartition(":")[2] or 0)

    @property
    def socket_path(self) -> str:
        """The file of a unix socket."""
        return self.netloc + self.path


def parse_url(text: str) -> URL:
    """Raises ValueError with etcd's text, or a plainer one where etcd has none."""
    text = text.strip()
    match = _URL.fullmatch(text)
    scheme = match.group(1).lower() if match else ""
    if match is None or scheme not in SCHEMES:
        raise ValueError(f"URL scheme must be http, https, unix, or unixs: {text}")
    netloc, path, rest = match.group(2) or "", match.group(3), match.group(4)
    if rest or "@" in netloc:
        raise ValueError(f"URL must be a plain address, without user, query or fragment: {text}")
    url = URL(scheme, netloc, path)
    _check_address(url, text)
    return url


def _check_address(url: URL, text: str) -> None:
    if url.is_unix:
        if not url.socket_path:
            raise ValueError(f"URL of a unix socket must name its file: {text}")
        return
    host_port = _HOST_PORT.fullmatch(url.netloc)
    if host_port is None:
        raise ValueError(f'URL address does not have the form "host:port": {text}')
    port = host_port.group(2)
    if port and not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise ValueError(f"URL port must be a number up to 65535: {text}")
    if url.path:
        raise ValueError(f"URL must not contain a path: {text}")


def parse_urls(text: str) -> tuple[URL, ...]:
    """A comma-joined list, without duplicates and sorted."""
    urls = {parse_url(part) for part in text.split(",")}
    return tuple(sorted(urls, key=str))


def join(urls: tuple[URL, ...]) -> str:
    return ",".join(map(str, urls))


def strings(urls: tuple[URL, ...]) -> list[str]:
    return [str(url) for url in urls]


def is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_foreign_ip(host: str) -> bool:
    """An address that other machines may know this one by."""
    if not is_ip(host):
        return False
    address = ipaddress.ip_address(host.partition("%")[0])
    return not (address.is_loopback or address.is_unspecified)


def parse_members(text: str) -> dict[str, tuple[URL, ...]]:
    """``name=url,name=url`` as name to sorted URLs; a name may come more than once.

    Raises ValueError for an entry without a URL or with a bad one.
    """
    found: dict[str, list[URL]] = {}
    for entry in filter(None, text.split(",")):
        name, _, url = entry.partition("=")
        found.setdefault(name, []).append(parse_url(url))
    return {name: tuple(sorted(urls, key=str)) for name, urls in found.items()}


def render_members(members: dict[str, tuple[URL, ...]]) -> str:
    return ",".join(sorted(f"{name}={url}" for name, urls in members.items() for url in urls))
