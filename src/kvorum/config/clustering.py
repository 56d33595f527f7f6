"""Settings of how a member finds its cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvorum.config.kinds import BOOL, DURATION, INT, STRING, STRING_SET, URLS, Choice, Words
from kvorum.config.spec import setting
from kvorum.config.urls import URL, parse_urls


@dataclass(frozen=True, kw_only=True)
class ClusteringSettings:
    """Starting members, discovery, compaction."""

    SECTION: ClassVar[str] = "Clustering"

    initial_advertise_peer_urls: tuple[URL, ...] = setting(
        URLS,
        parse_urls("http://localhost:2380"),
        "Peer addresses of this member told to the others.",
    )
    initial_cluster: str = setting(
        STRING,
        "default=http://localhost:2380",
        "Starting members as name=peerURL pairs joined by commas. When left alone and a "
        "name is set, it is rebuilt from that name.",
    )
    initial_cluster_state: str = setting(
        Choice("new", "existing"),
        "new",
        "new for a fresh cluster, existing to join one; ignored once data exists.",
    )
    initial_cluster_token: str = setting(
        STRING,
        "etcd-cluster",
        "Text mixed into the cluster and member IDs so that clusters do not mix.",
    )
    advertise_client_urls: tuple[URL, ...] = setting(
        URLS,
        parse_urls("http://localhost:2379"),
        "Client addresses of this member told to the others; must be given once "
        "listen-client-urls is given.",
    )
    discovery_token: str = setting(
        STRING,
        "",
        "Token of the cluster at a v3 discovery service; needed together with discovery-endpoints.",
        yaml="discovery-config.token",
    )
    discovery_endpoints: tuple[str, ...] = setting(
        STRING_SET,
        (),
        "gRPC endpoints of a v3 discovery service; cannot be mixed with initial-cluster "
        "or discovery-srv.",
        yaml="discovery-config.client.endpoints",
    )
    discovery_dial_timeout: float = setting(
        DURATION,
        2.0,
        "Dial timeout toward the discovery service.",
        yaml="discovery-config.client.dial-timeout",
    )
    discovery_request_timeout: float = setting(
        DURATION,
        5.0,
        "Request timeout toward the discovery service, without the dial.",
        yaml="discovery-config.client.request-timeout",
    )
    discovery_keepalive_time: float = setting(
        DURATION,
        2.0,
        "Keepalive ping period toward the discovery service.",
        yaml="discovery-config.client.keepalive-time",
    )
    discovery_keepalive_timeout: float = setting(
        DURATION,
        6.0,
        "Keepalive answer timeout toward the discovery service.",
        yaml="discovery-config.client.keepalive-timeout",
    )
    discovery_insecure_transport: bool = setting(
        BOOL,
        True,
        "Talk to the discovery service without TLS.",
        yaml="discovery-config.client.secure.insecure-transport",
    )
    discovery_insecure_skip_tls_verify: bool = setting(
        BOOL,
        False,
        "Do not check the certificate of the discovery service.",
        yaml="discovery-config.client.secure.insecure-skip-tls-verify",
    )
    discovery_cert: str = setting(
        STRING,
        "",
        "Client certificate file for the discovery service.",
        yaml="discovery-config.client.secure.cert",
    )
    discovery_key: str = setting(
        STRING,
        "",
        "Client key file for the discovery service.",
        yaml="discovery-config.client.secure.key",
    )
    discovery_cacert: str = setting(
        STRING,
        "",
        "CA bundle for the discovery service.",
        yaml="discovery-config.client.secure.cacert",
    )
    discovery_user: str = setting(
        STRING,
        "",
        "User for the discovery service, name or name:password.",
        yaml="discovery-config.client.auth.username",
    )
    discovery_password: str = setting(
        STRING,
        "",
        "Password for the discovery service, when not in discovery-user.",
        yaml="discovery-config.client.auth.password",
    )
    discovery_auth_token: str = setting(
        STRING,
        "",
        "JWT to log in to the discovery service with, in place of a password.",
        yaml="discovery-config.client.auth.token",
        flag=False,
    )
    discovery_server_name: str = setting(
        STRING,
        "",
        "Name expected in the certificate of the discovery service.",
        yaml="discovery-config.client.secure.server-name",
        flag=False,
    )
    discovery_max_request_bytes: int = setting(
        INT,
        0,
        "Largest request sent to the discovery service, 0 takes the client's default.",
        yaml="discovery-config.client.max-request-bytes",
        flag=False,
    )
    discovery_max_recv_bytes: int = setting(
        INT,
        0,
        "Largest answer taken from the discovery service, 0 takes the client's default.",
        yaml="discovery-config.client.max-recv-bytes",
        flag=False,
    )
    discovery_fallback: str = setting(
        Choice("exit", "proxy"),
        "exit",
        "What to do when discovery fails; proxy is refused since the v2 proxy is gone.",
        yaml=None,
    )
    discovery_srv: str = setting(
        STRING, "", "DNS domain whose SRV records list the starting members."
    )
    discovery_srv_name: str = setting(
        STRING, "", "Suffix added to the SRV service names asked for."
    )
    strict_reconfig_check: bool = setting(
        BOOL, True, "Refuse membership changes that would lose quorum."
    )
    pre_vote: bool = setting(BOOL, True, "Ask for votes in a trial round before a real election.")
    auto_compaction_retention: str = setting(
        STRING,
        "0",
        "How much history automatic compaction keeps; 0 turns it off. A bare number is "
        "hours in periodic mode and revisions in revision mode.",
    )
    auto_compaction_mode: str = setting(STRING, "periodic", "periodic or revision.")
    v2_deprecation: str = setting(
        Words("write-only", "write-only-skip-check", "write-only-drop-data", "gone"),
        "",
        "Stage of the v2 store removal; input is checked against the list, then "
        "overridden by write-only.",
        deprecated="--v2-deprecation is deprecated and scheduled for removal in v3.8. The"
        " default value is enforced, ignoring user input.",
        effective="write-only",
    )
