"""Where settings come from: flags, variables, file; which wins; what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvorum import config
from kvorum.config import ConfigError, FeatureGates, FlagError, Resolved, ServerConfig, load, make
from kvorum.config.resolve import default_host


def resolved(args: list[str], environment: dict[str, str] | None = None) -> Resolved:
    found = load(args, environment or {})
    assert isinstance(found, Resolved)
    return found


def settings(*args: str, **environment: str) -> ServerConfig:
    return resolved(list(args), environment).config


def messages(found: Resolved) -> list[str]:
    return [notice.msg for notice in found.notices]


def from_file(tmp_path: Path, text: str, *args: str) -> Resolved:
    path = tmp_path / "kvorum.yaml"
    path.write_text(text)
    return resolved([f"--config-file={path}", *args])


class TestEnvironment:
    def test_sets_what_no_flag_sets(self) -> None:
        found = resolved(["--name=a"], {"ETCD_MAX_WALS": "9", "PATH": "/bin"})
        assert (found.config.name, found.config.max_wals) == ("a", 9)
        assert found.config.explicit == {"name", "max-wals"}
        assert "recognized and used environment variable" in messages(found)

    def test_beside_its_flag_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"conflicting environment variable.*ETCD_NAME"):
            load(["--name=a"], {"ETCD_NAME": "a"})

    def test_empty_is_as_good_as_none(self) -> None:
        assert settings(ETCD_NAME="").name == "default"

    @pytest.mark.parametrize("variable", ["ETCD_NOPE", "ETCD_UNSUPPORTED_ARCH"])
    def test_unknown_only_warns(self, variable: str) -> None:
        found = resolved([], {variable: "x"})
        assert ("unrecognized environment variable", {"environment_variable": f"{variable}=x"}) in [
            (notice.msg, notice.fields) for notice in found.notices
        ]

    def test_version_is_no_setting(self) -> None:
        assert "cannot set special environment variable" in messages(
            resolved([], {"ETCD_VERSION": "3.7"})
        )

    def test_others_are_not_looked_at(self) -> None:
        assert messages(resolved([], {"KVORUM_NAME": "x", "NAME": "y"})) == messages(resolved([]))


class TestFile:
    def test_makes_flags_and_variables_forgotten(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("name: of-the-file\n")
        found = resolved(["--name=of-the-flag", f"--config-file={path}"], {"ETCD_MAX_WALS": "9"})
        assert (found.config.name, found.config.max_wals) == ("of-the-file", 5)
        assert found.notices[0].msg.startswith("loaded server configuration")
        assert found.config.config_file == str(path)

    def test_may_be_named_by_a_variable(self, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("name: f\n")
        assert settings(ETCD_CONFIG_FILE=str(tmp_path / "c.yaml")).name == "f"

    def test_reads_every_kind(self, tmp_path: Path) -> None:
        text = """
            NAME: m1
            initial-cluster: m1=http://localhost:2380
            snapshot-count: 77
            pre-vote: false
            corrupt-check-time: 600000000000
            listen-client-urls: http://127.0.0.1:1,http://127.0.0.1:2
            log-outputs: [stdout, /tmp/x.log]
            cors: http://a.example:80
            host-whitelist: b.example,a.example
            feature-gates: AllAlpha=true
            auto-compaction-retention: 5
            socket-options: {reuse-port: true}
            client-transport-security:
              allowed-cn: [one, two]
            discovery-config:
              client: {dial-timeout: 3000000000, auth: {username: u}}
            wal-dir: null
            unknown-key: 5
            client-transport-security-x: {a: 1}
        """
        found = from_file(tmp_path, text)
        made = found.config
        assert (made.name, made.snapshot_count, made.pre_vote) == ("m1", 77, False)
        assert made.corrupt_check_time == 600.0
        assert [url.port for url in made.listen_client_urls] == [1, 2]
        assert made.log_outputs == ("/tmp/x.log", "stdout")
        assert made.cors == ("http://a.example:80",)
        assert made.host_whitelist == ("a.example", "b.example")
        assert made.feature_gates.enabled("LeaseCheckpoint")
        assert made.auto_compaction_retention == "5"
        assert made.socket_reuse_port
        assert made.client_cert_allowed_cn == ("one", "two")
        assert (made.discovery_dial_timeout, made.discovery_user) == (3.0, "u")
        assert made.wal_dir == ""
        ignored = [n.fields["key"] for n in found.notices if n.msg.startswith("ignoring unknown")]
        assert ignored == ["unknown-key", "client-transport-security-x"]

    def test_keeps_the_default_advertised_address(self, tmp_path: Path) -> None:
        made = from_file(tmp_path, "listen-client-urls: http://127.0.0.1:9\n").config
        assert str(made.advertise_client_urls[0]) == "http://localhost:2379"

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("corrupt-check-time: 10m", "corrupt-check-time: a duration .* integer of nanoseconds"),
            ("snapshot-count: '77'", "snapshot-count: a whole number is wanted"),
            ("snapshot-count: -1", "out of range"),
            ("pre-vote: 'yes'", "pre-vote: true or false is wanted"),
            ("name: [a]", "name: a text is wanted"),
            ("log-outputs: stdout", "log-outputs: a list of texts is wanted"),
            ("listen-client-urls: localhost", "URL scheme must be"),
            ("initial-cluster-state: old", "initial-cluster-state: invalid value"),
            ("peer-transport-security: 5", "invalid peer-transport-security"),
            ("- a\n- b", "must hold keys and values"),
            ("a: [", "error converting YAML"),
            ("heartbeat-interval: 0", "--heartbeat-interval must be >0"),
        ],
    )
    def test_refuses(self, tmp_path: Path, text: str, error: str) -> None:
        with pytest.raises(ConfigError, match=error):
            from_file(tmp_path, text)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"open .*: no such file or directory"):
            load([f"--config-file={tmp_path}/none.yaml"], {})

    def test_too_large(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="larger than"):
            from_file(tmp_path, "#" * (1 << 20) + "#")

    def test_empty(self, tmp_path: Path) -> None:
        assert from_file(tmp_path, "").config.name == "default"


class TestWhatSettingsComeTo:
    @pytest.mark.parametrize(
        ("attribute", "value"),
        [
            ("data_dir", "default.etcd"),
            ("backend_batch_interval", 0.1),
            ("backend_batch_limit", 10000),
            ("backend_bbolt_freelist_type", "map"),
            ("quota_backend_bytes", 2 << 30),
            ("compaction_batch_limit", 1000),
            ("compaction_sleep_interval", 0.01),
            ("watch_progress_notify_interval", 600.0),
            ("v2_deprecation", "write-only"),
        ],
    )
    def test_defaults_that_stand_for_something(self, attribute: str, value: Any) -> None:
        assert getattr(settings(), attribute) == value

    @pytest.mark.parametrize(
        ("flag", "attribute", "value"),
        [
            ("--snapshot-count=0", "snapshot_count", 10000),
            ("--warning-unary-request-duration=0s", "warning_unary_request_duration", 0.3),
            ("--watch-progress-notify-interval=1ms", "watch_progress_notify_interval", 0.1),
            ("--raft-read-timeout=1s", "raft_read_timeout", 5.0),
            ("--quota-backend-bytes=-1", "quota_backend_bytes", -1),
            ("--bcrypt-cost=3", "bcrypt_cost", 10),
            ("--bcrypt-cost=31", "bcrypt_cost", 31),
            ("--v2-deprecation=gone,write-only", "v2_deprecation", "write-only"),
            ("--log-outputs=", "log_outputs", ("default",)),
        ],
    )
    def test_replaced_values(self, flag: str, attribute: str, value: Any) -> None:
        assert getattr(settings(flag), attribute) == value

    def test_name_alone_makes_the_cluster(self) -> None:
        made = settings("--name=m1", "--initial-advertise-peer-urls=http://10.0.0.1:1,http://b:2")
        assert made.initial_cluster == "m1=http://10.0.0.1:1,m1=http://b:2"
        assert made.data_dir == "m1.etcd"
        assert made.initial_members == {"m1": made.initial_advertise_peer_urls}

    def test_given_cluster_is_kept(self) -> None:
        text = "m1=http://10.0.0.1:1,m2=http://10.0.0.2:1"
        assert settings("--name=m1", f"--initial-cluster={text}").initial_cluster == text

    def test_deprecated_ones_warn(self) -> None:
        found = resolved(["--max-snapshots=3"])
        assert any("--max-snapshots is deprecated" in msg for msg in messages(found))

    def test_every_address_is_told_by_the_default_route(self) -> None:
        made = settings(
            "--listen-peer-urls=http://0.0.0.0:7", "--name=m", "--listen-metrics-urls=http://[::]:8"
        )
        host = default_host() or "localhost"
        port = 7 if default_host() else 2380
        assert str(made.initial_advertise_peer_urls[0]) == f"http://{host}:{port}"
        assert made.initial_cluster == f"m=http://{host}:{port}"

    def test_derived(self) -> None:
        made = settings("--heartbeat-interval=50", "--election-timeout=520", "--data-dir=/d")
        assert (made.tick, made.election_ticks, made.request_timeout) == (0.05, 10, 6.0)
        assert (made.member_dir, made.snap_dir) == ("/d/member", "/d/member/snap")
        assert made.wal_path == "/d/member/wal"
        assert settings("--wal-dir=/w").wal_path == "/w"


PEERS = "--initial-advertise-peer-urls=http://127.0.0.1:2380"


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ("--listen-peer-urls=http://a.example:1", r"expected IP in URL for binding \(http://a"),
        ("--listen-client-urls=http://a.example:1", "expected IP in URL for binding"),
        ("--listen-metrics-urls=http://a.example:1", "expected IP in URL for binding"),
        ("--listen-client-http-urls=http://:1", "expected IP in URL for binding"),
        ("--listen-client-urls=http://127.0.0.1:1", "--advertise-client-urls is required"),
        ("--listen-peer-urls=", "must name an address"),
        ("--advertise-client-urls=http://:1", "unexpected empty host"),
        ("--initial-advertise-peer-urls=http://:1", '"http://:1" must be "host:port"'),
        ("--discovery-srv=x --initial-cluster=a=http://b:1", "multiple discovery or bootstrap"),
        ("--discovery-srv=x --discovery-endpoints=y --discovery-token=t", "multiple discovery"),
        ("--discovery-token=x", "both --discovery-token and --discovery-endpoints"),
        ("--discovery-endpoints=x", "both --discovery-token and --discovery-endpoints"),
        ("--discovery-token=x --discovery-endpoints=a,,b", "must not contain empty endpoints"),
        ("--discovery-fallback=proxy", "v2 proxy is deprecated"),
        ("--heartbeat-interval=0", r"--heartbeat-interval must be >0 \(set to 0ms\)"),
        ("--election-timeout=0", r"--election-timeout must be >0 \(set to 0ms\)"),
        ("--heartbeat-interval=500", "should be at least as 5 times as --heartbeat-interval"),
        ("--election-timeout=50001", "is too long, and should be set less than 50000ms"),
        ("--auto-compaction-mode=", "undefined auto-compaction-mode"),
        ("--auto-compaction-mode=x", 'unknown auto-compaction-mode "x"'),
        ("--auto-compaction-retention=x", "error parsing CompactionRetention"),
        ("--auto-compaction-retention=-1h", "error parsing CompactionRetention"),
        ("--auto-compaction-mode=revision --auto-compaction-retention=1h", "not a number of rev"),
        ("--compact-hash-check-time=0s", "--compact-hash-check-time must be >0"),
        ("--enable-distributed-tracing --distributed-tracing-sampling-rate=-1", "sampling rate"),
        ("--feature-gates=LeaseCheckpointPersist=true", "requires enabling feature gate LeaseC"),
        ("--tls-min-version=TLS1.1", 'unexpected TLS version "TLS1.1"'),
        ("--tls-max-version=x", 'unexpected TLS version "x"'),
        ("--tls-min-version=TLS1.3 --tls-max-version=TLS1.2", "is greater than max version"),
        ("--tls-min-version=TLS1.3 --cipher-suites=A", "cipher suites cannot be configured"),
        ("--cert-file=a", "--cert-file and --key-file must be given together"),
        ("--peer-key-file=a", "--peer-cert-file and --peer-key-file must be given together"),
        ("--client-key-file=a", "--client-cert-file and --client-key-file"),
        ("--peer-client-cert-file=a", "--peer-client-cert-file and --peer-client-key-file"),
        ("--listen-metrics-urls=https://127.0.0.1:1", "must be provided for client url https"),
        ("--listen-peer-urls=https://127.0.0.1:1", "must be provided for peer url https"),
        (
            "--listen-client-http-urls=http://localhost:2379",
            "cannot bind both --listen-client-urls and --listen-client-http-urls",
        ),
        ("--auth-token=x", 'unknown token type "x"'),
        ("--metrics=x", 'unknown --metrics "x"'),
        ("--name=", "must not be empty"),
        ("--name=a=b", "must not be empty or hold"),
        ("--logger=capnslog", 'unknown logger option "capnslog"'),
        ("--log-format=xml", "unknown log format: xml"),
        ("--log-outputs=default,stderr", 'multi logoutput for "default"'),
        ("--log-outputs=systemd/journal,stderr", "systemd/journal cannot be combined"),
        ("--enable-log-rotation", "log rotation requires exactly one file"),
        ("--enable-log-rotation --log-outputs=/a,/b", "log rotation requires exactly one file"),
        (
            "--enable-log-rotation --log-outputs=/a --log-rotation-config-json={",
            "improperly formatted log rotation config",
        ),
        (
            '--enable-log-rotation --log-outputs=/a --log-rotation-config-json={"maxsize":"1"}',
            "invalid log rotation config: maxsize must be int",
        ),
    ],
)
def test_settings_that_cannot_be(args: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        load(args.split(), {})


@pytest.mark.parametrize(
    ("args", "warning"),
    [
        ("", "Running http and grpc server on single port"),
        ("", "it isn't recommended to use default name"),
        ("--feature-gates=LeaseCheckpoint=true", "checkpointing is enabled without persistence"),
        ("--max-request-bytes=10485761", "exceeded recommended request limit"),
        ("--bcrypt-cost=40", "use default bcrypt cost"),
    ],
)
def test_settings_that_earn_a_warning(args: str, warning: str) -> None:
    assert any(warning in msg for msg in messages(resolved(args.split())))


def test_a_plain_configuration_earns_none() -> None:
    args = "--name=a --data-dir=/d --listen-client-http-urls=http://127.0.0.1:2381"
    assert resolved(args.split()).notices == []


@pytest.mark.parametrize(
    ("args", "mode_value"),
    [
        ("--auto-compaction-retention=2", 7200.0),
        ("--auto-compaction-retention=90s", 90.0),
        ("--auto-compaction-mode=revision --auto-compaction-retention=1000", 1000.0),
        ("", 0.0),
    ],
)
def test_retention(args: str, mode_value: float) -> None:
    assert config.compaction_retention(settings(*args.split())) == mode_value


class TestMake:
    def test_for_programs(self) -> None:
        made = make(name="p", listen_client_urls=config.parse_urls("http://127.0.0.1:0"))
        assert made.data_dir == "p.etcd"
        assert made.explicit == {"name", "listen-client-urls"}

    def test_unknown_setting(self) -> None:
        with pytest.raises(TypeError, match="unknown settings: nmae"):
            make(nmae="p")

    def test_is_checked(self) -> None:
        with pytest.raises(ConfigError, match="heartbeat"):
            make(heartbeat_interval=0)

    def test_is_frozen(self) -> None:
        with pytest.raises(AttributeError):
            make().name = "b"  # type: ignore[misc]


class TestGates:
    def test_defaults(self) -> None:
        on = {name for name, enabled in config.parse_gates("").all().items() if enabled}
        assert on == {"FastLeaseKeepAlive", "TxnModeWriteWithSharedBuffer"}

    def test_switches_and_single_names(self) -> None:
        gates = config.parse_gates(" AllAlpha = true ,PriorityRequest=0,,AllBeta=F")
        assert gates["LeaseCheckpoint"]
        assert not gates["PriorityRequest"]
        assert not gates["FastLeaseKeepAlive"]
        assert str(gates) == "AllAlpha=true,AllBeta=false,PriorityRequest=false"

    @pytest.mark.parametrize("text", ["AllAlpha", "Nope=true", "AllAlpha=yes"])
    def test_refuses(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"gate|value"):
            config.parse_gates(text)

    def test_unknown_gate_is_a_bug(self) -> None:
        with pytest.raises(KeyError):
            FeatureGates({}).enabled("Nope")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("127.0.0.1:1", "URL scheme must be http, https, unix, or unixs"),
        ("ftp://127.0.0.1:1", "URL scheme must be"),
        ("", "URL scheme must be"),
        ("http://127.0.0.1", 'does not have the form "host:port"'),
        ("http://::1:1", 'does not have the form "host:port"'),
        ("http://127.0.0.1:1/", "must not contain a path"),
        ("http://127.0.0.1:x", "port must be a number"),
        ("http://127.0.0.1:65536", "port must be a number"),
        ("http://u:p@127.0.0.1:1", "without user"),
        ("http://127.0.0.1:1?a", "without user, query"),
        ("unix://", "must name its file"),
    ],
)
def test_bad_urls(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        config.parse_url(text)


def test_urls() -> None:
    six = config.parse_url(" HTTPS://[::1]:2379 ")
    assert (str(six), six.host, six.port, six.is_tls) == ("https://[::1]:2379", "::1", 2379, True)
    assert [config.parse_url(f"unix://{path}").socket_path for path in ("a:1", "/tmp/a")] == [
        "a:1",
        "/tmp/a",
    ]
    many = config.parse_urls("http://b:1,http://a:1,http://b:1")
    assert [str(url) for url in many] == ["http://a:1", "http://b:1"]


def test_flag_errors_come_before_anything_else() -> None:
    with pytest.raises(FlagError):
        load(["--config-file=/none", "--nope"], {"ETCD_NAME": "x"})


@pytest.mark.parametrize(
    ("advertised", "gate", "address"),
    [
        ("http://10.0.0.1:1", "", None),
        ("http://10.0.0.1:1", "SetMemberLocalAddr=true", "10.0.0.1"),
        ("http://127.0.0.1:1,http://[::]:1,http://a:1", "SetMemberLocalAddr=true", None),
        ("http://127.0.0.1:1,http://[fd00::1]:1", "SetMemberLocalAddr=true", "fd00::1"),
    ],
)
def test_where_peer_connections_leave_from(advertised: str, gate: str, address: str | None) -> None:
    made = settings(f"--initial-advertise-peer-urls={advertised}", f"--feature-gates={gate}")
    assert made.local_address == address


def test_a_program_that_discovers_names_no_members() -> None:
    made = make(discovery_srv="a.example")
    assert made.initial_cluster == ""
    assert make(discovery_endpoints=("a:1",), discovery_token="t").initial_cluster == ""
    with pytest.raises(ConfigError, match="multiple discovery or bootstrap flags"):
        make(discovery_srv="a.example", initial_cluster="a=http://b:1")
