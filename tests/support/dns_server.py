"""A name server on the loopback address, for tests: answers from a table, over UDP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from kvorum.config.urls import is_ip
from kvorum.server.bootstrap.names import LookupFailed, SystemNames

Records = Mapping[tuple[str, str], list[str]]
"""``("_etcd-server._tcp.example.", "SRV")`` to texts such as ``0 0 2380 a.example.``"""


class _Server(asyncio.DatagramProtocol):
    def __init__(self, records: Records) -> None:
        self._records = records
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert self._transport is not None
        self._transport.sendto(self._answer(dns.message.from_wire(data)).to_wire(), addr)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA | dns.flags.RA
        (question,) = query.question
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        found = self._records.get((name, kind))
        if found is not None:
            response.answer.append(dns.rrset.from_text(name, 60, "IN", kind, *found))
        elif all(known != name for known, _ in self._records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response


class ServedNames(SystemNames):
    """Everything is asked of one server, hosts too."""

    def __init__(self, port: int) -> None:
        self._asking = dns.asyncresolver.Resolver(configure=False)
        self._asking.nameservers = ["127.0.0.1"]
        self._asking.port = port
        self._asking.lifetime = 5.0
        super().__init__(self._asking)

    async def address(self, host: str) -> str:
        if is_ip(host):
            return host
        try:
            answer = await self._asking.resolve(host, "A", search=False)
        except dns.exception.DNSException as error:
            raise LookupFailed(f"lookup {host}: {error}") from error
        return str(answer[0].address)


@asynccontextmanager
async def name_server(records: Records) -> AsyncIterator[ServedNames]:
    """Serves ``records``; yields what asks it."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Server(records), local_addr=("127.0.0.1", 0)
    )
    try:
        yield ServedNames(transport.get_extra_info("sockname")[1])
    finally:
        transport.close()
