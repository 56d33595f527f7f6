"""The members of a new cluster, told by DNS (``--discovery-srv``).

Every SRV record of ``_etcd-server-ssl._tcp`` and ``_etcd-server._tcp`` is a member. Records carry
no names of members: ours gets our own name, the others' are numbers.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from kvorum.config import ServerConfig
from kvorum.config.urls import URL, strings
from kvorum.log import get_logger
from kvorum.server.bootstrap.names import Names, Service
from kvorum.server.errors import BadInitialCluster

lg = get_logger()


class _Kind(NamedTuple):
    scheme: str
    service: str


def _kinds(config: ServerConfig) -> tuple[_Kind, _Kind]:
    suffix = f"-{config.discovery_srv_name}" if config.discovery_srv_name else ""
    return _Kind("https", f"etcd-server-ssl{suffix}"), _Kind("http", f"etcd-server{suffix}")


async def ask_dns(config: ServerConfig, names: Names) -> str:
    """The members as ``name=url,name=url``.

    Raises:
        BadInitialCluster: there are no usable records, or none of them is ours.
    """
    search = _Search(config, names)
    try:
        await search.resolve_own()
    except OSError as error:
        raise BadInitialCluster(f"error setting up initial cluster: {error}") from None
    problems = []
    for kind in _kinds(config):
        problem = await search.add(kind)
        if problem:
            problems.append(problem)
    if problems:
        lg.warn("failed to resolve during SRV discovery", error="; ".join(problems))
    if not search.found:
        raise BadInitialCluster(f"error setting up initial cluster: {'; '.join(problems)}")
    for member in search.found:
        lg.info("got bootstrap from DNS for etcd-server", node=member)
    if not search.found_own:
        raise BadInitialCluster(
            "error setting up initial cluster: cannot find local etcd member"
            f' "{config.name}" in SRV records'
        )
    return ",".join(search.found)


class _Search:
    """Gathers members from records of both kinds."""

    def __init__(self, config: ServerConfig, names: Names) -> None:
        self.found: list[str] = []
        self.found_own = False
        self._config = config
        self._names = names
        self._numbers = itertools.count()
        self._own: dict[tuple[str, int], URL] = {}

    async def add(self, kind: _Kind) -> str:
        """Add the members of one kind. Why there are none, if so."""
        config = self._config
        found: list[str] = []
        problem = ""
        try:
            records = await self._names.services(kind.service, config.discovery_srv)
        except OSError as error:
            problem = str(error)
        else:
            found, problem = await self._members(kind, records)
        self.found += found
        lg.info(
            f"get cluster for {kind.service} SRV",
            service_scheme=kind.scheme,
            service_name=kind.service,
            server_name=config.name,
            discovery_srv=config.discovery_srv,
            advertise_peer_urls=strings(config.initial_advertise_peer_urls),
            found_cluster=found,
            error=problem or None,
        )
        if found:
            return ""
        return f"error querying DNS SRV records for _{kind.service} {problem or 'no records'}"

    async def resolve_own(self) -> None:
        """Our own addresses, by which our record is known. Raises OSError."""
        for url in self._config.initial_advertise_peer_urls:
            if not url.is_unix:
                self._own[await self._names.address(url.host), url.port] = url

    async def _members(self, kind: _Kind, records: list[Service]) -> tuple[list[str], str]:
        """Members, and the last thing that was wrong with a record."""
        found = []
        problem = ""
        for record in records:
            try:
                address = await self._names.address(record.target)
            except OSError as error:
                problem = str(error)
                continue
            url = f"{kind.scheme}://{record.target.rstrip('.')}:{record.port}"
            own = self._own.get((address, record.port))
            if own is not None and own.scheme != kind.scheme:
                problem = (
                    f"bootstrap at {url} from DNS for {kind.service} has scheme mismatch with"
                    f" expected peer {own}"
                )
                continue
            name = str(next(self._numbers)) if own is None else self._config.name
            self.found_own = self.found_own or own is not None
            found.append(f"{name}={url}")
        return found, problem
