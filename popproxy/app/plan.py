"""What the supervisor knows of a configuration: where to listen, as whom, how many workers.

A worker reads the file, with all the modules that takes, and tells the supervisor this much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from popproxy.types import Address

if TYPE_CHECKING:
    from popproxy.config.loader import Loaded


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address to listen at, and the key of the configuration that says so, for messages."""

    name: str
    host: str
    port: int
    key: str

    @property
    def address(self) -> Address:
        """Where."""
        return Address(self.host, self.port)


@dataclass(frozen=True, slots=True)
class ControlPlan:
    """The section control, with whom it belongs to. `chosen`: its place stands in the file, and must be had."""

    socket: str | None
    chosen: bool
    group: str | None
    users: tuple[str, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The supervisor's part of a configuration. Times in seconds."""

    version: str
    path: str
    listeners: tuple[Endpoint, ...]
    http: Endpoint | None
    control: ControlPlan
    console: Endpoint | None
    user: str | None
    group: str | None
    workers: int
    drain: float
    reload: float
    level: Literal["debug", "info", "warning", "error"]
    format: Literal["auto", "console", "json"]
    what: str
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """For a message."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Plan:
        """From a message; fields that a newer version has added are left out."""
        known = {key: value for key, value in told.items() if key in cls.__slots__}
        control = dict(known["control"])
        for names in ("users", "groups"):
            control[names] = tuple(control[names])
        return cls(
            **{
                **known,
                "listeners": tuple(Endpoint(**one) for one in known["listeners"]),
                "http": None if known["http"] is None else Endpoint(**known["http"]),
                "control": ControlPlan(**control),
                "console": None if known["console"] is None else Endpoint(**known["console"]),
                "warnings": tuple(known["warnings"]),
            }
        )

    @property
    def names(self) -> list[str]:
        """Of the listeners, each once."""
        return list(dict.fromkeys(endpoint.name for endpoint in self.listeners))


def plan_of(loaded: Loaded, version: str, workers: int, what: str) -> Plan:
    """The plan of a configuration that has been read; `what` describes it in a line."""
    config = loaded.config
    http, control = config.http.listen, config.control
    console = None if config.console is None else config.console.listen
    return Plan(
        version=version,
        path=str(loaded.path),
        listeners=tuple(
            Endpoint(listener.name, address.host, address.port, f"listeners[{number}].listen[{place}]")
            for number, listener in enumerate(config.listeners)
            for place, address in enumerate(listener.listen)
        ),
        http=None if http is None else Endpoint("http", http.host, http.port, "http.listen"),
        control=ControlPlan(
            None if control.socket is None else str(control.socket),
            "socket" in control.model_fields_set,
            control.group,
            tuple(control.users),
            tuple(control.groups),
        ),
        console=None if console is None else Endpoint("console", console.host, console.port, "console.listen"),
        user=config.process.user,
        group=config.process.group,
        workers=workers,
        drain=config.timeouts.drain,
        reload=config.timeouts.reload,
        level=config.logging.level,
        format=config.logging.format,
        what=what,
        warnings=tuple(str(warning) for warning in loaded.warnings),
    )
