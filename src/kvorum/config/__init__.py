"""Settings: flags, environment and file become one frozen `ServerConfig`.

Programs call `make`; the server's command line goes through `load`.
"""

from kvorum.config.check import compaction_retention
from kvorum.config.faults import ConfigError, FlagError
from kvorum.config.gates import FeatureGates, parse_gates
from kvorum.config.load import load
from kvorum.config.resolve import Notice, Resolved, make
from kvorum.config.server import ServerConfig
from kvorum.config.urls import URL, parse_members, parse_url, parse_urls

__all__ = [
    "URL",
    "ConfigError",
    "FeatureGates",
    "FlagError",
    "Notice",
    "Resolved",
    "ServerConfig",
    "compaction_retention",
    "load",
    "make",
    "parse_gates",
    "parse_members",
    "parse_url",
    "parse_urls",
]
