"""The sections of the configuration about guessers, and about the socket that operators' commands go through."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from popproxy.config.base import Model
from popproxy.config.units import Duration, IpNetwork, LocalPath

DEFAULT_SOCKET = Path("/run/popproxy/control.sock")
MAX_SOCKET_PATH = 100
"""Octets: Linux takes 107, and it is made under another name first."""


Count = Annotated[int, Field(ge=1, le=1_000_000)]


class AddressAllowance(Model):
    """For one address: IPv4 as it is, IPv6 by its /64."""

    free: Count = 20
    """Wrong passwords that are taken at once."""
    per_minute: Count = 20
    """Wrong passwords a minute that are forgiven, which is the rate at which guessing goes on."""


class NetworkAllowance(Model):
    """For an IPv6 /48, which one customer may have whole."""

    free: Count = 100
    """Wrong passwords that are taken at once."""
    per_minute: Count = 60
    """Wrong passwords a minute that are forgiven."""


class PairAllowance(Model):
    """For one user from one address."""

    free: Count = 10
    """Wrong passwords that are taken at once."""
    per_minute: Count = 1
    """Wrong passwords a minute that are forgiven."""


class AccountAllowance(Model):
    """For one user, whatever the address. Addresses from which he has logged in are exempt."""

    free: Count = 10
    """Wrong passwords that are taken at once."""
    per_minute: Count = 6
    """Wrong passwords a minute that are forgiven."""
    newcomers: int = Field(default=100, ge=0, le=1_000_000)
    """As many more are taken from addresses that have not been wrong about this user lately, so that the user himself
    gets in from a new address while others guess."""


class TotalAllowance(Model):
    """For all users and addresses together; beyond it, only addresses that were wrong lately are slowed down."""

    free: Count = 1000
    """Wrong passwords that are taken at once."""
    per_minute: Count = 600
    """Wrong passwords a minute that are forgiven."""


class Penalties(Model):
    """Against guessing passwords. The same wrong password of a user counts once, however often it is repeated."""

    enabled: bool = True
    """false: nobody is slowed down."""
    allow: list[IpNetwork] = []
    """Networks that are never slowed down, and whose failures do not count: webmail, monitoring."""
    answer: Literal["refuse", "tarpit"] = "refuse"
    """What who is slowed down gets: [SYS/TEMP] after authentication.failure_delay (refuse) or after `tarpit`. The
    password is not looked at."""
    tarpit: Duration = 20.0
    """With answer: tarpit, how long the client waits."""
    address: AddressAllowance = AddressAllowance()
    """For one address: IPv4 as it is, IPv6 by its /64."""
    network: NetworkAllowance = NetworkAllowance()
    """For an IPv6 /48."""
    user_address: PairAllowance = PairAllowance()
    """For one user from one address."""
    account: AccountAllowance = AccountAllowance()
    """For one user from all addresses but those from which he has logged in."""
    total: TotalAllowance = TotalAllowance()
    """For everybody together; then addresses that were wrong lately are slowed down."""
    memory: Duration = 3600.0
    """How long an address counts as one that was wrong lately."""
    known: Duration = 7 * 86400.0
    """How long an address from which a user has logged in is known as his."""

    @field_validator("tarpit", "memory", "known")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 1h")
        return value


class Control(Model):
    """The Unix socket through which the commands of operators reach the running proxy."""

    socket: LocalPath | None = DEFAULT_SOCKET
    """Where it is; its directory is made if popproxy starts as root. null: no socket, no such commands."""
    group: str | None = None
    """Its group, whose members may give commands; its mode is 0660. null: the group is that of process.group, and being
    in it is not enough."""
    users: list[str] = []
    """Users who may give commands, besides root and the user that popproxy is started as. To connect they must be in
    the socket's group."""
    groups: list[str] = []
    """More groups whose members may give commands. To connect they must be in the socket's group too."""

    @field_validator("socket")
    @classmethod
    def _fits(cls, value: Path | None) -> Path | None:
        if value is not None and len(bytes(value)) > MAX_SOCKET_PATH:
            raise ValueError(
                f"is {len(bytes(value))} octets long, and a Unix socket's name has at most {MAX_SOCKET_PATH}; "
                "write a shorter path, for example /run/popproxy/control.sock"
            )
        return value
