"""Where the state is kept that sessions share: here, at the supervisor for all workers, in Redis for all replicas."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from popproxy.auth.throttle import leaks, lifetimes
from popproxy.config.loader import Loaded
from popproxy.config.model import Config
from popproxy.config.model_shared import SharedState as Section
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, Problem
from popproxy.observe.metrics import Metrics
from popproxy.state.local import LocalState
from popproxy.state.mirrored import MirroredState
from popproxy.state.store import Store
from popproxy.state.workers import SupervisorStore
from popproxy.types import Secret

INSTALL_REDIS = "pip install 'popproxy[redis]'"
SHORTEST_KEY = 32
"""Octets of the secret that replicas have in common; 24 random ones make 32 in base64."""


@dataclass(frozen=True, slots=True)
class SharedSecrets:
    """What is read for the section shared_state before the privileges are dropped."""

    key: Secret
    password: Secret | None = None


def read_shared_secrets(loaded: Loaded) -> SharedSecrets | None:
    """Import the library and read the secrets, while root may; None without the section. Raises ConfigError."""
    section = loaded.config.shared_state
    return None if section is None else read_secrets(str(loaded.path), section)


def read_secrets(where: str, section: Section) -> SharedSecrets:
    """See `read_shared_secrets`. Raises ConfigError with every problem."""
    problems: list[Problem] = []
    try:
        import popproxy.state.redis_store  # noqa: F401, PLC0415 - an extra, and soon only root could read it
    except ImportError as error:
        problems.append(Problem(where, "shared_state", f"redis-py is not installed: {error}", INSTALL_REDIS))
    password = key = None
    try:
        key = resolve_secret(section.key, "shared_state.key")
        if len(key.reveal()) < SHORTEST_KEY:
            what = f"is shorter than {SHORTEST_KEY} characters: names could be guessed"
            problems.append(Problem(where, "shared_state.key", what, "make one: openssl rand -base64 32"))
    except ConfigError as error:
        problems += error.problems
    try:
        password = None if section.password is None else resolve_secret(section.password, "shared_state.password")
    except ConfigError as error:
        problems += error.problems
    if problems or key is None:
        raise ConfigError(problems)
    return SharedSecrets(key, password)


def make_state(
    config: Config, metrics: Metrics, secrets: SharedSecrets | None, supervisor: socket.socket | None
) -> LocalState | MirroredState:
    """`supervisor` is a socket to it, which has a StateServer at the other end; None if there is none.

    With Redis each worker is a member by itself: it need not go through its supervisor.
    """
    kinds = leaks(config.penalties), lifetimes(config.penalties)
    if config.shared_state is not None and secrets is not None:
        if supervisor is not None:
            supervisor.close()
        return MirroredState(redis_store(config.shared_state, secrets, metrics), *kinds, metrics, kind="redis")
    if supervisor is None:
        return LocalState(*kinds)
    return MirroredState(SupervisorStore(supervisor), *kinds, metrics, kind="workers")


def redis_store(section: Section, secrets: SharedSecrets, metrics: Metrics) -> Store:
    """The Redis of the configuration; nothing is connected yet."""
    from popproxy.state.redis_client import RedisPlace, RedisTls  # noqa: PLC0415 - an optional library
    from popproxy.state.redis_store import RedisStore  # noqa: PLC0415

    url = section.url
    place = RedisPlace(
        kind=url.kind, servers=url.servers, path=url.path, primary=url.primary, database=url.database,
        username=section.username, password=secrets.password,
        tls=RedisTls(section.ca, section.cert, section.cert_key) if url.tls else None, timeout=section.timeout,
    )  # fmt: skip
    return RedisStore(place, secrets.key, metrics, prefix=section.prefix, lifetime=section.lifetime)
