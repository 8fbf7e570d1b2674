"""The connection to Redis: one node, what Sentinel says is the primary, or a cluster. The only home of redis-py."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    NoScriptError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from popproxy.state.store import StoreAway
from popproxy.types import Address, Secret

_ATTEMPTS: Final = Retry(NoBackoff(), 0)
"""None but the first: who asks goes on without Redis at once, and comes again by itself."""


@dataclass(frozen=True, slots=True)
class RedisTls:
    """Without `ca` the system's authorities count. `cert` and `key` are for a server that wants one of ours."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """Where Redis is and how to log in there. `timeout` is in seconds, for connecting and for each answer.

    `servers` are the nodes, the sentinels (who are asked for `primary`), or some nodes of the cluster; none if it is at
    the Unix socket `path`.
    """

    kind: Literal["node", "sentinel", "cluster"]
    servers: tuple[Address, ...] = ()
    path: Path | None = None
    primary: str = ""
    database: int = 0
    username: str | None = None
    password: Secret | None = None
    tls: RedisTls | None = None
    timeout: float = 0.5

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        what = {"node": "", "sentinel": f"{self.primary} by ", "cluster": "the cluster of "}[self.kind]
        return what + ", ".join(map(str, self.servers))


class Client:
    """Runs scripts there. Every method raises StoreAway."""

    def __init__(self, place: RedisPlace) -> None:
        self._place = place
        self._redis: Redis | RedisCluster | None = None
        self._sentinel: Sentinel | None = None
        self._digests: dict[str, str] = {}

    async def open(self) -> None:
        """Connect anew, and ask for a sign of life. What is left of connections before would only fail once more."""
        await self.close()
        self._redis = self._made()
        await self._do("PING")

    async def close(self) -> None:
        """Hang up. Raises nothing."""
        redis, self._redis = self._redis, None
        sentinel, self._sentinel = self._sentinel, None
        for each in (redis, *(() if sentinel is None else sentinel.sentinels)):
            if each is not None:
                with contextlib.suppress(Exception):
                    await each.aclose()

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        """What the script answers; texts are bytes."""
        digest = self._digests.get(script)
        if digest is None:
            digest = self._digests[script] = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return await self._do("EVALSHA", digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._do("EVAL", script, len(keys), *keys, *arguments)

    async def _do(self, *command: str | int | bytes) -> Any:
        redis = self._redis
        if redis is None:
            raise StoreAway(f"Redis at {self._place} is not connected", "lost")
        try:
            return await redis.execute_command(*command)
        except NoScriptError:
            raise
        except Exception as error:  # not all that the library raises is a RedisError
            raise _away(self._place, error) from None

    def _made(self) -> Redis | RedisCluster:
        place = self._place
        common: dict[str, Any] = {
            "username": place.username,
            "password": None if place.password is None else place.password.reveal().decode("utf-8", "surrogateescape"),
            "socket_timeout": place.timeout,
            "socket_connect_timeout": place.timeout,
            "protocol": 2,
            "retry": _ATTEMPTS,
            **_tls(place.tls),
        }
        if place.kind == "cluster":
            nodes = [ClusterNode(server.host, server.port) for server in place.servers]
            return RedisCluster(startup_nodes=nodes, **{**common, "retry": Retry(NoBackoff(), 1)})
        common["db"] = place.database
        if place.kind == "sentinel":
            servers = [(server.host, server.port) for server in place.servers]
            make: Any = Sentinel  # which has no types
            sentinel = self._sentinel = make(servers, sentinel_kwargs={**common, "db": 0}, **common)
            found: Redis = sentinel.master_for(place.primary)
            return found
        if place.path is not None:
            return Redis(unix_socket_path=str(place.path), **common)
        return Redis(host=place.servers[0].host, port=place.servers[0].port, **common)


def _tls(tls: RedisTls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    return {
        "ssl": True,
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        "ssl_ca_certs": None if tls.ca is None else str(tls.ca),
        "ssl_certfile": None if tls.cert is None else str(tls.cert),
        "ssl_keyfile": None if tls.key is None else str(tls.key),
    }


def _away(place: RedisPlace, error: BaseException) -> StoreAway:
    """What has happened, in our words: the library's may hold what was sent."""
    cause = error.__cause__ or error.__context__ or error
    refused = isinstance(error, AuthenticationError | AuthorizationError) or "username-password" in str(error)
    if refused or isinstance(error, NoPermissionError):
        text = "the user may not do there what is needed" if isinstance(error, NoPermissionError) else "login refused"
        return StoreAway(f"Redis at {place}: {text}", "login")
    if isinstance(error, RedisTimeoutError | TimeoutError):
        return StoreAway(f"Redis at {place} has not answered in time", "timeout")
    if isinstance(error, ssl.SSLError) or isinstance(cause, ssl.SSLError):
        why = getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or "the handshake has failed"
        return StoreAway(f"Redis at {place}: TLS: {why}", "tls")
    if isinstance(cause, ConnectionRefusedError | FileNotFoundError) or "refused" in str(error).lower():
        return StoreAway(f"Redis at {place} refuses connections", "refused")
    if isinstance(error, ResponseError):
        return StoreAway(f"Redis at {place}: {str(error)[:100]}", "other")
    if isinstance(error, RedisConnectionError | OSError):
        return StoreAway(f"the connection to Redis at {place} is lost", "lost")
    return StoreAway(f"Redis at {place}: {type(error).__name__}", "other")
