"""One setting: a field of `ServerConfig` that carries its flag, its YAML key and its help."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar

from kvorum.config.kinds import Kind

T = TypeVar("T")

SAME: Final = "<the name>"


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    """As on the command line, without dashes in front."""
    attribute: str
    """The field of `ServerConfig`."""
    kind: Kind[Any]
    default: Any
    section: str
    """The heading of the help under which it stands."""
    text: str
    yaml: str
    """Dotted path of its key in a configuration file; empty without one."""
    is_flag: bool
    deprecated: str
    """What to say when it is used, empty when it is not deprecated."""
    effective: str
    """What a default that stands for something else comes to."""

    @property
    def environment(self) -> str:
        return environment_name(self.name)


def environment_name(name: str) -> str:
    return "ETCD_" + name.upper().replace("-", "_")


def setting(
    kind: Kind[T],
    default: T,
    text: str,
    *,
    yaml: str | None = SAME,
    flag: bool = True,
    deprecated: str = "",
    effective: str = "",
) -> T:
    """A dataclass field with the makings of a `Setting` in its metadata."""
    makings = {
        "kind": kind,
        "text": text,
        "yaml": yaml,
        "flag": flag,
        "deprecated": deprecated,
        "effective": effective,
    }
    made: T = field(default=default, metadata=makings)
    return made


def settings_of(section: type) -> list[Setting]:
    """The settings that a section's class declares, in order."""
    found = []
    for declared in fields(section):
        name = declared.name.replace("_", "-")
        makings = dict(declared.metadata)
        yaml = makings.pop("yaml")
        found.append(
            Setting(
                name=name,
                attribute=declared.name,
                default=declared.default,
                section=section.SECTION,  # type: ignore[attr-defined] # every section has it
                yaml=name if yaml == SAME else yaml or "",
                is_flag=makings.pop("flag"),
                **makings,
            )
        )
    return found
