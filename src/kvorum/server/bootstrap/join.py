"""Becoming a member of a cluster that runs: it tells who we are.

Whoever added us there gave the cluster our peer URLs, by which it is found out which of its members
we are; everything else comes with the log.
"""

from __future__ import annotations

import asyncio
from typing import Final

from kvorum.config import ServerConfig
from kvorum.log import get_logger
from kvorum.membership import Member
from kvorum.membership.version import LOWEST, OWN, Version, parse_version
from kvorum.peer.http_client import HttpClient
from kvorum.server.bootstrap.booted import Identity
from kvorum.server.bootstrap.initial import InitialCluster, require_sound
from kvorum.server.bootstrap.peer_queries import (
    NoCluster,
    RunningCluster,
    ask_cluster,
    ask_cluster_version,
    ask_downgrade,
)
from kvorum.server.bootstrap.same_urls import UrlMatcher, quoted, same_text
from kvorum.server.errors import TOO_MANY_LEARNERS, BadInitialCluster, CannotJoin
from kvorum.types import MemberID

MEMBERS_TIMEOUT: Final = 10.0
"""Seconds for each member that is asked for the list."""

lg = get_logger()


async def join(
    config: ServerConfig, initial: InitialCluster, http: HttpClient, matcher: UrlMatcher
) -> Identity:
    """Which member of the running cluster we are.

    Raises:
        BadInitialCluster: the configuration cannot be that of a member.
        CannotJoin: the cluster cannot be asked, is another one than configured, or has a version
            that we do not speak.
    """
    require_sound(initial)
    if config.discovery_endpoints:
        raise BadInitialCluster(
            "discovery URL should not be set when joining existing initial cluster"
        )
    running, local = await _recognised(initial, http, matcher)
    others = [member for member in running.members if member.id != local]
    if not await _is_compatible(running, others, http, config.request_timeout):
        raise CannotJoin("incompatible with current running cluster")
    if sum(member.is_learner for member in running.members) > config.max_learners:
        raise CannotJoin(TOO_MANY_LEARNERS)
    return Identity(local, running.id, remotes=others)


async def _recognised(
    initial: InitialCluster, http: HttpClient, matcher: UrlMatcher
) -> tuple[RunningCluster, MemberID]:
    """The cluster as it is told by the first member that knows us, and who we are there.

    One that lags behind may not know us yet; and where the others need us for their quorum, it will
    not before we are there. (etcd leaves it at the first answer.) If none knows us, it is said of
    the first.
    """
    refused: CannotJoin | None = None
    urls = iter(initial.others_urls())
    while True:
        try:
            running = await ask_cluster(http, urls, timeout=MEMBERS_TIMEOUT)
        except NoCluster as error:
            what = CannotJoin(f"cannot fetch cluster info from peer urls: {error}")
            raise refused or what from None
        try:
            return running, await _find_local(initial, running, matcher)
        except CannotJoin as error:
            refused = refused or error


async def _find_local(
    initial: InitialCluster, running: RunningCluster, matcher: UrlMatcher
) -> MemberID:
    """Match the members of the cluster with those configured, by peer URLs: all or none."""
    place = f"error validating peerURLs {_show(running)}"
    if len(running.members) != len(initial.members):
        raise CannotJoin(f"{place}: member count is unequal")
    unmatched = {name: [str(url) for url in urls] for name, urls in initial.members.items()}
    local = None
    for member in running.members:
        name, why = await _match(member, unmatched, matcher)
        if not name:
            raise CannotJoin(
                f"{place}: PeerURLs: no match found for existing member ({member.id:x},"
                f" [{' '.join(member.peer_urls)}]), last resolver error ({why})"
            )
        del unmatched[name]
        if name == initial.name:
            local = member.id
    assert local is not None, (initial.name, running)
    return local


async def _match(
    member: Member, names: dict[str, list[str]], matcher: UrlMatcher
) -> tuple[str, str]:
    """The configured name of a member; or why the last of those that are left is not it."""
    for name, urls in names.items():  # nobody has to be asked for these
        if same_text(member.peer_urls, urls):
            return name, ""
    why = ""
    for name, urls in names.items():
        why = await matcher.difference(member.peer_urls, urls)
        if not why:
            return name, ""
    return "", why


async def _is_compatible(
    running: RunningCluster,
    others: list[Member],
    http: HttpClient,
    timeout: float,  # noqa: ASYNC109 - of each request
) -> bool:
    """Whether we speak the cluster's version: so say all members that can be asked, and that is
    one at least. (Another one may be down while we join.)"""
    versions = await asyncio.gather(
        *(ask_cluster_version(http, member, timeout=timeout) for member in others)
    )
    low, high = _allowed(
        _has_quorum(running, others) and await _is_going_down(http, others, timeout)
    )
    agrees = False
    for member, text in zip(others, versions, strict=True):
        version = parse_version(text) if text is not None else None
        if version is None:
            continue
        if not low <= version <= high:
            lg.warn(
                "cluster version of remote member is not compatible;"
                f" too {'low' if version < low else 'high'}",
                remote_member_id=f"{member.id:x}",
                remote_member_cluster_version=text,
                minimum_cluster_version_supported=str(low),
                maximum_cluster_version_supported=str(high),
            )
            return False
        agrees = True
    return agrees


def _allowed(going_down: bool) -> tuple[Version, Version]:
    """Lowest and highest. While a cluster is brought down, it is still one above its target, and
    its new members have to be of the target's version."""
    if going_down:
        above = Version(OWN.major, OWN.minor + 1)
        return above, above
    return LOWEST, OWN


def _has_quorum(running: RunningCluster, others: list[Member]) -> bool:
    """Whether the others are a cluster without us. Where we are added to a single member, they
    are not: it waits for us, and to ask it anything that needs a quorum would only cost time."""
    voters = sum(not member.is_learner for member in running.members)
    return sum(not member.is_learner for member in others) > voters // 2


async def _is_going_down(
    http: HttpClient,
    others: list[Member],
    timeout: float,  # noqa: ASYNC109 - of each request
) -> bool:
    for member in others:
        answer = await ask_downgrade(http, member, timeout=timeout)
        if answer is not None:  # it is a linearizable read there: one is enough
            return answer
    return False


def _show(running: RunningCluster) -> str:
    members = " ".join(
        f"{m.id:x}={m.name or '(not started)'} {quoted(m.peer_urls)}" for m in running.members
    )
    return f"{{ClusterID:{running.id:x} Members:[{members}]}}"
