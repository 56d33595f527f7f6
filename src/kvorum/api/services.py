"""All gRPC services of a member, by the paths of their methods."""

from __future__ import annotations

from kvorum.api.cluster import ClusterService
from kvorum.api.health import HealthService
from kvorum.api.kv import KVService
from kvorum.api.lease import LeaseService
from kvorum.api.maintenance import MaintenanceService
from kvorum.api.snapshot import SnapshotService
from kvorum.api.watch import WatchService
from kvorum.h2 import Method
from kvorum.server.server import Server


def build_methods(server: Server, health: HealthService) -> dict[str, Method]:
    """Every method that is served; a path that is missing is answered with UNIMPLEMENTED."""
    methods: dict[str, Method] = {}
    for service in (
        KVService(server),
        WatchService(server),
        LeaseService(server),
        ClusterService(server),
        MaintenanceService(server),
        SnapshotService(server),
        health,
    ):
        methods.update(service.methods())
    return methods
