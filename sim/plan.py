"""What a seed decides before anything happens: the cluster, its surroundings, its clients.

Every run draws a different lot: one has five members on a bad network, the next three with slow
disks and nothing else. Faults that come all at once in every run would hide each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from sim.network import Weather

DURATION = 30.0
"""Seconds with clients and faults."""


@dataclass(slots=True)
class Faults:
    """Mean seconds between two faults of a kind; 0: there are none."""

    kill: float = 0.0
    power: float = 0.0
    blackout: float = 0.0
    """Of all members at once."""
    pause: float = 0.0
    partition: float = 0.0
    slow_link: float = 0.0
    slow_disk: float = 0.0
    disk_error: float = 0.0
    client_cut: float = 0.0
    usurp: float = 0.0
    """Another member is made leader while the old one goes on writing its log."""
    ambush: float = 0.0
    """Right after a message of some kind was sent."""
    transfer: float = 0.0
    membership: float = 0.0


@dataclass(slots=True)
class Plan:
    seed: int
    members: int = 3
    duration: float = DURATION
    clients: int = 8
    think: float = 0.05
    """Seconds between two requests of a client, on average."""
    window: int = 1
    """Requests that a client has under way at the most."""
    keys: int = 8
    watchers: int = 3
    lease_clients: int = 2
    compaction: float = 4.0
    """Mean seconds between compactions; 0: none."""
    weather: Weather = field(default_factory=Weather)
    faults: Faults = field(default_factory=Faults)
    clock_offset: float = 0.0
    clock_drift: float = 0.0
    snapshot_count: int = 200
    catchup_entries: int = 50
    heartbeat_ms: int = 100
    election_ms: int = 1000
    pre_vote: bool = True

    def settings(self) -> dict[str, object]:
        """Of each member."""
        return {
            "snapshot_count": self.snapshot_count,
            "snapshot_catchup_entries": self.catchup_entries,
            "heartbeat_interval": self.heartbeat_ms,
            "election_timeout": self.election_ms,
            "pre_vote": self.pre_vote,
            "max_snapshots": 3,
            "max_wals": 3,
        }


def draw(seed: int, duration: float = DURATION) -> Plan:
    """The plan of a seed."""
    random = Random(f"plan {seed}")
    plan = Plan(seed, duration=duration)
    plan.members = random.choices([1, 3, 5], [1, 14, 5])[0]
    plan.clients = random.randint(3, 12)
    plan.think = random.choice([0.02, 0.05, 0.1]) * plan.clients / 8
    plan.window = random.choice([1, 4, 12])
    plan.keys = random.choice([2, 6, 12])
    plan.watchers = random.randint(1, 5)
    plan.lease_clients = random.choice([0, 2, 8])
    plan.compaction = random.choice([0.0, 2.0, 6.0])
    plan.weather = _weather(random)
    plan.faults = _faults(random)
    if plan.faults.membership and random.random() < 0.5:
        # Changes are refused while members are ill, so some runs let them be well.
        plan.faults.kill = plan.faults.power = plan.faults.blackout = 0.0
        plan.faults.pause = plan.faults.ambush = 0.0
    plan.clock_offset = random.choice([0.0, 0.5, 100.0])
    plan.clock_drift = random.choice([0.0, 0.001, 0.05])
    plan.snapshot_count = random.choice([50, 200, 1000])
    plan.catchup_entries = random.choice([5, 50, 500])
    plan.pre_vote = random.random() < 0.8
    plan.heartbeat_ms, plan.election_ms = random.choice([(50, 500), (100, 1000), (100, 1000)])
    return plan


def _weather(random: Random) -> Weather:
    return Weather(
        delay=random.choice([0.0002, 0.001, 0.005]),
        jitter=random.choice([0.0005, 0.002, 0.01]),
        loss=random.choice([0.0, 0.0, 0.01, 0.05]),
        repeats=random.choice([0.0, 0.0, 0.02]),
        in_order=random.random() < 0.6,
        holds=random.random() < 0.5,
    )


def _faults(random: Random) -> Faults:
    """Some kinds, more or less often."""

    def sometimes(chance: float, *means: float) -> float:
        return random.choice(means) if random.random() < chance else 0.0

    return Faults(
        kill=sometimes(0.5, 3.0, 8.0),
        power=sometimes(0.5, 3.0, 8.0),
        blackout=sometimes(0.25, 8.0, 15.0),
        pause=sometimes(0.4, 3.0, 8.0),
        partition=sometimes(0.6, 3.0, 8.0),
        slow_link=sometimes(0.3, 5.0),
        slow_disk=sometimes(0.3, 5.0),
        disk_error=sometimes(0.3, 4.0),
        client_cut=sometimes(0.3, 5.0),
        usurp=sometimes(0.5, 2.0, 5.0),
        ambush=sometimes(0.5, 1.5, 5.0),
        transfer=sometimes(0.4, 3.0, 8.0),
        membership=sometimes(0.4, 0.5, 2.0),
    )
