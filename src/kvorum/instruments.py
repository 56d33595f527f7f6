"""Counters, gauges and histograms that cost an attribute increment.

They have no locks: each one is written by one thread (the event loop, or the one worker thread
that it measures), and a scrape may read a value that is one step old.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Generic, Protocol, TypeVar

MAX_CHILDREN: Final = 2000
"""Label sets per family. Some label values come from clients (their API version), who must not be
able to fill our memory; 2000 holds every gRPC method with every status code twice over."""

OVERFLOW: Final = "other"
"""The value of every label of the child that counts for all label sets beyond the limit."""


class Counter:
    """``counter.value += 1``, or `follow` a callable that is asked at each scrape."""

    __slots__ = ("source", "value")

    def __init__(self) -> None:
        self.value: float = 0
        self.source: Callable[[], float] | None = None

    def follow(self, source: Callable[[], float]) -> None:
        self.source = source

    def read(self) -> float:
        return self.value if self.source is None else self.source()


class Gauge(Counter):
    """``gauge.value = n``, or `follow`, as a counter does."""

    __slots__ = ()


class Histogram:
    """Observations sorted into buckets by their upper bound (inclusive); the last one is +Inf."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        assert list(bounds) == sorted(set(bounds)), f"bounds must increase: {bounds}"
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_n(self, value: float, n: int) -> None:
        """`n` observations of the same value: what a batch's members have in common."""
        self.counts[bisect_left(self.bounds, value)] += n
        self.sum += value * n

    @property
    def count(self) -> int:
        return sum(self.counts)


def exponential(start: float, factor: float, count: int) -> tuple[float, ...]:
    """`count` bounds, each `factor` times the one before, as Prometheus' Go library makes them:
    by repeated multiplication, so that the last digits are the same."""
    bounds = [start]
    while len(bounds) < count:
        bounds.append(bounds[-1] * factor)
    return tuple(bounds)


DEFAULT_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Prometheus' own default, used by the gRPC handling time."""

ChildT = TypeVar("ChildT", Counter, Gauge, Histogram)


class Family(Generic[ChildT]):
    """A name, its help text and its children by label values; without labels, one child."""

    __slots__ = ("_children", "_make", "generation", "help", "kind", "labels", "name", "source")

    def __init__(
        self, kind: str, name: str, help: str, labels: tuple[str, ...], make: Callable[[], ChildT]
    ) -> None:
        self.kind = kind
        self.name = name
        self.help = help
        self.labels = labels
        self._make: Callable[[], ChildT] = make
        self._children: dict[tuple[str, ...], ChildT] = {}
        self.generation = 0
        """Changes whenever a child comes or goes."""
        self.source: Callable[[], Mapping[tuple[str, ...], float]] | None = None
        if not labels:
            self._children[()] = make()

    def with_labels(self, *values: str) -> ChildT:
        """The child of these label values, made at need. Keep it where it is used often."""
        child = self._children.get(values)
        if child is None:
            child = self._add(values)
        return child

    def _add(self, values: tuple[str, ...]) -> ChildT:
        assert len(values) == len(self.labels), f"{self.name} has labels {self.labels}: {values}"
        if len(self._children) >= MAX_CHILDREN:
            values = (OVERFLOW,) * len(self.labels)
        self.generation += 1
        return self._children.setdefault(values, self._make())

    def remove(self, *values: str) -> None:
        """Forget the child, so that it is no longer listed."""
        self._children.pop(values, None)
        self.generation += 1

    def clear(self) -> None:
        self._children.clear()
        self.generation += 1

    def follow(self, source: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
        """Mirror a mapping from label values to values that is asked for at each scrape."""
        self.source = source

    def refresh(self) -> None:
        """Take the mapping that this family follows, if it does; a scrape begins with it."""
        if self.source is None:
            return
        wanted = self.source()
        for gone in self._children.keys() - wanted.keys():
            self.remove(*gone)
        for values, value in wanted.items():
            child = self.with_labels(*values)
            assert isinstance(child, Counter), f"{self.name} holds no plain values"
            child.value = value

    def children(self) -> list[tuple[tuple[str, ...], ChildT]]:
        """A copy, so that a scrape in another thread may walk it."""
        return list(self._children.items())


class AnyFamily(Protocol):
    """What a scrape needs of a family of any kind."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def generation(self) -> int: ...
    def refresh(self) -> None: ...
    def children(self) -> Sequence[tuple[tuple[str, ...], Counter | Histogram]]: ...


class Registry:
    """The families of one member, in the order of declaration; a name is declared once."""

    def __init__(self) -> None:
        self._families: dict[str, AnyFamily] = {}

    def __iter__(self) -> Iterator[AnyFamily]:
        return iter(self._families.values())

    def _declare(self, family: AnyFamily) -> None:
        assert family.name not in self._families, f"{family.name} is declared twice"
        self._families[family.name] = family

    def counters(self, name: str, help: str, *labels: str) -> Family[Counter]:
        family = Family("counter", name, help, labels, Counter)
        self._declare(family)
        return family

    def counter(self, name: str, help: str) -> Counter:
        return self.counters(name, help).with_labels()

    def gauges(self, name: str, help: str, *labels: str) -> Family[Gauge]:
        family = Family("gauge", name, help, labels, Gauge)
        self._declare(family)
        return family

    def gauge(self, name: str, help: str) -> Gauge:
        return self.gauges(name, help).with_labels()

    def sampled(self, kind: str, name: str, help: str, source: Callable[[], float]) -> None:
        """A counter or gauge without labels that something else keeps; asked at each scrape."""
        family: Family[Counter] = Family(kind, name, help, (), Counter)
        family.with_labels().follow(source)
        self._declare(family)

    def histograms(
        self, name: str, help: str, bounds: Sequence[float], *labels: str
    ) -> Family[Histogram]:
        family = Family("histogram", name, help, labels, lambda: Histogram(bounds))
        self._declare(family)
        return family

    def histogram(self, name: str, help: str, bounds: Sequence[float]) -> Histogram:
        return self.histograms(name, help, bounds).with_labels()
