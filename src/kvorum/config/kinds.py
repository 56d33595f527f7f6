"""The kinds of settings: how each is read from a flag, from YAML, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from kvorum import durations
from kvorum.config.gates import FeatureGates, parse_gates
from kvorum.config.numbers import parse_bool, parse_int
from kvorum.config.urls import URL, parse_urls

T = TypeVar("T")


class Kind(Generic[T]):
    """`parse` reads the text of a flag or a variable; both it and `load` raise ValueError."""

    is_bool = False

    def __init__(self, noun: str, parse: Callable[[str], T], show: Callable[[T], str]) -> None:
        self.noun = noun
        self.parse = parse
        self.show = show

    def load(self, value: object) -> T:
        """From a YAML value that is not null. The file's types are strict, but a number or a bool
        where a text is wanted stands for its text, as in etcd."""
        return self.parse(_text(value))


class _Bool(Kind[bool]):
    is_bool = True

    def load(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"true or false is wanted, not {value!r}")
        return value


class _Int(Kind[int]):
    def __init__(self, noun: str, low: int, high: int) -> None:
        super().__init__(noun, lambda text: parse_int(text, low, high), str)
        self._low, self._high = low, high

    def load(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"a whole number is wanted, not {value!r}")
        if not self._low <= value <= self._high:
            raise ValueError(f"{value} is out of range ({self._low} to {self._high})")
        return value


class _Duration(Kind[float]):
    """Seconds here; Go's notation on the command line, integer nanoseconds in YAML."""

    def __init__(self) -> None:
        super().__init__("duration", self._parse, show_seconds)

    @staticmethod
    def _parse(text: str) -> float:
        return durations.parse(text) / durations.SECOND

    def load(self, value: object) -> float:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(
                f"a duration in a configuration file is an integer of nanoseconds "
                f"(600000000000 for 10m), not {value!r}"
            )
        return value / durations.SECOND


class _Urls(Kind[tuple[URL, ...]]):
    def __init__(self) -> None:
        super().__init__("urls", lambda text: parse_urls(text) if text else (), _join)


class _Strings(Kind[tuple[str, ...]]):
    """A comma-joined list; in YAML a list of texts."""

    def load(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError(f"a list of texts is wanted, not {value!r}")
        return tuple(_text(item) for item in value)


class _StringSet(_Strings):
    """The same, sorted and without repeats."""

    def load(self, value: object) -> tuple[str, ...]:
        return tuple(sorted(set(super().load(value))))


class _JoinedStrings(Kind[tuple[str, ...]]):
    """A comma-joined list, in YAML too."""


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"a text is wanted, not {value!r}")


def _join(values: tuple[Any, ...]) -> str:
    return ",".join(map(str, values))


def show_seconds(seconds: float) -> str:
    return durations.render(round(seconds * durations.SECOND))


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _unique(text: str) -> tuple[str, ...]:
    return tuple(sorted(set(_split(text))))


def _origins(text: str) -> tuple[str, ...]:
    """The origins of --cors: ``*``, or URLs."""
    return (text,) if text in ("", "*") else tuple(str(url) for url in parse_urls(text))


class Choice(Kind[str]):
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        super().__init__("word", self._parse, str)
        self.words = words

    def _parse(self, text: str) -> str:
        if text not in self.words:
            raise ValueError(f"invalid value (one of {', '.join(filter(None, self.words))})")
        return text


class Words(Choice):
    """A comma-joined list of such words."""

    def _parse(self, text: str) -> str:
        for word in text.split(","):
            super()._parse(word)
        return text


STRING: Final = Kind[str]("string", str, str)
BOOL: Final = _Bool("bool", parse_bool, lambda value: "true" if value else "false")
INT: Final = _Int("int", -(1 << 63), (1 << 63) - 1)
UINT: Final = _Int("uint", 0, (1 << 64) - 1)
UINT32: Final = _Int("uint32", 0, (1 << 32) - 1)
DURATION: Final = _Duration()
URLS: Final = _Urls()
STRINGS: Final = _Strings("list", _split, _join)
STRING_SET: Final = _StringSet("list", _unique, _join)
HOSTS: Final = _JoinedStrings("list", _unique, _join)
ORIGINS: Final = _JoinedStrings("list", _origins, _join)
GATES: Final = Kind[FeatureGates]("Name=bool list", parse_gates, str)
