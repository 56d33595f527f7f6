"""The event loop of a member's process: start it, wait for a signal or its death, stop it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from typing import Final

import uvloop

from kvorum import log
from kvorum.cli import process
from kvorum.config import ServerConfig
from kvorum.config.server import cluster_of_one
from kvorum.config.urls import join
from kvorum.embed import Member
from kvorum.server.errors import BadInitialCluster, DiscoveryFailed, MemberRemoved, StartError

DEFAULT_PEER_URL: Final = "http://localhost:2380"


class StartFailed(Exception):
    """The member could not start; the cause says why."""


class Died(Exception):
    """A member that ran cannot go on; the cause says why."""


def run(config: ServerConfig) -> int:
    """Serve until a signal comes (then the process ends by it), or return the exit code: 0 of a
    member that was removed from its cluster, else 1."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            number = runner.run(_serve(config))
        except StartFailed as failure:
            return _report_failed_start(config, failure)
        except Died as death:
            _report_death(death)
    return 0 if number is None else process.end_by(number)


async def _serve(config: ServerConfig) -> signal.Signals | None:
    """The signal that ended it; None if it was removed."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(process.loop_failed)
    member = Member(config)
    try:
        await member.start()
    except MemberRemoved:
        return None
    except Exception as error:
        raise StartFailed from error
    gc.freeze()  # the index of a large store: walking it takes the collector 83 ms a million keys
    signals = _watch_signals(loop)
    process.notify_init_daemon()
    died = asyncio.ensure_future(member.wait_fatal())
    await asyncio.wait((signals, died), return_when=asyncio.FIRST_COMPLETED)
    if not signals.done():
        cause = _cause(died)
        if not isinstance(cause, MemberRemoved):
            raise Died from cause
        await member.stop()
        return None
    died.cancel()
    number = signals.result()
    name = process.SIGNAL_NAMES[number]
    log.get_logger().info("received signal; shutting down", signal=name)
    await member.stop()
    return number


def _cause(died: asyncio.Future[BaseException]) -> BaseException:
    return died.exception() or died.result()


def _watch_signals(loop: asyncio.AbstractEventLoop) -> asyncio.Future[signal.Signals]:
    """Resolves to the first signal to stop; a second one ends the process at once."""
    first: asyncio.Future[signal.Signals] = loop.create_future()

    def arrived(number: signal.Signals) -> None:
        if first.done():
            process.end_by(number)
            os._exit(0)  # only process 1 gets here
        first.set_result(number)

    for number in process.STOP_SIGNALS:
        loop.add_signal_handler(number, arrived, number)
    return first


def _report_failed_start(config: ServerConfig, failure: StartFailed) -> int:
    lg = log.get_logger()
    cause = failure.__cause__
    assert cause is not None
    fields: dict[str, object] = {"error": cause}
    if not isinstance(cause, StartError | OSError):
        fields["stacktrace"] = log.exception_stack(cause)
    if isinstance(cause, BadInitialCluster):
        _hint(config)
    if isinstance(cause, DiscoveryFailed):
        _hint_at_token(config, cause)
    lg.fatal("failed to start", **fields)


def _hint(config: ServerConfig) -> None:
    """What is mostly wrong when the starting members do not fit together."""
    lg = log.get_logger()
    own = cluster_of_one(config.name, config.initial_advertise_peer_urls)
    if config.initial_cluster == own:
        lg.warn("forgot to set --initial-cluster?")
    if join(config.initial_advertise_peer_urls) == DEFAULT_PEER_URL:
        lg.warn("forgot to set --initial-advertise-peer-urls?")


def _hint_at_token(config: ServerConfig, cause: DiscoveryFailed) -> None:
    lg = log.get_logger()
    lg.warn(
        "failed to bootstrap; discovery token was already used",
        discovery_token=config.discovery_token,
        discovery_endpoints=list(config.discovery_endpoints),
        error=cause,
    )
    lg.warn("do not reuse discovery token; generate a new one to bootstrap a cluster")


def _report_death(death: Died) -> None:
    """One line, and out: whatever broke (mostly the disk), nothing more may be written, and no
    thread that hangs in the kernel may hold the exit up."""
    cause = death.__cause__
    assert cause is not None
    try:
        log.get_logger().fatal("member died", error=cause, stacktrace=log.exception_stack(cause))
    finally:
        os._exit(1)
