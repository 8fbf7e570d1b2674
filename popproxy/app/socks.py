"""From a pool's section socks to a way that its connections take. The library is imported only if there is one."""

from __future__ import annotations

from collections.abc import Mapping

from popproxy.backend.pool import Pool
from popproxy.config.model_socks import Socks
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, Problem
from popproxy.net.names import Resolver
from popproxy.net.reactor import Reactor
from popproxy.types import Secret

INSTALL = "pip install 'popproxy[socks]'"


def read_socks_password(where: str, at: str, socks: Socks) -> Secret | None:
    """Import the library, and read what the section of the pool `at` needs, while root may. Raises ConfigError."""
    try:
        from popproxy.backend.socks import printable  # noqa: PLC0415 - an optional library
    except ImportError as error:
        problem = Problem(where, f"{at}.socks", f"the SOCKS client is not installed: {error}", INSTALL)
        raise ConfigError([problem]) from None
    if socks.password is None:
        return None
    password = resolve_secret(socks.password, f"{at}.socks.password")
    if not printable(password):
        cure = "have a password of 1 to 255 printable ASCII characters"
        raise ConfigError([Problem(where, f"{at}.socks.password", "cannot be sent to a SOCKS proxy", cure)])
    return password


def lead_through_socks(
    pools: Mapping[str, Pool], passwords: Mapping[str, Secret], reactor: Reactor, resolver: Resolver
) -> None:
    """The pools know how they are reached; `passwords` of the SOCKS proxies by pool."""
    for name, pool in pools.items():
        socks = pool.config.socks
        if socks is None:
            continue
        from popproxy.backend.socks import SocksProxy  # noqa: PLC0415 - an optional library

        pool.transport = SocksProxy(socks, passwords.get(name), pool.config.source_address, reactor, resolver)
