"""The section of the configuration about what replicas share: where Redis is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, field_validator

from popproxy.config.base import Model
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import Duration, LocalPath, parse_address, quote
from popproxy.types import Address

REDIS_PORT = 6379
SENTINEL_PORT = 26379
_EXAMPLES = "redis://redis.example.com:6379, rediss:// for TLS, or unix:///run/redis/redis.sock"
_URL = re.compile(r"(rediss?)(?:\+(sentinel|cluster))?://([^/]*)(?:/(.*))?")

_KINDS: dict[str | None, Literal["node", "sentinel", "cluster"]] = {
    None: "node",
    "sentinel": "sentinel",
    "cluster": "cluster",
}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """Where Redis is. `text` is how it was written; `primary` the name that sentinels know it by."""

    text: str
    kind: Literal["node", "sentinel", "cluster"]
    servers: tuple[Address, ...] = ()
    path: Path | None = None
    primary: str = ""
    database: int = 0
    tls: bool = False

    def __str__(self) -> str:
        return self.text


def parse_redis_url(value: Any) -> RedisUrl:
    """``redis://host:port/database`` and its kin. Raises ValueError."""
    if isinstance(value, RedisUrl):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("unix://"):
        path = text.removeprefix("unix://")
        if not path.startswith("/"):
            raise ValueError(f"{quote(text)} names no socket; write for example unix:///run/redis/redis.sock")
        return RedisUrl(text, "node", path=Path(path))
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError(f"{quote(text)} is not where a Redis could be; write {_EXAMPLES}")
    scheme, kind, hosts, rest = match.groups()
    if "@" in hosts:
        raise ValueError("holds a user or a password; write them as username and password beside it")
    port = SENTINEL_PORT if kind == "sentinel" else REDIS_PORT
    servers = tuple(parse_address(host, port) for host in hosts.split(","))
    if not all(server.host for server in servers):
        raise ValueError(f"{quote(text)} has no host; write {_EXAMPLES}")
    if kind is None and len(servers) > 1:
        raise ValueError(f"{quote(text)} names several servers; write {scheme}+sentinel:// or {scheme}+cluster://")
    primary, _, database = (rest or "").partition("/") if kind == "sentinel" else ("", "", rest or "")
    if kind == "sentinel" and not primary:
        example = f"{scheme}+sentinel://{hosts}/mymaster"
        raise ValueError(f"does not say what the sentinels call the primary; write for example {example}")
    if kind == "cluster" and database:
        raise ValueError("names a database, and a cluster has only one; remove it")
    if not re.fullmatch(r"[0-9]{0,4}", database):
        raise ValueError(f"{quote(database)} is not the number of a database; write for example {scheme}://{hosts}/0")
    return RedisUrl(text, _KINDS[kind], servers, None, primary, int(database or 0), scheme == "rediss")


RedisAt = Annotated[
    RedisUrl,
    BeforeValidator(parse_redis_url),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(rediss?(\+(sentinel|cluster))?|unix)://.+$",
            "examples": ["rediss://redis.example.com:6379"],
        }
    ),
]


class SharedState(Model):
    """What replicas share in a Redis: penalties, limits of users, used tickets, orders of operators."""

    url: RedisAt = Field(examples=["rediss://redis.example.com:6379"])
    """redis://HOST:PORT/DATABASE, rediss:// with TLS, unix:///PATH, redis+sentinel://HOST,HOST/PRIMARY or
    redis+cluster://HOST,HOST; the last two with rediss, too."""
    key: SecretSource = Field(examples=[{"file": "/etc/popproxy/shared.key"}])
    """A secret of 32 characters or more that all replicas have: names in Redis are hashed under it, contents
    encrypted. Make it with `openssl rand -base64 32`."""
    username: str | None = Field(default=None, min_length=1)
    """The user of Redis's access control list; null: the default one."""
    password: SecretSource | None = None
    """Its password."""
    ca: LocalPath | None = None
    """CA certificates in PEM, for rediss. null: those of the system."""
    cert: LocalPath | None = None
    """A certificate to show to Redis, with its key if cert_key is not given."""
    cert_key: LocalPath | None = None
    """The key of that."""
    prefix: str = Field(default="popproxy", pattern=r"^[A-Za-z0-9_.-]{1,50}$")
    """What all keys begin with: {popproxy:0}:... Another one for another set of replicas in the same Redis."""
    timeout: Duration = 0.5
    """Longest wait for Redis. Who has waited in vain goes by this replica's share of the limits, as does everybody
    else until Redis answers again."""
    lifetime: Duration = 15.0
    """A replica that Redis has not heard of for so long has died, and its sessions count no more."""

    @field_validator("timeout")
    @classmethod
    def _timeout(cls, value: float) -> float:
        if not 0.02 <= value <= 10:
            raise ValueError("must be from 20ms to 10s: logins wait for it; write for example 500ms")
        return value

    @field_validator("lifetime")
    @classmethod
    def _lifetime(cls, value: float) -> float:
        if not 3 <= value <= 600:
            raise ValueError("must be from 3s to 10m; write for example 15s")
        return value
