"""What a test needs from the machine: missing is a skip here, and a failure in CI."""

from __future__ import annotations

import os

import pytest


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def need(present: bool, why: str) -> None:
    """Go on only if ``present``. CI must run everything, so there a gap is a failure."""
    if present:
        return
    if in_ci():
        pytest.fail(f"CI must not skip this: {why}", pytrace=False)
    pytest.skip(why)


def allow(possible: bool, why: str) -> None:
    """Go on only if the machine permits it (mounting, say). A skip everywhere, CI included."""
    if not possible:
        pytest.skip(why)
