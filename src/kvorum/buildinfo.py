"""What this build is and runs on, in etcd's words. Imports next to nothing: ``--version`` is run
for every member by test harnesses, and must be quick."""

from __future__ import annotations

import os
import sys
from typing import Final

from kvorum.version import ETCD_VERSION, VERSION

GIT_SHA: Final = f"kvorum-{VERSION}"
_GO_ARCH: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def language_version() -> str:
    """Where etcd names the version of Go."""
    return "python" + ".".join(map(str, sys.version_info[:3]))


def os_name() -> str:
    return os.uname().sysname.lower()


def arch() -> str:
    machine = os.uname().machine
    return _GO_ARCH.get(machine, machine)


def version_text() -> str:
    """etcd's four lines, the version of etcd that we keep to first, and our own."""
    return (
        f"etcd Version: {ETCD_VERSION}\n"
        f"Git SHA: {GIT_SHA}\n"
        f"Go Version: {language_version()}\n"
        f"Go OS/Arch: {os_name()}/{arch()}\n"
        f"Kvorum Version: {VERSION}\n"
    )
