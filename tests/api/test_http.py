"""HTTP on the client port: paths, methods, texts, the front, and sick servers."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kvorum import errors
from kvorum.api.http import AccessControl, HttpService, host_name
from kvorum.api.metrics import accepts_gzip
from kvorum.config import ServerConfig, make
from kvorum.h2.http import HttpRequest, HttpResponse
from kvorum.pb import etcdserverpb as pb
from kvorum.server.server import Server
from kvorum.telemetry import Telemetry

NO_SPACE = pb.AlarmMember(memberID=7, alarm=pb.NOSPACE)
CORRUPT = pb.AlarmMember(memberID=7, alarm=pb.CORRUPT)


@dataclass
class FakeServer:
    """A member whose health the test decides."""

    config: ServerConfig = field(default_factory=make)
    on: list[pb.AlarmMember] = field(default_factory=list)
    leader: int = 7
    learner: bool = False
    version: str = "3.7.0"
    storage_version: str = "3.7.0"
    id: int = 7
    read_error: errors.EtcdError | None = None
    consensus_error: str = ""
    reads_seen: int = 0
    members: dict[int, object] = field(default_factory=lambda: {7: None})
    is_leader = True
    term = 3
    committed = index = 12
    waiting: dict[int, object] = field(default_factory=dict)
    failed = slow = 0
    limit = 1 << 31

    def __post_init__(self) -> None:
        self.alarms = self.cluster = self.raft = self.reads = self.applier = self
        self.proposer = self.quota = self.backend = self
        self.store = SimpleNamespace(
            range_keys=self.range_keys, index={"a": 1}, rev=5, compact_rev=-1
        )

    def get(self, kind: int = 0) -> list[pb.AlarmMember]:
        return [alarm for alarm in self.on if kind in (0, alarm.alarm)]

    def is_learner(self) -> bool:
        return self.learner

    def range_keys(self, key: bytes, end: bytes, *, limit: int = 0, rev: int = 0) -> None:
        assert (key, end, limit) == (b"\0", b"", 1)
        if self.read_error is not None:
            raise self.read_error

    def read(self, run: Callable[[Any, Any], None], request: Any, caller: Any) -> None:
        self.reads_seen += 1
        if self.consensus_error:
            caller.fail(14, self.consensus_error)
        else:
            run(request, caller)

    def size(self) -> int:
        return 4096

    size_in_use = size


def request(
    target: str, method: str = "GET", *, secure: bool = False, **headers: str
) -> HttpRequest:
    path, _, query = target.partition("?")
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return HttpRequest(method, path, query, named, b"", "1.1", "127.0.0.1:5", secure)


def serve(server: FakeServer, sent: HttpRequest, *, metrics_listener: bool = False) -> HttpResponse:
    async def answer() -> HttpResponse:
        service = HttpService(cast(Server, server), Telemetry())
        handle = service.handle_metrics if metrics_listener else service.handle
        response = handle(sent)
        return await response if inspect.isawaitable(response) else response

    return asyncio.run(answer())


def get(target: str, server: FakeServer | None = None, **headers: str) -> HttpResponse:
    return serve(server or FakeServer(), request(target, **headers))


def text_of(response: HttpResponse) -> str:
    assert isinstance(response.body, bytes)
    return response.body.decode()


def header(response: HttpResponse, name: str) -> str | None:
    return next((value for key, value in response.headers if key.lower() == name), None)


class TestVersion:
    def test_of_a_cluster(self) -> None:
        response = get("/version")
        assert json.loads(text_of(response)) == {
            "etcdserver": "3.7.1",
            "etcdcluster": "3.7.0",
            "storage": "3.7.0",
        }
        assert header(response, "content-type") == "application/json"

    def test_before_it_is_known(self) -> None:
        versions = json.loads(text_of(get("/version", FakeServer(version="", storage_version=""))))
        assert (versions["etcdcluster"], versions["storage"]) == ("not_decided", "unknown")


HEALTH_CASES = [
    ("/health", FakeServer(), ""),
    ("/health?serializable=true", FakeServer(leader=0, consensus_error="x"), ""),
    ("/health", FakeServer(leader=0), "RAFT NO LEADER"),
    ("/health", FakeServer(on=[NO_SPACE]), "ALARM NOSPACE"),
    ("/health", FakeServer(on=[CORRUPT]), "ALARM CORRUPT"),
    ("/health?serializable=true", FakeServer(on=[CORRUPT]), "ALARM CORRUPT"),
    ("/health?exclude=NOSPACE", FakeServer(on=[NO_SPACE]), ""),
    ("/health?exclude=NOSPACE&exclude=CORRUPT", FakeServer(on=[NO_SPACE, CORRUPT]), ""),
    ("/health?exclude=NOSPACE&exclude=", FakeServer(on=[NO_SPACE, CORRUPT]), "ALARM CORRUPT"),
    ("/health?exclude=NOSPACE", FakeServer(leader=0), "RAFT NO LEADER"),
    (
        "/health",
        FakeServer(consensus_error="etcdserver: request timed out"),
        "RANGE ERROR:etcdserver: request timed out",
    ),
    (
        "/health?serializable=true",
        FakeServer(read_error=errors.Corrupt()),
        "RANGE ERROR:etcdserver: corrupt cluster",
    ),
    ("/health?serializable=false", FakeServer(leader=0), "RAFT NO LEADER"),
]


@pytest.mark.parametrize(("target", "server", "reason"), HEALTH_CASES)
def test_health(target: str, server: FakeServer, reason: str) -> None:
    response = get(target, server)
    assert response.status == (503 if reason else 200)
    healthy = "false" if reason else "true"
    end = "\n" if reason else ""
    assert text_of(response) == f'{{"health":"{healthy}","reason":"{reason}"}}{end}'
    assert header(response, "content-type") == "text/plain; charset=utf-8"
    assert header(response, "x-content-type-options") == ("nosniff" if reason else None)


def test_health_reads_through_consensus_unless_told_otherwise() -> None:
    server = FakeServer()
    get("/health?serializable=true", server)
    assert server.reads_seen == 0
    get("/health", server)
    assert server.reads_seen == 1


READYZ = ("data_corruption", "serializable_read", "linearizable_read", "non_learner")


@pytest.mark.parametrize(
    "target",
    ["/livez", "/readyz", "/livez/serializable_read", *(f"/readyz/{name}" for name in READYZ)],
)
def test_checks_of_a_good_member(target: str) -> None:
    response = get(target)
    assert (response.status, text_of(response)) == (200, "ok\n")
    assert header(response, "content-type") == "text/plain; charset=utf-8"
    assert header(response, "x-content-type-options") == "nosniff"


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("/livez?verbose", ["serializable_read"]),
        ("/readyz?verbose=false", list(READYZ)),
        ("/readyz/non_learner?verbose", ["non_learner"]),
        ("/readyz?verbose&exclude=non_learner&exclude=nope", list(READYZ[:3])),
        ("/readyz/non_learner?verbose&exclude=non_learner", ["non_learner"]),
        ("/livez?verbose&exclude=serializable_read", []),
    ],
)
def test_verbose_lists_the_checks(target: str, names: list[str]) -> None:
    assert text_of(get(target)) == "".join(f"[+]{name} ok\n" for name in names) + "ok\n"


@pytest.mark.parametrize(
    ("server", "name", "why"),
    [
        (FakeServer(on=[CORRUPT]), "data_corruption", "alarm activated: CORRUPT"),
        (FakeServer(learner=True), "non_learner", "not supported for learner"),
        (FakeServer(consensus_error="no quorum"), "linearizable_read", "no quorum"),
    ],
)
def test_checks_that_fail(server: FakeServer, name: str, why: str) -> None:
    whole = get("/readyz", server)
    lines = text_of(whole).splitlines()
    assert whole.status == 503
    assert f"[-]{name} failed: {why}" in lines
    assert sum(line.startswith("[+]") for line in lines) == 3
    assert "ok" not in lines
    assert get(f"/readyz?exclude={name}", server).status == 200
    assert get(f"/readyz/{name}", server).status == 503
    assert get("/livez", server).status == 200


def test_a_space_alarm_does_not_make_a_member_unready() -> None:
    assert get("/readyz", FakeServer(on=[NO_SPACE])).status == 200


def test_results_are_counted() -> None:
    async def ask_twice() -> Telemetry:
        telemetry = Telemetry()
        server = FakeServer()
        service = HttpService(cast(Server, server), telemetry)
        for learner in (False, True):
            server.learner = learner
            response = service.handle(request("/readyz/non_learner"))
            assert inspect.isawaitable(response)
            await response
        health = service.handle(request("/health"))
        assert inspect.isawaitable(health)
        await health
        return telemetry

    metrics = asyncio.run(ask_twice()).health
    checks = {labels: child.value for labels, child in metrics.checks.children()}
    assert checks == {
        ("readyz", "non_learner", "success"): 1,
        ("readyz", "non_learner", "error"): 1,
    }
    assert metrics.last.with_labels("readyz", "non_learner").value == 0
    assert (metrics.successes.value, metrics.failures.value) == (1, 0)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz/non_learner", "/version"])
def test_other_methods(path: str, method: str) -> None:
    response = serve(FakeServer(), request(path, method))
    assert (response.status, text_of(response)) == (405, "Method Not Allowed\n")
    assert header(response, "allow") == "GET"


@pytest.mark.parametrize(
    "path",
    ["/", "/nope", "/v2/keys", "/config/local/log", "/health/", "/debug/pprof/", "/v3/kv/put"],
)
def test_unknown_paths(path: str) -> None:
    response = get(path)
    assert (response.status, text_of(response)) == (404, "404 page not found\n")
    assert header(response, "x-content-type-options") == "nosniff"


class TestFront:
    def test_all_origins(self) -> None:
        response = get("/version", origin="http://a.example:80")
        assert header(response, "access-control-allow-origin") == "*"
        methods = header(response, "access-control-allow-methods")
        assert methods == "POST, GET, OPTIONS, PUT, DELETE"
        allowed = header(response, "access-control-allow-headers")
        assert allowed == "accept, content-type, authorization"

    @pytest.mark.parametrize("target", ["/version", "/health", "/nope"])
    def test_some_origins(self, target: str) -> None:
        server = FakeServer(config=make(cors=("http://a.example:80",)))
        known = get(target, server, origin="http://a.example:80")
        assert header(known, "access-control-allow-origin") == "http://a.example:80"
        for origin in ("http://b.example:80", ""):
            other = get(target, server, origin=origin)
            assert header(other, "access-control-allow-origin") is None

    def test_preflight(self) -> None:
        response = serve(FakeServer(), request("/v3/any/path", "OPTIONS"))
        assert (response.status, text_of(response)) == (200, "")
        assert header(response, "access-control-allow-origin") == "*"

    @pytest.mark.parametrize("host", ["a.example", "a.example:2379"])
    def test_known_host(self, host: str) -> None:
        server = FakeServer(config=make(host_whitelist=("a.example",)))
        assert get("/version", server, host=host).status == 200

    @pytest.mark.parametrize("host", ["b.example:2379", "127.0.0.1:2379", ""])
    def test_other_host(self, host: str) -> None:
        server = FakeServer(config=make(host_whitelist=("a.example",)))
        response = get("/version", server, host=host)
        assert response.status == 421
        assert "CVE-2018-5702" in text_of(response)
        assert header(response, "access-control-allow-origin") is None

    def test_hosts_do_not_matter_over_tls(self) -> None:
        server = FakeServer(config=make(host_whitelist=("a.example",)))
        sent = request("/version", secure=True, host="b.example")
        assert serve(server, sent).status == 200

    @pytest.mark.parametrize(
        ("host", "name"),
        [
            ("localhost:2379", "localhost"),
            ("localhost", "localhost"),
            ("[::1]:2379", "::1"),
            ("[::1]", "[::1]"),
            ("::1", "::1"),
            ("localhost:::", "localhost:::"),
            ("", ""),
        ],
    )
    def test_names_of_hosts(self, host: str, name: str) -> None:
        assert host_name(host) == name

    @pytest.mark.parametrize("names", [(), ("*",), ("",), ("a", "*")])
    def test_lists_that_let_all_in(self, names: tuple[str, ...]) -> None:
        access = AccessControl(names, names)
        assert access.takes_host("x")
        assert ("Access-Control-Allow-Origin", "*") in access.cors_headers("y")


class TestMetricsListener:
    @pytest.mark.parametrize("path", ["/metrics", "/health", "/livez", "/readyz/non_learner"])
    def test_serves(self, path: str) -> None:
        server = FakeServer(config=make(host_whitelist=("a.example",)))
        response = serve(server, request(path, host="b.example"), metrics_listener=True)
        assert response.status == 200
        assert header(response, "access-control-allow-origin") is None

    @pytest.mark.parametrize("path", ["/version", "/debug/vars", "/v3/kv/put"])
    def test_does_not_serve(self, path: str) -> None:
        assert serve(FakeServer(), request(path), metrics_listener=True).status == 404


class TestMount:
    @pytest.mark.parametrize(
        ("path", "seen"),
        [("/v3/kv/put", "/v3/kv/put"), ("/v3beta/kv/put", "/v3/kv/put"), ("/v3/", "/v3/")],
    )
    def test_a_handler_below_a_prefix(self, path: str, seen: str) -> None:
        service = HttpService(cast(Server, FakeServer()), Telemetry())
        service.mount("/v3/", lambda got: HttpResponse(200, got.path.encode()))
        response = service.handle(request(path, "POST"))
        assert isinstance(response, HttpResponse)
        assert text_of(response) == seen
        assert header(response, "access-control-allow-origin") == "*"


class TestDebug:
    def test_variables(self) -> None:
        response = get("/debug/vars")
        shown = json.loads(text_of(response))
        assert shown.keys() == {"cmdline", "file_descriptor_limit", "memstats", "raft.status"}
        assert shown["raft.status"] == {
            "id": "7",
            "term": 3,
            "commit": 12,
            "lead": "7",
            "raftState": "StateLeader",
            "applied": 12,
        }
        assert header(response, "content-type") == "application/json; charset=utf-8"

    @pytest.mark.parametrize("config", [make(enable_pprof=True), make(log_level="debug")])
    def test_profiles_when_switched_on(self, config: ServerConfig) -> None:
        server = FakeServer(config=config)
        moved = get("/debug/pprof", server)
        assert (moved.status, header(moved, "location")) == (307, "/debug/pprof/")
        assert "goroutine" in text_of(get("/debug/pprof/", server))
        assert "thread MainThread:" in text_of(get("/debug/pprof/goroutine", server))
        assert text_of(get("/debug/pprof/cmdline", server))
        assert get("/debug/pprof/profile?seconds=0", server).status == 400
        assert get("/debug/pprof/profile?seconds=x", server).status == 400

    def test_profile_of_the_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waited = []

        async def instead(seconds: float) -> None:
            waited.append(seconds)

        monkeypatch.setattr("kvorum.api.debug.asyncio.sleep", instead)
        response = get("/debug/pprof/profile?seconds=5", FakeServer(config=make(enable_pprof=True)))
        assert waited == [5]
        assert "function calls" in text_of(response)


def test_metrics_are_compressed_when_asked_for() -> None:
    plain = get("/metrics")
    packed = get("/metrics", accept_encoding="gzip, deflate")
    assert header(plain, "content-encoding") is None
    assert header(packed, "content-encoding") == "gzip"
    assert isinstance(packed.body, bytes)
    assert b"etcd_server_has_leader 1\n" in gzip.decompress(packed.body)
    expected = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
    assert header(plain, "content-type") == header(packed, "content-type") == expected


@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_metrics_do_not_look_at_the_method(method: str) -> None:
    assert serve(FakeServer(), request("/metrics", method)).status == 200


@pytest.mark.parametrize(
    ("accepted", "yes"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
        ("identity", False),
        ("", False),
        ("xgzip", False),
    ],
)
def test_who_takes_gzip(accepted: str, yes: bool) -> None:
    assert accepts_gzip(accepted) is yes


def test_too_many_parameters_are_none() -> None:
    assert get("/health?" + "&".join(["exclude=NOSPACE"] * 200)).status == 200
