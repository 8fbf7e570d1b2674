"""The name service, for those configurations that have names to ask for."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from popproxy.config.model import Config
from popproxy.errors import ConnectFailed
from popproxy.net.names import Lookup

if TYPE_CHECKING:
    from popproxy.net.dns import Dns


def wants_names(config: Config) -> bool:
    """Is there a server whose address is not written down?"""
    servers = (server.host for pool in config.pools.values() for server in pool.servers)
    return any(pool.srv is not None for pool in config.pools.values()) or not all(map(_is_ip, servers))


def make_dns(config: Config) -> Dns | None:
    """What asks, if anything is to be asked."""
    if not wants_names(config):
        return None
    from popproxy.net.dns import Dns  # noqa: PLC0415 - large, and not everybody needs it

    return Dns(config.names.servers, config.timeouts.connect)


def lookup(dns: Dns | None) -> Lookup:
    """For the Resolver."""
    return _nobody if dns is None else dns.addresses


async def _nobody(host: str) -> tuple[list[str], float]:
    raise ConnectFailed(f"{host} is not an address", "dns")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
