"""No setting is taken and then forgotten: it is read, refused, or on this list with its reason."""

from __future__ import annotations

import re
from pathlib import Path

import kvorum
from kvorum.config.pending import PENDING
from kvorum.config.server import all_settings

PEERS = "concerns checks of members against each other, which are not there yet"
TLS = "concerns TLS, which is refused as pending"
TRACING = "concerns tracing, which is refused as pending"
AUTH = "concerns authentication, which cannot be switched on yet"

EXCUSED = {
    "auth-token-ttl": AUTH,
    "auto-compaction-retention": "read by kvorum.config.compaction_retention",
    "backend-bbolt-freelist-type": "a detail of bbolt, which is not our storage engine",
    "bcrypt-cost": AUTH,
    "compact-hash-check-time": PEERS,
    "corrupt-check-time": PEERS,
    "discovery-fallback": "has one value left",
    "discovery-max-request-bytes": "what we send to a discovery service is tiny",
    "enable-grpc-gateway": "on by default; the gateway is not there yet",
    "key-file": "goes with cert-file, which is refused as pending",
    "self-signed-cert-validity": TLS,
    "socket-reuse-address": "listeners always set it",
    "v2-deprecation": "etcd overrides it too",
    "warning-unary-request-duration": "slow requests are not logged yet",
}
GROUPS = {
    "distributed-tracing-": TRACING,
    "peer-": TLS,
    "client-": TLS,
    "tls-": TLS,
    "cipher-": TLS,
}


def sources() -> tuple[str, str]:
    """The program without the settings' own package, and the table of pending features."""
    root = Path(kvorum.__file__).parent
    files = [path for path in root.rglob("*.py") if "config" not in path.relative_to(root).parts]
    pending = (root / "config" / "pending.py").read_text()
    derived = (root / "config" / "server.py").read_text().split("def tick")[1]
    return "\n".join(path.read_text() for path in files) + derived, pending


def test_every_setting_is_read_or_refused_or_excused() -> None:
    program, pending = sources()
    forgotten = []
    for made in all_settings():
        is_read = re.search(rf"\.{made.attribute}\b", program)
        is_refused = re.search(rf"\.{made.attribute}\b", pending)
        is_excused = made.name in EXCUSED or made.name.startswith(tuple(GROUPS))
        if not (is_read or is_refused or is_excused):
            forgotten.append(made.name)
    assert forgotten == []


def test_excuses_name_settings_that_exist() -> None:
    assert EXCUSED.keys() <= {made.name for made in all_settings()}


def test_pending_features_name_their_flags() -> None:
    names = {made.name for made in all_settings()}
    for row in PENDING:
        for flag in re.findall(r"--([a-z-]+)", row.flags):
            assert flag in names
