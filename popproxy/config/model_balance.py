"""The sections of a pool about its servers: which one a login goes to, how much they can take, how they are checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from popproxy.config.base import Model
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import Duration


class Balance(Model):
    """How a login finds its server among those of the pool, and how many sessions a server can take."""

    choose: Literal["order", "weights", "hash"] = "order"
    """order: the first server that works. weights: by chance. hash: by the user's name there, so that each user has one
    server; if servers are added or taken away, only their users move."""
    weights: dict[str, Annotated[int, Field(ge=0, le=1000)]] = {}
    """With weights and hash: how much of all logins each server gets, by its name in servers; 1 for those not named. 0:
    only what others cannot take."""
    failures: int = Field(default=3, ge=1, le=100)
    """A server at which so many logins or checks in a row have failed is down: others are tried first."""
    retry: Duration = 5.0
    """It is asked again after this time, then after twice that, up to twelve times."""
    slow_start: Duration = 30.0
    """A server that was down gets a tenth of its logins at first, and all after this time. 0s: all at once."""
    next_after: Duration = 0.5
    """With shared maildrops: when a server has kept a login waiting so long, the next one is tried beside it, and the
    one that is ready first gets the password, alone. The same for several addresses of one name."""
    sessions: int | None = Field(default=None, ge=1)
    """Connections that each server can take at a time from all workers together, and with shared_state from all
    replicas. More logins wait, the users in turn. null: any number."""
    queue: int = Field(default=200, ge=0)
    """Logins that may wait in each worker; more are answered [SYS/TEMP]."""
    queue_wait: Duration = 20.0
    """How long they may wait; then the answer is [SYS/TEMP]."""

    @field_validator("retry", "next_after", "queue_wait")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 5s")
        return value


class Check(Model):
    """Asks each server regularly: connection, TLS, greeting; with a user also the login."""

    every: Duration = 10.0
    """Time between two checks of a server."""
    timeout: Duration = 5.0
    """Longest time for one."""
    user: str | None = Field(default=None, min_length=1)
    """Also log in, as this user. His maildrop should be empty and nobody else's."""
    password: SecretSource | None = None
    """Where his password is."""

    @field_validator("every", "timeout")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 10s")
        return value
