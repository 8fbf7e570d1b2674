"""From the section tunnels to tunnels that pools can use. The library is imported only if there are any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from popproxy.backend.pool import Pool
from popproxy.backend.tunnels import Tunnels
from popproxy.config.loader import Loaded
from popproxy.config.model import Config
from popproxy.config.model_tunnels import Tunnel
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, Problem
from popproxy.net.reactor import Reactor
from popproxy.observe.metrics import Metrics

if TYPE_CHECKING:
    from popproxy.backend.ssh_connection import Credentials

INSTALL = "pip install 'popproxy[ssh]'"
INSTALL_GSSAPI = "pip install 'popproxy[kerberos]'"

TunnelKeys = Mapping[str, "Credentials"]
"""What each tunnel logs in with, by its name."""


def read_tunnel_keys(loaded: Loaded) -> TunnelKeys:
    """Import the library and read private keys, while root may. Raises ConfigError."""
    read: dict[str, Credentials] = {}
    problems: list[Problem] = []
    for name, tunnel in loaded.config.tunnels.items():
        try:
            read[name] = read_credentials(str(loaded.path), name, tunnel)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return read


def read_credentials(where: str, name: str, tunnel: Tunnel) -> Credentials:
    """What one tunnel logs in with. Raises ConfigError."""
    key = f"tunnels.{name}"
    try:
        from popproxy.backend.ssh_connection import read_credentials  # noqa: PLC0415 - an optional library
    except ImportError as error:
        raise ConfigError([Problem(where, key, f"the SSH client is not installed: {error}", INSTALL)]) from None
    if tunnel.gssapi:
        try:
            import popproxy.kerberos.initiator  # noqa: F401, PLC0415 - an optional library, which the SSH client needs
        except ImportError as error:
            what = f"the libraries for Kerberos are not installed: {error}"
            raise ConfigError([Problem(where, f"{key}.gssapi", what, INSTALL_GSSAPI)]) from None
    secret = None if tunnel.key is None else resolve_secret(tunnel.key, f"{key}.key")
    passphrase = None if tunnel.passphrase is None else resolve_secret(tunnel.passphrase, f"{key}.passphrase")
    try:
        return read_credentials(secret, passphrase)
    except ValueError as error:
        cure = "name a private key as ssh-keygen makes it, and its passphrase if it has one"
        raise ConfigError([Problem(where, f"{key}.key", f"is of no use: {error}", cure)]) from None


def start_tunnels(
    config: Config, keys: TunnelKeys, pools: Mapping[str, Pool], reactor: Reactor, metrics: Metrics
) -> Tunnels | None:
    """All tunnels, which begin to connect; the pools know how they are reached. None if there are none."""
    if not config.tunnels:
        return None
    tunnels = Tunnels({name: (tunnel, keys[name]) for name, tunnel in config.tunnels.items()}, reactor, metrics)
    for pool in pools.values():
        if pool.config.tunnel is not None:
            pool.transport = tunnels[pool.config.tunnel]
        for server, backend in zip(pool.config.servers, pool.backends, strict=True):
            tunnel = pool.config.tunnel_to(server)
            if tunnel != pool.config.tunnel:
                pool.transports[backend.address] = None if tunnel is None else tunnels[tunnel]
    return tunnels
