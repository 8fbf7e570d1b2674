"""What a pool's strategies kerberos-... must agree on with the rest."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding, KeyPath
from popproxy.config.model import Config
from popproxy.config.model_pools import TICKET_STRATEGIES, Pool, PoolKerberos
from popproxy.config.units import quote

_BY_TICKET = {
    "kerberos-forwarded": "gssapi: true",
    "kerberos-delegated": "gssapi: true or protocol: kpop",
}
"""Strategies that need a client's ticket, and what a listener must have for clients to show one."""


def _pools(config: Config) -> Iterator[tuple[KeyPath, Pool, list[int]]]:
    """Every pool with the places of its strategies that need Kerberos."""
    for name, pool in config.pools.items():
        places = [number for number, strategy in enumerate(pool.login) if strategy in TICKET_STRATEGIES]
        yield ("pools", name), pool, places


def _section(config: Config) -> Iterator[Finding]:
    for at, pool, places in _pools(config):
        if config.kerberos is None:
            for number in places:
                what = f"{pool.login[number]} needs a keytab, and there is no section kerberos"
                cure = "add the section kerberos with keytab, principals, replay_cache and realms, or write another way"
                yield Finding((*at, "login", number), what, cure, because=(("kerberos",),))
        if not places and pool.kerberos != PoolKerberos():
            cure = "add for example kerberos-delegated to login, or remove the section"
            what = "is not used: login names no kerberos-... strategy"
            yield Finding((*at, "kerberos"), what, cure, warning=True, because=((*at, "login"),))


def _tickets(config: Config) -> Iterator[Finding]:
    for at, pool, places in _pools(config):
        for number in places:
            strategy = pool.login[number]
            shown = any(
                listener.gssapi or (strategy == "kerberos-delegated" and listener.protocol == "kpop")
                for listener in config.listeners
            )
            if strategy in _BY_TICKET and not shown and config.kerberos is not None:
                what = f"{strategy} is never used: no listener takes tickets"
                cure = f"write {_BY_TICKET[strategy]} at a listener, or remove it"
                yield Finding((*at, "login", number), what, cure, warning=True, because=(("listeners",),))


def _principals(config: Config) -> Iterator[Finding]:
    for at, pool, places in _pools(config):
        path: KeyPath = (*at, "kerberos", "principal")
        principal = pool.kerberos.principal
        if re.fullmatch(r"[^/@\s]+/[^/@\s]+(@[^/@\s]+)?", principal) is None:
            cure = "write SERVICE/HOST or SERVICE/HOST@REALM, for example pop/{host}"
            yield Finding(path, f"{quote(principal)} is not the name of a service", cure)
        elif places and "{host}" in principal:
            for number, server in enumerate(pool.servers):
                if _is_address(server.host):
                    what = f"the KDC hardly knows a {principal.replace('{host}', server.host)}"
                    cure = "name the server by its host name, or write kerberos: {principal: pop/HOST} in the pool"
                    because = (path, (*at, "login"))
                    yield Finding((*at, "servers", number), what, cure, warning=True, because=because)


def _links(config: Config) -> Iterator[Finding]:
    for at, pool, places in _pools(config):
        layers: KeyPath = (*at, "kerberos", "layers")
        because = ((*at, "tls"), (*at, "login"))
        if places and pool.tls == "none" and "none" in pool.kerberos.layers:
            what = "a server that has no other layer gets no TLS and no layer: mail and commands go in clear"
            cure = "write tls: stls, or take none out of the list"
            yield Finding(layers, what, cure, warning=True, because=because)
        if pool.tls != "none" and pool.kerberos.layers != PoolKerberos().layers:
            what = f"has no effect with tls: {pool.tls}, which protects the session already"
            yield Finding(layers, what, "remove it", warning=True, because=because)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


DELEGATION_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (_section, _tickets, _principals, _links)
