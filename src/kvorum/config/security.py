"""Settings of TLS, origins and passwords."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvorum.config.kinds import BOOL, HOSTS, ORIGINS, STRING, STRINGS, UINT
from kvorum.config.spec import setting


@dataclass(frozen=True, kw_only=True)
class SecuritySettings:
    """Certificates of both sides, CORS, host names."""

    SECTION: ClassVar[str] = "Security"

    cert_file: str = setting(
        STRING, "", "Server certificate for clients.", yaml="client-transport-security.cert-file"
    )
    key_file: str = setting(
        STRING, "", "Server key for clients.", yaml="client-transport-security.key-file"
    )
    client_cert_auth: bool = setting(
        BOOL,
        False,
        "Require client certificates signed by the trusted CA.",
        yaml="client-transport-security.client-cert-auth",
    )
    client_cert_file: str = setting(
        STRING,
        "",
        "Certificate this server uses when it acts as a client of itself or of others; "
        "cert-file when empty.",
        yaml="client-transport-security.client-cert-file",
    )
    client_key_file: str = setting(
        STRING,
        "",
        "Key for client-cert-file; key-file when empty.",
        yaml="client-transport-security.client-key-file",
    )
    client_crl_file: str = setting(
        STRING, "", "Revocation list for client certificates.", yaml=None
    )
    client_cert_allowed_hostname: tuple[str, ...] = setting(
        STRINGS,
        (),
        "SAN host names accepted in client certificates.",
        yaml="client-transport-security.allowed-hostname",
    )
    client_cert_allowed_cn: tuple[str, ...] = setting(
        STRINGS,
        (),
        "Common names accepted in client certificates.",
        yaml="client-transport-security.allowed-cn",
        flag=False,
    )
    client_skip_client_san_verification: bool = setting(
        BOOL,
        False,
        "Do not check the SAN of client certificates.",
        yaml="client-transport-security.skip-client-san-verification",
        flag=False,
    )
    trusted_ca_file: str = setting(
        STRING,
        "",
        "CA bundle for client certificates.",
        yaml="client-transport-security.trusted-ca-file",
    )
    auto_tls: bool = setting(
        BOOL,
        False,
        "Make a self-signed certificate for the client side.",
        yaml="client-transport-security.auto-tls",
    )
    peer_cert_file: str = setting(
        STRING, "", "Certificate for peer traffic.", yaml="peer-transport-security.cert-file"
    )
    peer_key_file: str = setting(
        STRING, "", "Key for peer traffic.", yaml="peer-transport-security.key-file"
    )
    peer_client_cert_auth: bool = setting(
        BOOL,
        False,
        "Require peer certificates signed by the peer CA.",
        yaml="peer-transport-security.client-cert-auth",
    )
    peer_client_cert_file: str = setting(
        STRING,
        "",
        "Certificate used on outgoing peer connections; peer-cert-file when empty.",
        yaml="peer-transport-security.client-cert-file",
    )
    peer_client_key_file: str = setting(
        STRING,
        "",
        "Key for peer-client-cert-file; peer-key-file when empty.",
        yaml="peer-transport-security.client-key-file",
    )
    peer_trusted_ca_file: str = setting(
        STRING,
        "",
        "CA bundle for peer certificates.",
        yaml="peer-transport-security.trusted-ca-file",
    )
    peer_cert_allowed_cn: tuple[str, ...] = setting(
        STRINGS,
        (),
        "Common names accepted in peer certificates.",
        yaml="peer-transport-security.allowed-cn",
    )
    peer_cert_allowed_hostname: tuple[str, ...] = setting(
        STRINGS,
        (),
        "SAN host names accepted in peer certificates.",
        yaml="peer-transport-security.allowed-hostname",
    )
    peer_auto_tls: bool = setting(
        BOOL,
        False,
        "Make a self-signed certificate for the peer side.",
        yaml="peer-transport-security.auto-tls",
    )
    self_signed_cert_validity: int = setting(
        UINT, 1, "Years the self-made certificates stay valid."
    )
    peer_crl_file: str = setting(STRING, "", "Revocation list for peer certificates.", yaml=None)
    cipher_suites: tuple[str, ...] = setting(
        STRINGS,
        (),
        "TLS cipher suites by Go name, for clients and peers; not with TLS1.3 as the minimum.",
    )
    cors: tuple[str, ...] = setting(
        ORIGINS, ("*",), "Origins allowed by CORS; empty or * allows all."
    )
    host_whitelist: tuple[str, ...] = setting(
        HOSTS,
        ("*",),
        "Host names accepted in the Host header of plain HTTP requests; empty or * allows all.",
    )
    tls_min_version: str = setting(STRING, "TLS1.2", "Lowest TLS version: TLS1.2 or TLS1.3.")
    tls_max_version: str = setting(
        STRING, "", "Highest TLS version: TLS1.2, TLS1.3, or empty for no limit."
    )


@dataclass(frozen=True, kw_only=True)
class AuthSettings:
    """Tokens and passwords."""

    SECTION: ClassVar[str] = "Auth"

    auth_token: str = setting(
        STRING,
        "simple",
        "Token kind: simple, or jwt with options after a comma (pub-key, priv-key, sign-"
        "method, ttl).",
    )
    bcrypt_cost: int = setting(UINT, 10, "Cost factor for password hashes, 4 to 31.")
    auth_token_ttl: int = setting(UINT, 300, "Life of a simple token in seconds.")
