"""Who we are in a cluster that begins: the members come from the configuration, from DNS, or from
a discovery service."""

from __future__ import annotations

from typing import Final

from kvorum.config import ServerConfig
from kvorum.log import get_logger
from kvorum.peer.http_client import HttpClient
from kvorum.server.booted import Identity
from kvorum.server.errors import BadInitialCluster
from kvorum.server.initial import (
    InitialCluster,
    parse_initial,
    require_advertised,
    require_sound,
)
from kvorum.server.names import Names
from kvorum.server.peer_queries import NoCluster, ask_cluster
from kvorum.server.same_urls import UrlMatcher

MEMBERS_TIMEOUT: Final = 1.0
"""Seconds for each of the others, who mostly are not there yet."""

lg = get_logger()


async def new_cluster(config: ServerConfig, http: HttpClient, names: Names) -> Identity:
    """Raises BadInitialCluster, DiscoveryFailed."""
    initial = await _starting_members(config, names)
    require_sound(initial)
    await require_advertised(config, initial, UrlMatcher(names))
    await _require_not_begun(initial, http)
    return Identity(initial.own_id, initial.cluster_id, first=initial.first_members())


async def _starting_members(config: ServerConfig, names: Names) -> InitialCluster:
    return parse_initial(config.initial_cluster, config.name, config.initial_cluster_token)


async def _require_not_begun(initial: InitialCluster, http: HttpClient) -> None:
    """A member that lost its data must not begin again: its votes and entries counted already."""
    try:
        running = await ask_cluster(
            http, initial.others_urls(), timeout=MEMBERS_TIMEOUT, quiet=True
        )
    except NoCluster:
        return
    member = running.member(initial.own_id)
    if member is not None and member.client_urls:
        raise BadInitialCluster(f"member {member.id:x} has already been bootstrapped")
