"""A member of the simulated cluster: its disk, and the process that runs on it now, if any."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from kvorum.api.health import HealthService
from kvorum.api.services import build_methods
from kvorum.config import ServerConfig, make, parse_urls
from kvorum.h2 import Method
from kvorum.server.bootstrap.start import bootstrap
from kvorum.server.cluster.peer_routes import peer_routes
from kvorum.server.server import Server
from kvorum.telemetry import Telemetry
from kvorum.types import MemberID
from sim.disk import Disk
from sim.http import SimHttp, Site
from sim.network import Network, SimTransport
from sim.process import Clock, Process
from sim.system import System
from sim.world import World

if TYPE_CHECKING:
    from kvorum.peer.interface import Host, Transport

Serving = Callable[["Member"], None]

PEER_PORT: Final = 2380
CLIENT_PORT: Final = 2379


def peer_url(number: int) -> str:
    return f"http://10.0.0.{number}:{PEER_PORT}"


class Member:
    """``number`` counts from 1 and is never used again. ``server`` is that of the running process;
    ``methods`` are there once it serves clients."""

    def __init__(
        self,
        world: World,
        system: System,
        network: Network,
        number: int,
        clock: Clock,
        settings: dict[str, Any],
    ) -> None:
        self.number = number
        self.name = f"m{number}"
        self.url = peer_url(number)
        self.disk = Disk()
        self.process: Process | None = None
        self.server: Server | None = None
        self.transport: SimTransport | None = None
        self.methods: dict[str, Method] = {}
        self.id: MemberID | None = None
        self.starts = 0
        self.initial: list[Member] = []
        self.joins = False
        self.http: SimHttp | None = None
        self.on_boot: Callable[[Member], None] = lambda member: None
        self.on_failure: Callable[[Member, BaseException], None] = lambda member, error: None
        self._world = world
        self._system = system
        self._network = network
        self._clock = clock
        self._settings = settings

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    @property
    def serves(self) -> bool:
        return self.alive and bool(self.methods)

    def start(self) -> None:
        """Start a process. What is on the disk decides; without anything there, it begins a cluster
        with the others of ``initial``, or ``joins`` that of them."""
        assert not self.alive, f"{self.name} runs already"
        self.starts += 1
        self.disk.failed = False
        config = self._config()
        process = Process(self._world, f"{self.name}.{self.starts}", self.disk, self._clock)
        self.process = process
        self.server, self.transport, self.methods = None, None, {}
        process.spawn(self._run(process, config))

    def _config(self) -> ServerConfig:
        cluster = ",".join(f"{member.name}={member.url}" for member in self.initial)
        client = parse_urls(f"http://10.0.0.{self.number}:{CLIENT_PORT}")
        peer = parse_urls(self.url)
        return make(
            name=self.name,
            data_dir="/data",
            initial_cluster=cluster,
            initial_cluster_state="existing" if self.joins else "new",
            listen_peer_urls=peer,
            initial_advertise_peer_urls=peer,
            listen_client_urls=client,
            advertise_client_urls=client,
            **self._settings,
        )

    async def _run(self, process: Process, config: ServerConfig) -> None:
        try:
            self.http = SimHttp(self._network, process)
            booted = await bootstrap(config, process.loop, self.http)  # type: ignore[arg-type]
            self.id = booted.member
            server = Server(
                config,
                Telemetry(),
                booted,
                make_transport=self._make_transport,
                chance=process.random,
                unix_time=process.wall_time,
                http=self.http,
            )
            self._network.sites[self.url] = Site(process, server.id, peer_routes(server))
            self.server = server
            server.failure.add_done_callback(lambda done: self.on_failure(self, done.result()))
            self.on_boot(self)
            server.start()
            await server.ready.wait()
            self.methods = build_methods(server, HealthService())
        except Exception as error:
            self.on_failure(self, error)

    def _make_transport(self, host: Host) -> Transport:
        assert self.process is not None
        assert self.id is not None
        self.transport = SimTransport(self._network, self.process, self._system, self.id, host)
        return self.transport

    def end(self, *, power_cut: bool) -> None:
        """End the process, at once."""
        assert self.process is not None
        self.process.end(power_cut=power_cut)
        self.methods = {}

    def __str__(self) -> str:
        return self.name
