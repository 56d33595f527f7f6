"""Settings that this version of the server takes but cannot honour yet.

A member refuses to start with one of them: to ignore, say, --cert-file would serve in the clear
what its operator believes to be encrypted. A row goes when its feature comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from kvorum.config.server import ServerConfig


class Pending(NamedTuple):
    feature: str
    flags: str
    is_wanted: Callable[[ServerConfig], bool]


def _wants_client_tls(config: ServerConfig) -> bool:
    listened = (
        *config.listen_client_urls,
        *config.listen_client_http_urls,
        *config.listen_metrics_urls,
    )
    return bool(
        config.cert_file
        or config.client_cert_file
        or config.client_cert_auth
        or config.client_crl_file
        or config.trusted_ca_file
        or config.auto_tls
        or any(url.is_tls for url in listened)
    )


def _wants_peer_tls(config: ServerConfig) -> bool:
    return bool(
        config.peer_cert_file
        or config.peer_client_cert_file
        or config.peer_client_cert_auth
        or config.peer_crl_file
        or config.peer_trusted_ca_file
        or config.peer_auto_tls
        or any(url.is_tls for url in config.listen_peer_urls)
    )


def _wants_discovery_tls(config: ServerConfig) -> bool:
    return bool(config.discovery_endpoints) and bool(
        config.discovery_cert
        or config.discovery_key
        or config.discovery_cacert
        or config.discovery_server_name
        or config.discovery_insecure_skip_tls_verify
        or not config.discovery_insecure_transport
        or any(end.startswith(("https:", "unixs:")) for end in config.discovery_endpoints)
    )


PENDING: Final = (
    Pending("TLS for clients", "--cert-file, --auto-tls, https URLs", _wants_client_tls),
    Pending("TLS between members", "--peer-cert-file, --peer-auto-tls, https", _wants_peer_tls),
    Pending(
        "TLS to the discovery service",
        "--discovery-cert, --discovery-cacert, --discovery-insecure-transport=false, https",
        _wants_discovery_tls,
    ),
    Pending(
        "distributed tracing",
        "--enable-distributed-tracing",
        lambda config: config.enable_distributed_tracing,
    ),
    Pending(
        "JWT tokens",
        "--auth-token=jwt",
        lambda config: config.auth_token.startswith("jwt"),
    ),
    Pending("locked memory", "--memory-mlock", lambda config: config.memory_mlock),
    Pending(
        "a defragment at start-up",
        "--bootstrap-defrag-threshold-megabytes",
        lambda config: config.bootstrap_defrag_threshold_megabytes > 0,
    ),
)


def pending(config: ServerConfig) -> list[str]:
    """One text for each thing that is wanted but not there yet."""
    return [
        f"{row.feature} ({row.flags}) is not supported by this version of Kvorum"
        for row in PENDING
        if row.is_wanted(config)
    ]
