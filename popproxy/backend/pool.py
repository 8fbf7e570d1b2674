"""Pools and their servers as the running proxy knows them: where they are, and what they have said they can do."""

from __future__ import annotations

import ssl
from functools import cached_property
from typing import Protocol

from popproxy.backend.transport import Transport
from popproxy.config.model import Pool as PoolConfig
from popproxy.net.tls import client_context
from popproxy.pop3 import capabilities
from popproxy.types import Address, Secret

CAPA_MEMORY = 300.0
"""Seconds for which a server's CAPA answer saves the next sessions from asking."""
DEFAULT_PORTS = {"none": 110, "stls": 110, "implicit": 995}


class Backend:
    """One server of a pool. `label` names it in metrics, log and audit; `principal` is its name at the KDC."""

    __slots__ = ("_known", "_known_until", "address", "label", "principal")

    def __init__(self, address: Address, principal: str = "") -> None:
        self.address = address
        self.principal = principal
        self.label = str(address)
        self._known: capabilities.Capabilities | None = None
        self._known_until = 0.0

    def known(self, now: float) -> capabilities.Capabilities | None:
        """What the server said lately; {} if it has no CAPA, None if it must be asked."""
        return self._known if now < self._known_until else None

    def learn(self, found: capabilities.Capabilities, now: float) -> None:
        """Remember a CAPA answer."""
        self._known = found
        self._known_until = now + CAPA_MEMORY


class Tokens(Protocol):
    """Where the access tokens of a pool come from: AccessTokens. Each source is what `Bearer` wants of one."""

    def own(self) -> object:
        """Popproxy's own token."""
        ...

    def of(self, user: str, refresh_token: Secret) -> object:
        """The user's."""
        ...


def pool_context(config: PoolConfig) -> ssl.SSLContext:
    """For TLS to a pool's servers. Raises OSError or ssl.SSLError for files that cannot be used."""
    pair = None if config.certificate is None else (config.certificate.cert, config.certificate.key)
    return client_context(ca=config.ca, verify=config.verify, certificate=pair, legacy=config.legacy_tls)


class Pool:
    """Servers that hold the same maildrops, tried in order."""

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        master_password: Secret | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        """`tls`: made beforehand, if only root may read the key of `certificate`."""
        self.name = name
        self.config = config
        self.master_password = master_password
        self.tokens = tokens
        if tls is not None:
            self.tls = tls
        self.transport: Transport | None = None  # directly
        self.declared = capabilities.parse(config.capabilities)
        port = DEFAULT_PORTS[config.tls]
        principal = config.kerberos.principal
        self.backends = [
            Backend(Address(server.host, server.port or port), principal.replace("{host}", server.host.lower()))
            for server in config.servers
        ]

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """For TLS to its servers. Raises OSError or ssl.SSLError for files that cannot be used."""
        return pool_context(self.config)

    def pipelines(self, backend: Backend, now: float) -> bool:
        """May several commands be sent at once?"""
        if self.config.pipelining != "auto":
            return self.config.pipelining == "yes"
        return "PIPELINING" in (backend.known(now) or {})
