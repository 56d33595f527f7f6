"""The network of namespaces does what it is told: packets arrive, late, or not at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from chaos.network import Network, both_ways, inside, why_not
from support.need import need

_RECEIVER = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 9))
s.settimeout(20)
print("ready", flush=True)
while True:
    text, _ = s.recvfrom(100)
    print(text.decode(), time.monotonic(), flush=True)
"""
_SENDER = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(int(sys.argv[3])):
    s.sendto(f"{sys.argv[2]} {time.monotonic()}".encode(), (sys.argv[1], 9))
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    need(not why_not(), why_not())
    made = Network(2)
    yield made
    made.close()


class Receiver:
    """Listens at a host; what came is known once a packet known to come has come."""

    def __init__(self, network: Network, number: int) -> None:
        self._network = network
        self.number = number
        place = network.places[number]
        self._process = subprocess.Popen(
            inside(place.namespace, [sys.executable, "-c", _RECEIVER, place.peer]),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def until(self, word: str) -> list[tuple[str, float]]:
        """Words that came, with how long they took, up to and without this one."""
        came = []
        while True:
            text, took = self.next()
            if text == word:
                return came
            came.append((text, took))

    def next(self) -> tuple[str, float]:
        text, sent, got = self._line().split()
        return text, float(got) - float(sent)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def receivers(network: Network) -> Iterator[list[Receiver]]:
    made = [Receiver(network, number) for number in (0, 1)]
    yield made
    for receiver in made:
        receiver.end()


def send(network: Network, source: int, target: int, word: str, count: int = 1) -> None:
    sender, receiver = network.places[source], network.places[target]
    command = [sys.executable, "-c", _SENDER, receiver.peer, word, str(count)]
    subprocess.run(inside(sender.namespace, command), check=True, timeout=20)


def test_one_way_is_cut(network: Network, receivers: list[Receiver]) -> None:
    network.disturb(cut={(0, 1)})
    send(network, 0, 1, "lost")
    send(network, 1, 0, "there")
    send(network, 1, 0, "end")
    assert [word for word, _ in receivers[0].until("end")] == ["there"]
    network.heal()
    send(network, 0, 1, "end")
    assert receivers[1].until("end") == []


def test_both_ways_are_cut(network: Network, receivers: list[Receiver]) -> None:
    network.disturb(cut=both_ways(0, 1))
    send(network, 0, 1, "lost")
    send(network, 1, 0, "lost")
    network.heal()
    for source, target in (0, 1), (1, 0):
        send(network, source, target, "end")
        assert receivers[target].until("end") == []


def test_packets_are_late(network: Network, receivers: list[Receiver]) -> None:
    network.disturb(delay=(0.2, 0.3))
    send(network, 0, 1, "late", 5)
    took = [receivers[1].next() for _ in range(5)]  # in any order: each has a delay of its own
    network.heal()
    send(network, 0, 1, "end")
    assert receivers[1].until("end") == []
    assert min(seconds for _, seconds in took) >= 0.2


def test_packets_are_lost(network: Network, receivers: list[Receiver]) -> None:
    network.disturb(loss=0.5)
    send(network, 0, 1, "some", 200)
    network.heal()
    send(network, 0, 1, "end")
    assert 50 < len(receivers[1].until("end")) < 150
