"""grpc.health.v1.Health: whether the server, named by the empty string, can serve."""

from __future__ import annotations

from collections.abc import Callable

from kvorum.api.unary import one_request, unary
from kvorum.errors import Code
from kvorum.h2 import Call, Method
from kvorum.pb import healthpb


class HealthService:
    """Check, Watch and List over one status."""

    def __init__(self) -> None:
        self._serving = False
        self._watchers: dict[int, Callable[[], None]] = {}

    def methods(self) -> dict[str, Method]:
        prefix = "/grpc.health.v1.Health"
        return {
            f"{prefix}/Check": unary(healthpb.HealthCheckRequest, self.check),
            f"{prefix}/List": unary(healthpb.HealthListRequest, self.list),
            f"{prefix}/Watch": Method(self.watch, streaming=True),
        }

    def set_serving(self, serving: bool) -> None:
        """Change the status, and tell those who watch it."""
        if serving != self._serving:
            self._serving = serving
            for send in list(self._watchers.values()):
                send()

    def _status(self) -> healthpb.HealthCheckResponse:
        status = healthpb.HealthCheckResponse
        return status(status=status.SERVING if self._serving else status.NOT_SERVING)

    def check(self, call: Call, request: healthpb.HealthCheckRequest, message: bytes) -> None:
        if request.service:
            call.fail(Code.NOT_FOUND, "unknown service")
            return
        call.reply(self._status().SerializeToString())

    def list(self, call: Call, request: healthpb.HealthListRequest, message: bytes) -> None:
        response = healthpb.HealthListResponse()
        response.statuses[""].CopyFrom(self._status())
        call.reply(response.SerializeToString())

    def watch(self, call: Call) -> None:
        def start(request: healthpb.HealthCheckRequest) -> None:
            if request.service:
                unknown = healthpb.HealthCheckResponse.SERVICE_UNKNOWN
                call.send(healthpb.HealthCheckResponse(status=unknown).SerializeToString())
                return
            self._watchers[id(call)] = lambda: call.send(self._status().SerializeToString())
            self._watchers[id(call)]()

        one_request(call, healthpb.HealthCheckRequest, start)
        call.on_cancel = lambda: self._watchers.pop(id(call), None) and None
