"""Which settings can be, and go together. Texts are etcd's where etcd has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from kvorum import durations
from kvorum.config import urls
from kvorum.config.faults import ConfigError
from kvorum.config.server import ServerConfig
from kvorum.config.urls import URL
from kvorum.log import check_outputs
from kvorum.logsink import Rotation

MAX_ELECTION_MS: Final = 50000
LARGE_REQUEST: Final = 10 << 20
_TLS_VERSIONS: Final = ("", "TLS1.2", "TLS1.3")

Warning = tuple[str, dict[str, Any]]


def check(config: ServerConfig) -> list[Warning]:
    """The warnings that the settings earn. Raises ConfigError when they cannot be."""
    for rule in _RULES:
        try:
            rule(config)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return list(_warnings(config))


def _logging(config: ServerConfig) -> None:
    if config.logger != "zap":
        raise ConfigError(f'unknown logger option "{config.logger}" (zap is the only one)')
    check_outputs(list(config.log_outputs), rotated=config.enable_log_rotation)
    if config.enable_log_rotation:
        Rotation.parse(config.log_rotation_config_json)
    if config.log_format not in ("json", "console"):
        raise ConfigError(
            f"unknown log format: {config.log_format}, supported values json, console"
        )


def _listen_urls(config: ServerConfig) -> None:
    for listened in (
        config.listen_peer_urls,
        config.listen_client_urls,
        config.listen_client_http_urls,
        config.listen_metrics_urls,
    ):
        for url in listened:
            if not url.is_unix and url.host != "localhost" and not urls.is_ip(url.host):
                raise ConfigError(f"expected IP in URL for binding ({url})")
    if not config.listen_client_urls or not config.listen_peer_urls:
        raise ConfigError("--listen-client-urls and --listen-peer-urls must name an address")
    shared = set(config.listen_client_urls) & set(config.listen_client_http_urls)
    if shared:
        raise ConfigError(
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url "
            + str(shared.pop())
        )


def _advertised_urls(config: ServerConfig) -> None:
    form = 'must be "host:port"'
    _require_hosts("initial-advertise-peer-urls", config.initial_advertise_peer_urls, form)
    form = 'must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket"'
    _require_hosts("advertise-client-urls", config.advertise_client_urls, form)


def _require_hosts(name: str, advertised: tuple[URL, ...], form: str) -> None:
    for url in advertised:
        if not url.is_unix and not url.host:
            raise ConfigError(
                f'--{name} "{urls.join(advertised)}" {form} (unexpected empty host ({url}))'
            )


def _bootstrap(config: ServerConfig) -> None:
    ways = (config.initial_cluster, config.discovery_srv, config.discovery_endpoints)
    if sum(map(bool, ways)) > 1:
        raise ConfigError(
            "multiple discovery or bootstrap flags are set. "
            'Choose one of "initial-cluster", "discovery-endpoints" or "discovery-srv"'
        )
    if bool(config.discovery_token) != bool(config.discovery_endpoints):
        raise ConfigError("both --discovery-token and --discovery-endpoints must be set")
    if not all(endpoint.strip() for endpoint in config.discovery_endpoints):
        raise ConfigError("--discovery-endpoints must not contain empty endpoints")
    if config.discovery_fallback == "proxy":
        raise ConfigError(
            'v2 proxy is deprecated, and --discovery-fallback can\'t be configured as "proxy"'
        )


def _timing(config: ServerConfig) -> None:
    tick, election = config.heartbeat_interval, config.election_timeout
    if tick == 0:
        raise ConfigError("--heartbeat-interval must be >0 (set to 0ms)")
    if election == 0:
        raise ConfigError("--election-timeout must be >0 (set to 0ms)")
    if 5 * tick > election:
        raise ConfigError(
            f"--election-timeout[{election}ms] should be at least as 5 times as "
            f"--heartbeat-interval[{tick}ms]"
        )
    if election > MAX_ELECTION_MS:
        raise ConfigError(
            f"--election-timeout[{election}ms] is too long, and should be set less than "
            f"{MAX_ELECTION_MS}ms"
        )


def _advertise_given(config: ServerConfig) -> None:
    if not config.advertise_client_urls:
        raise ConfigError(
            "--advertise-client-urls is required when --listen-client-urls is set explicitly"
        )


def _compaction(config: ServerConfig) -> None:
    mode = config.auto_compaction_mode
    if mode == "":
        raise ConfigError("undefined auto-compaction-mode")
    if mode not in ("periodic", "revision"):
        raise ConfigError(f'unknown auto-compaction-mode "{mode}"')
    compaction_retention(config)
    if config.compact_hash_check_time <= 0:
        raise ConfigError("--compact-hash-check-time must be >0")


def compaction_retention(config: ServerConfig) -> float:
    """How much history to keep: seconds in periodic mode, revisions in revision mode, 0 for off.

    Raises ConfigError for a text that is neither. (etcd takes a duration in revision mode too,
    and then keeps its nanoseconds as revisions; we refuse it.)
    """
    text = config.auto_compaction_retention
    is_periodic = config.auto_compaction_mode == "periodic"
    if text.isascii() and text.isdecimal():
        return int(text) * 3600.0 if is_periodic else float(int(text))
    if not is_periodic:
        raise ConfigError(
            f'error parsing CompactionRetention: "{text}" is not a number of revisions'
        )
    try:
        seconds = durations.parse(text) / durations.SECOND
    except ValueError as error:
        raise ConfigError(f"error parsing CompactionRetention: {error}") from None
    if seconds < 0:
        raise ConfigError(f"error parsing CompactionRetention: {text} is below zero")
    return seconds


def _tracing(config: ServerConfig) -> None:
    rate = config.distributed_tracing_sampling_rate
    if config.enable_distributed_tracing and not 0 <= rate <= 1_000_000:
        raise ConfigError(
            "distributed tracing configurition is not valid: (tracing sampling rate must be "
            "between 0 and 1000000)"
        )


def _gates(config: ServerConfig) -> None:
    gates = config.feature_gates
    if gates.enabled("LeaseCheckpointPersist") and not gates.enabled("LeaseCheckpoint"):
        raise ConfigError(
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate "
            "LeaseCheckpoint"
        )


def _tls_versions(config: ServerConfig) -> None:
    low, high = config.tls_min_version, config.tls_max_version
    for version in (low, high):
        if version not in _TLS_VERSIONS:
            raise ConfigError(
                f'unexpected TLS version "{version}" (must be one of: TLS1.2, TLS1.3)'
            )
    if high and low > high:
        raise ConfigError(f"min version ({low}) is greater than max version ({high})")
    if low == "TLS1.3" and config.cipher_suites:
        raise ConfigError("cipher suites cannot be configured when only TLS1.3 is enabled")


def _tls_pairs(config: ServerConfig) -> None:
    for cert, key in (
        ("cert_file", "key_file"),
        ("client_cert_file", "client_key_file"),
        ("peer_cert_file", "peer_key_file"),
        ("peer_client_cert_file", "peer_client_key_file"),
    ):
        if bool(getattr(config, cert)) != bool(getattr(config, key)):
            names = [name.replace("_", "-") for name in (cert, key)]
            raise ConfigError(f"--{names[0]} and --{names[1]} must be given together")


def _tls_urls(config: ServerConfig) -> None:
    has_client_cert = config.cert_file or config.auto_tls
    for url in (
        *config.listen_client_urls,
        *config.listen_client_http_urls,
        *config.listen_metrics_urls,
    ):
        if url.is_tls and not has_client_cert:
            raise ConfigError(
                f"TLS key/cert (--cert-file, --key-file) must be provided for client url {url} "
                "with HTTPS scheme"
            )
    for url in config.listen_peer_urls:
        if url.is_tls and not (config.peer_cert_file or config.peer_auto_tls):
            raise ConfigError(
                f"TLS key/cert (--peer-cert-file, --peer-key-file) must be provided for peer url "
                f"{url} with HTTPS scheme"
            )


def _auth(config: ServerConfig) -> None:
    kind = config.auth_token.partition(",")[0]
    if kind not in ("simple", "jwt"):
        raise ConfigError(f'unknown token type "{kind}" in --auth-token (simple or jwt)')


def _words(config: ServerConfig) -> None:
    if config.metrics not in ("basic", "extensive"):
        raise ConfigError(f'unknown --metrics "{config.metrics}" (basic or extensive)')
    if not config.name or "=" in config.name or "," in config.name:
        raise ConfigError(f'--name "{config.name}" must not be empty or hold a comma or "="')


_RULES: Final[tuple[Callable[[ServerConfig], None], ...]] = (
    _logging,
    _listen_urls,
    _advertised_urls,
    _bootstrap,
    _timing,
    _advertise_given,
    _compaction,
    _tracing,
    _gates,
    _tls_versions,
    _tls_pairs,
    _tls_urls,
    _auth,
    _words,
)


def _warnings(config: ServerConfig) -> Iterator[Warning]:
    if not config.listen_client_http_urls:
        yield (
            "Running http and grpc server on single port. This is not recommended for production.",
            {},
        )
    gates = config.feature_gates
    if gates.enabled("LeaseCheckpoint") and not gates.enabled("LeaseCheckpointPersist"):
        yield (
            "Detected that checkpointing is enabled without persistence. "
            "Consider enabling feature gate LeaseCheckpointPersist",
            {},
        )
    if config.name == "default":
        yield (
            "it isn't recommended to use default name, please set a value for --name. Note that "
            "etcd might run into issue when multiple members have the same default name",
            {"name": config.name},
        )
    if config.max_request_bytes > LARGE_REQUEST:
        yield (
            "exceeded recommended request limit",
            {"max_request_bytes": config.max_request_bytes, "recommended": LARGE_REQUEST},
        )
