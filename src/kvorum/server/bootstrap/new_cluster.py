"""Who we are in a cluster that begins: the members come from the configuration, from DNS, or from
a discovery service."""

from __future__ import annotations

from typing import Final

from kvorum.config import ServerConfig
from kvorum.config.urls import parse_members
from kvorum.log import get_logger
from kvorum.peer.http_client import HttpClient
from kvorum.server.bootstrap.booted import Identity
from kvorum.server.bootstrap.discovery_srv import ask_dns
from kvorum.server.bootstrap.discovery_v3 import join_discovery
from kvorum.server.bootstrap.initial import (
    InitialCluster,
    has_duplicate_url,
    parse_initial,
    require_advertised,
    require_sound,
)
from kvorum.server.bootstrap.names import Names
from kvorum.server.bootstrap.peer_queries import NoCluster, ask_cluster
from kvorum.server.bootstrap.same_urls import UrlMatcher
from kvorum.server.errors import BadInitialCluster, DiscoveryFailed

MEMBERS_TIMEOUT: Final = 1.0
"""Seconds for each of the others, who mostly are not there yet."""

lg = get_logger()


async def new_cluster(config: ServerConfig, http: HttpClient, names: Names) -> Identity:
    """Raises BadInitialCluster, DiscoveryFailed."""
    initial = await _configured(config, names)
    require_sound(initial)
    await require_advertised(config, initial, UrlMatcher(names))
    await _require_not_begun(initial, http)
    if config.discovery_endpoints:
        initial = await _discovered(config, initial)
    return Identity(initial.own_id, initial.cluster_id, first=initial.first_members())


async def _configured(config: ServerConfig, names: Names) -> InitialCluster:
    """With a discovery service, nobody but ourselves is known yet, and its token takes the place of
    the cluster's."""
    if config.discovery_endpoints:
        own = {config.name: config.initial_advertise_peer_urls}
        return InitialCluster(config.name, own, config.discovery_token)
    text = await ask_dns(config, names) if config.discovery_srv else config.initial_cluster
    return parse_initial(text, config.name, config.initial_cluster_token)


async def _discovered(config: ServerConfig, alone: InitialCluster) -> InitialCluster:
    lg.info("Bootstrapping cluster using v3 discovery.")
    text = await join_discovery(config, alone.own_id, str(alone))
    try:
        found = InitialCluster(config.name, parse_members(text), config.discovery_token)
    except ValueError:
        raise DiscoveryFailed(
            "failed to join discovery cluster (discovery: invalid peer URL)"
        ) from None
    if has_duplicate_url(found.members):
        raise BadInitialCluster(f"discovery cluster {found} has duplicate url")
    if found.members.get(config.name) != alone.members[config.name]:
        raise BadInitialCluster(
            f'discovery cluster {found} has several members of the name "{config.name}":'
            " give each its own --name"
        )
    return found


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
