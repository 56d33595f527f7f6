"""How a member starts: with a cluster that begins, with one that runs, or with its own data.

::

    the directory has a log       restart      as the log and the database say
    --initial-cluster-state=new   new_cluster  the members configured, or told by a discovery
    ...=existing                  join         what the running cluster says
"""

from __future__ import annotations

import asyncio

from kvorum.config import ServerConfig
from kvorum.log import get_logger
from kvorum.peer.http_client import HttpClient
from kvorum.server.bootstrap.begin import begin
from kvorum.server.bootstrap.booted import Booted, Identity, Places, log_is_missing
from kvorum.server.bootstrap.initial import parse_initial
from kvorum.server.bootstrap.join import join
from kvorum.server.bootstrap.names import Names, SystemNames
from kvorum.server.bootstrap.new_cluster import new_cluster
from kvorum.server.bootstrap.restart import restart
from kvorum.server.bootstrap.same_urls import UrlMatcher
from kvorum.server.goimport import GO_FILE_NAME
from kvorum.wal import exists

__all__ = ["Booted", "bootstrap"]

lg = get_logger()


async def bootstrap(
    config: ServerConfig,
    loop: asyncio.AbstractEventLoop,
    http: HttpClient,
    names: Names | None = None,
) -> Booted:
    """Open the data directory, and begin or join a cluster if it is empty.

    ``http`` asks other members. A start that is cut off, at any point, begins again the next time.

    Raises:
        BadDataDirectory, BadInitialCluster, CannotJoin, DiscoveryFailed: the member cannot run
            with this directory, this configuration, or this cluster.
        WALError, BackendError: a file cannot be opened, is damaged, or is in use.
    """
    places = Places.make(config)

    async def identify() -> Identity:
        return await _identify(config, http, names or SystemNames())

    if exists(places.wal):
        _warn_ignored(config)
        return await restart(config, loop, places, identify)
    etcds = places.snap / GO_FILE_NAME
    if etcds.exists():
        raise log_is_missing(etcds, places.wal)
    return begin(config, loop, places, await identify())


async def _identify(config: ServerConfig, http: HttpClient, names: Names) -> Identity:
    """Who a member without data is."""
    if config.is_new_cluster:
        return await new_cluster(config, http, names)
    text, token = config.initial_cluster, config.initial_cluster_token
    return await join(config, parse_initial(text, config.name, token), http, UrlMatcher(names))


def _warn_ignored(config: ServerConfig) -> None:
    if config.discovery_endpoints:
        lg.warn(
            "discovery token is ignored since cluster already initialized; valid logs are found",
            wal_dir=config.wal_path,
        )
