"""The section about the operators' console over SSH."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from popproxy.config.base import Model
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import Duration, ListenAddress, LocalPath


class ConsoleOperator(Model):
    """One operator: what he may do, and how he proves who he is."""

    role: Literal["viewer", "operator"] = "viewer"
    """viewer: looks. operator: also ends sessions, takes servers out of service, clears penalties, traces users."""
    authorized_keys: LocalPath | None = None
    """His public keys, as OpenSSH has them, options such as from= included; read at each login."""
    principals: list[Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")]] = []
    """His Kerberos principals: alice/admin@EXAMPLE.COM."""


class Console(Model):
    """An SSH server for operators: popproxy's own commands, no shell, no forwarding, no files."""

    listen: ListenAddress = Field(examples=["127.0.0.1:9122"])
    """Where it listens."""
    host_key: SecretSource = Field(examples=[{"file": "/etc/popproxy/console_host_key"}])
    """Its private key, as ssh-keygen makes it: ssh-keygen -t ed25519 -N '' -f console_host_key."""
    operators: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], ConsoleOperator] = Field(
        min_length=1, examples=[{"alice": {"role": "operator", "authorized_keys": "/etc/popproxy/alice.keys"}}]
    )
    """Who may come, by the name to log in with."""
    keytab: LocalPath | None = None
    """The key of host/NAME, for logins with Kerberos."""
    host: str | None = None
    """The NAME of that principal. null: the machine's full name."""
    idle: Duration = 600.0
    """Who says nothing for so long is logged out."""
    connections: int = Field(default=8, ge=1, le=1000)
    """Operators at a time, at all workers together, and with shared_state at all replicas. Whoever has not yet logged
    in does not count."""

    @field_validator("idle")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 10m")
        return value
