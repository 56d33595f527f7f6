"""Names into addresses, and services into hosts, as the host's own configuration has it."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver


class LookupFailed(OSError):
    """A name that cannot be looked up; the text begins with ``lookup <name>``, as in etcd."""


class Service(NamedTuple):
    """Where a service is to be found, by one SRV record; ``target`` ends with a dot."""

    target: str
    port: int


class Names(Protocol):
    """What is asked of DNS."""

    async def address(self, host: str) -> str:
        """The first address of a host. Raises OSError."""

    async def services(self, service: str, domain: str) -> list[Service]:
        """The SRV records of ``_<service>._tcp.<domain>``, best first. Raises OSError."""


class SystemNames:
    """Hosts are looked up by the system (so that /etc/hosts counts), services by dnspython with the
    name servers of /etc/resolv.conf."""

    def __init__(self, resolver: Resolver | None = None) -> None:
        self._resolver = resolver

    async def address(self, host: str) -> str:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host.rstrip("."), None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise LookupFailed(f"lookup {host}: {error.strerror or error}") from error
        return str(found[0][4][0])

    async def services(self, service: str, domain: str) -> list[Service]:
        # Loaded when it is needed: it takes longer than all the rest of a start.
        import dns.asyncresolver
        import dns.exception
        import dns.resolver

        name = f"_{service}._tcp.{domain}"
        try:
            resolver = self._resolver or dns.asyncresolver.Resolver()
            answer = await resolver.resolve(name, "SRV", search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer) as error:
            raise LookupFailed(f"lookup {name}: no such host") from error
        except dns.exception.DNSException as error:
            raise LookupFailed(f"lookup {name}: {error}") from error
        records = sorted((r.priority, -r.weight, r.target.to_text(), r.port) for r in answer)
        return [Service(target, port) for _, _, target, port in records]
