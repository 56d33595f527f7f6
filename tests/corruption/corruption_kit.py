"""What the tests of corruption have in common."""

from __future__ import annotations

import json

import pytest


def quiet_lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The messages that were logged since the last call."""
    return [json.loads(line)["msg"] for line in capfd.readouterr().err.splitlines()]
