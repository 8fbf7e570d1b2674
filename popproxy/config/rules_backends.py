"""What a pool's strategies external and xoauth2 must agree on with the rest, and what may go to servers in clear."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding, KeyPath
from popproxy.config.model import Config
from popproxy.config.model_pools import TICKET_STRATEGIES, Pool
from popproxy.config.units import format_duration

_NOTHING_SECRET = TICKET_STRATEGIES | {"apop", "external"}
"""Strategies that send nothing by which anybody else could log in."""


def _pools(config: Config) -> Iterator[tuple[KeyPath, Pool]]:
    for name, pool in config.pools.items():
        yield ("pools", name), pool


def _cleartext(config: Config) -> Iterator[Finding]:
    for at, pool in _pools(config):
        revealing = [strategy for strategy in pool.login if strategy not in _NOTHING_SECRET]
        if pool.tls == "none" and not pool.allow_cleartext and not pool.all_tunneled and revealing:
            what = f"{' and '.join(dict.fromkeys(map(_secret_of, revealing)))} would go to the backend in clear"
            cure = "write tls: stls or tls: implicit, or allow_cleartext: true if the network is trusted"
            because = ((*at, "allow_cleartext"), (*at, "login"))
            yield Finding((*at, "tls"), what, cure, because=because)
        if pool.allow_cleartext and (pool.tls != "none" or not revealing):
            reason = f"tls: {pool.tls}" if pool.tls != "none" else f"login: [{', '.join(pool.login)}]"
            cure = "remove it, or write tls: none" if pool.tls != "none" else "remove it"
            yield Finding((*at, "allow_cleartext"), f"has no effect with {reason}", cure, warning=True)


def _secret_of(strategy: str) -> str:
    return "access tokens" if strategy == "xoauth2" else "passwords"


def _certificate(config: Config) -> Iterator[Finding]:
    for at, pool in _pools(config):
        path: KeyPath = (*at, "certificate")
        if "external" in pool.login and pool.certificate is None:
            cure = "add certificate: {cert: /etc/popproxy/proxy.pem, key: /etc/popproxy/proxy.key}"
            where = (*at, "login", pool.login.index("external"))
            yield Finding(where, "external needs a certificate to show, and there is none", cure, because=(path,))
        if pool.tls == "none" and "external" in pool.login:
            what = "external shows a certificate, which needs TLS"
            yield Finding((*at, "tls"), what, "write tls: stls or tls: implicit", because=((*at, "login"),))
        elif pool.tls == "none" and pool.certificate is not None:
            yield Finding(path, "has no effect with tls: none", "remove it", warning=True)


def _xoauth2(config: Config) -> Iterator[Finding]:
    for at, pool in _pools(config):
        path: KeyPath = (*at, "xoauth2")
        if "xoauth2" not in pool.login:
            if pool.xoauth2 is not None:
                cure = "add it, for example login: [xoauth2], or remove the section"
                what = "is not used: login does not name xoauth2"
                yield Finding(path, what, cure, warning=True, because=((*at, "login"),))
            continue
        where = (*at, "login", pool.login.index("xoauth2"))
        section = pool.xoauth2
        if section is None:
            cure = "add xoauth2: {endpoint: https://..., client_id: ..., client_secret: {file: ...}}"
            yield Finding(where, "nothing says where access tokens come from", cure, because=(path,))
            continue
        if section.grant == "refresh_token" and config.vault is None:
            what = "refresh tokens are kept in the vault, and there is none"
            cure = "add the section vault with file and key, or write grant: client_credentials"
            yield Finding((*path, "grant"), what, cure, because=(("vault",),))
        if section.client_secret is None and "client_auth" in section.model_fields_set:
            yield Finding((*path, "client_auth"), "has no effect without client_secret", "remove it", warning=True)
        if section.deadline >= config.timeouts.backend_login:
            limit = format_duration(config.timeouts.backend_login)
            what = f"a server would not wait so long for a login: timeouts.backend_login is {limit}"
            yield Finding((*path, "deadline"), what, "write for example 10s", because=(("timeouts", "backend_login"),))


BACKEND_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (_cleartext, _certificate, _xoauth2)
