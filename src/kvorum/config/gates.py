"""Feature gates: switches for features that are not settled yet (``--feature-gates``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from kvorum.config.numbers import parse_bool


class Gate(NamedTuple):
    name: str
    default: bool
    stage: str
    meaning: str


GATES: Final[Mapping[str, Gate]] = {
    gate.name: gate
    for gate in (
        Gate("AllAlpha", False, "ALPHA", "every alpha gate that is not named on its own"),
        Gate("AllBeta", False, "BETA", "every beta gate that is not named on its own"),
        Gate("CompactHashCheck", False, "ALPHA", "the leader compares hashes after compactions"),
        Gate("FastLeaseKeepAlive", True, "BETA", "a known lease is renewed without a wait"),
        Gate("InitialCorruptCheck", False, "ALPHA", "compare with the peers before serving"),
        Gate("LeaseCheckpoint", False, "ALPHA", "remaining lease times go through raft"),
        Gate("LeaseCheckpointPersist", False, "ALPHA", "remaining lease times are kept on disk"),
        Gate("PriorityRequest", False, "ALPHA", "lease revokes pass a larger backlog"),
        Gate("SetMemberLocalAddr", False, "ALPHA", "peer connections leave from a fixed address"),
        Gate("StopGRPCServiceOnDefrag", False, "ALPHA", "NOT_SERVING while a defragment runs"),
        Gate("TxnModeWriteWithSharedBuffer", True, "BETA", "checks read the shared buffer"),
    )
}
"""AllAlpha and AllBeta are switches for the others of their stage."""

_SWITCHES: Final = {"AllAlpha": "ALPHA", "AllBeta": "BETA"}


@dataclass(frozen=True, slots=True)
class FeatureGates:
    """What was asked for; `enabled` says what follows from it."""

    chosen: Mapping[str, bool]

    def enabled(self, name: str) -> bool:
        """Raises KeyError for a gate that does not exist."""
        if name in self.chosen:
            return self.chosen[name]
        gate = GATES[name]
        switch = next((s for s, stage in _SWITCHES.items() if stage == gate.stage), "")
        if name not in _SWITCHES and switch in self.chosen:
            return self.chosen[switch]
        return gate.default

    def __getitem__(self, name: str) -> bool:
        return self.enabled(name)

    def all(self) -> dict[str, bool]:
        return {name: self.enabled(name) for name in sorted(GATES)}

    def __str__(self) -> str:
        return ",".join(f"{name}={str(on).lower()}" for name, on in sorted(self.chosen.items()))


NO_GATES: Final = FeatureGates({})
"""Every gate at its default."""


def parse_gates(text: str) -> FeatureGates:
    """``Name=bool,...``. Raises ValueError for an unknown name or a value that is no bool."""
    chosen = {}
    for entry in filter(None, text.split(",")):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals:
            raise ValueError(f"missing bool value for {name}")
        if name not in GATES:
            raise ValueError(f"unrecognized feature gate: {name} (one of {', '.join(GATES)})")
        try:
            chosen[name] = parse_bool(value)
        except ValueError as error:
            raise ValueError(f"invalid value of {name}={value}: {error}") from None
    return FeatureGates(chosen)
