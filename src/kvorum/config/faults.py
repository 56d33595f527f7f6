"""What can be wrong with the settings, by the exit code that it earns."""

from __future__ import annotations


class FlagError(ValueError):
    """The command line does not parse: exit code 2, with the usage."""


class ConfigError(ValueError):
    """The settings parse but cannot be: exit code 1."""
