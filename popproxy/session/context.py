"""What the sessions of one listener share, put together by the composition root."""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from popproxy.auth.accounts import Accounts
from popproxy.auth.names import vet, vet_name
from popproxy.auth.policy import Policy
from popproxy.auth.proof import Prover
from popproxy.auth.result import Authenticator
from popproxy.auth.scram import ScramVerifiers
from popproxy.auth.throttle import Throttle
from popproxy.auth.uniform import UniformDelay
from popproxy.backend.dial import Dialer
from popproxy.backend.kerberos_logins import KerberosLogins
from popproxy.backend.pool import Pool
from popproxy.config.model import Config
from popproxy.config.model_listeners import Listener
from popproxy.net.channel import Channel
from popproxy.net.reactor import Reactor
from popproxy.net.relay import RelayContext
from popproxy.net.tls import ServerTls
from popproxy.pop3.capabilities import Capabilities
from popproxy.pop3.offer import Offer
from popproxy.routing.places import Places
from popproxy.routing.router import Router
from popproxy.sasl import apop
from popproxy.sasl.credentials import Credential, GssapiCredential, KpopCredential
from popproxy.sasl.login import Login
from popproxy.sasl.mechanism import SaslMechanism
from popproxy.sasl.plain import Plain
from popproxy.session.admission import Admission
from popproxy.session.hold import Holding
from popproxy.session.mechanisms import Mechanisms
from popproxy.session.tickets import Tickets, user_of
from popproxy.session.tracing import Tracing
from popproxy.state.shared import SharedState
from popproxy.types import Address

if TYPE_CHECKING:
    from popproxy.vault.record import Record

RESERVED_PORTS = 1024
"""Ports below are root's, where the client's system keeps to that."""
_NOTHING: frozenset[str] = frozenset()
_MECHANISMS: dict[str, Callable[[], SaslMechanism]] = {"PLAIN": Plain, "LOGIN": Login}


@dataclass(frozen=True, slots=True)
class ListenerContext:
    """Everything a session of this listener may use. `stored` looks a canonical user name up in the vault."""

    listener: Listener
    config: Config
    reactor: Reactor
    relay: RelayContext
    admission: Admission
    authenticator: Authenticator
    throttle: Throttle
    state: SharedState
    delay: UniformDelay
    router: Router
    pools: dict[str, Pool]
    dialer: Dialer
    holding: Holding  # of users by operators
    stored: Callable[[str], Record | None]
    tls: ServerTls | None
    promised: Capabilities  # what every possible backend can do
    host: str  # for APOP timestamps
    tickets: Tickets | None = None
    accounts: Accounts | None = None
    kerberos_logins: KerberosLogins | None = None  # at backends
    mechanisms: Mechanisms | None = None  # beside PLAIN, LOGIN and GSSAPI
    verifiers: ScramVerifiers | None = None
    provers: Mapping[type, Prover] = field(default_factory=dict)  # of credentials that say themselves whose they are
    places: Places | None = None  # directories that say where mail is, whoever lets users in
    visits: bool = False  # somebody who judges wants to know where logins come from
    policy: Policy | None = None  # on mechanisms that are given up
    tracing: Tracing = field(default_factory=Tracing)  # what operators watch
    talkative: bool = False  # log every connection: asked once, since even a call that logs nothing costs microseconds

    @property
    def greets_first(self) -> bool:
        """True if a client of this listener hears the greeting before it has said anything."""
        return self.listener.tls != "implicit" and self.listener.protocol == "pop3"

    def vet(self, credential: Credential) -> str:
        """The canonical user name. Raises NameRefused."""
        authentication = self.config.authentication
        if isinstance(credential, GssapiCredential | KpopCredential):
            assert self.tickets is not None
            return user_of(credential, self.tickets.principals, self.vet_name)
        return vet(credential, authentication.default_domain, authentication.case)

    def vet_name(self, name: str) -> str:
        """The canonical form of a name. Raises NameRefused."""
        return vet_name(name, self.config.authentication.default_domain, self.config.authentication.case)

    def offer(self, source: Address, channel: Channel, timestamp: bytes | None, front: Address | None = None) -> Offer:
        """What a client at `source` may do now (RFC 2449: nothing is announced that would be refused).

        `front`: who has come for it. The link that passwords may take in clear is the front's then; nothing that proves
        itself by where it comes from is offered, and no STLS: it would have to forget for whom the front has come.
        """
        kpop = self.listener.protocol == "kpop"
        encrypted = channel.encrypted
        link = source if front is None else front
        passwords = encrypted or _within(link.host, tuple(self.listener.cleartext_networks))
        mechanisms = dict(_MECHANISMS) if passwords and not kpop else {}
        if self.listener.gssapi and self.tickets is not None and self.tickets.usable(encrypted=encrypted):
            mechanisms = {"GSSAPI": partial(self.tickets.exchange, encrypted=encrypted), **mechanisms}
        gone = _NOTHING if self.policy is None else self.policy.withdrawn(source.host)
        if self.mechanisms is not None:
            mechanisms = {**self.mechanisms.offer(channel, self.tls, gone), **mechanisms}
        rpop = source if self.listener.rpop != "off" and front is None and self._takes_rpop(source) else None
        if gone:
            mechanisms = {name: factory for name, factory in mechanisms.items() if name not in gone}
            passwords = passwords and "USER" not in gone
            timestamp = None if "APOP" in gone else timestamp
            rpop = None if "RPOP" in gone else rpop
        return Offer(
            passwords=passwords or kpop,  # behind KPOP's handshake PASS carries none
            mechanisms=mechanisms,
            timestamp=timestamp,
            rpop=rpop,
            stls=self.listener.tls == "stls" and not encrypted and front is None,
            xclient=front is None and self.trusts(source.host),
            backend=self.promised,
        )

    def _takes_rpop(self, source: Address) -> bool:
        """From the networks that are named; in the meaning of RFC 1081 only from a port that root alone may use."""
        rpop = self.config.rpop
        if rpop is None or not _within(source.host, tuple(rpop.networks)):
            return False
        return source.port < RESERVED_PORTS or not (rpop.reserved_port or self.listener.rpop == "rfc")

    def timestamp(self) -> bytes | None:
        """A fresh APOP timestamp of 128 random bits, or None where APOP is off."""
        return apop.make_timestamp(secrets.token_hex(16), self.host) if self.listener.apop else None

    def sent_by_balancer(self, peer: str) -> bool:
        """Must a connection from `peer` begin with a PROXY header?"""
        return bool(self.listener.proxy_protocol) and _within(peer, tuple(self.listener.proxy_protocol))

    def trusts(self, peer: str) -> bool:
        """May `peer` say by XCLIENT for whom it has come?"""
        return bool(self.listener.xclient) and _within(peer, tuple(self.listener.xclient))


@lru_cache(maxsize=4096)
def _within(host: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    if not networks:
        return False
    address = ipaddress.ip_address(host.partition("%")[0])
    return any(address.version == network.version and address in network for network in networks)


def timestamp_host() -> str:
    """The machine's name where it can stand in a msg-id."""
    name = socket.gethostname()
    return name if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", name) else "localhost"
