"""Servers, how they are reached, and how popproxy logs in there."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from popproxy.config.base import Model
from popproxy.config.model_backends import XOAuth2
from popproxy.config.model_balance import Balance, Check
from popproxy.config.model_kerberos import GssLayer
from popproxy.config.model_listeners import Certificate
from popproxy.config.model_socks import Socks
from popproxy.config.patterns import Name
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import DomainName, IpAddress, LocalPath, ServerAddress, format_server
from popproxy.types import Address

PIN_PATTERN = r"^[A-Za-z0-9+/]{43}=$"
LoginStrategy = Literal[
    "forward",
    "apop",
    "stored",
    "master",
    "external",
    "xoauth2",
    "kerberos-forwarded",
    "kerberos-delegated",
    "kerberos-transition",
    "kerberos-service",
]
TICKET_STRATEGIES = frozenset(name for name in get_args(LoginStrategy) if name.startswith("kerberos-"))


class Master(Model):
    """An account of the backend that may open everybody's maildrop."""

    user: str = Field(min_length=1, examples=["popproxy"])
    """Its name."""
    password: SecretSource = Field(examples=[{"file": "/etc/popproxy/master.password"}])
    """Where its password is."""
    mechanism: Literal["user", "plain"] = "user"
    """user: USER alice*popproxy and PASS. plain: AUTH PLAIN as popproxy, acting as alice (Dovecot; Cyrus with
    proxyservers)."""
    separator: str = Field(default="*", min_length=1, max_length=8)
    """With mechanism: user, between the user's name and its own (Dovecot: auth_master_user_separator)."""


class PoolKerberos(Model):
    """Tickets for the servers of a pool: what the strategies kerberos-... need to know."""

    principal: str = "pop/{host}"
    """The name of the servers at the KDC; {host} is the server's name in servers. Without @REALM it is in popproxy's
    own realm."""
    layers: list[GssLayer] = Field(default=["confidentiality", "integrity"], min_length=1)
    """What may protect the session on a link without TLS, best first. none: mail and commands in clear."""
    channel_binding: bool = True
    """Tell the server to which TLS channel the ticket belongs (tls-server-end-point). Switch off where TLS ends at
    another machine, in front of the server."""


class Pool(Model):
    """One backend, or several that serve the same maildrops."""

    servers: list[ServerAddress] = Field(default=[], examples=[["mail.example.com"]])
    """host or host:port (port 110, or 995 with tls: implicit)."""
    srv: DomainName | None = Field(default=None, examples=["example.com"])
    """Instead of servers: the domain whose SRV records (_pop3._tcp, or _pop3s._tcp with tls: implicit) name the
    servers, with their priorities and weights. Asked again when their time to live is over."""
    shared: bool = False
    """Say true if all servers serve the same maildrops. Only then is another one tried if one is down. Without it there
    may be more than one only with choose: hash."""
    balance: Balance = Balance()
    """How a login finds its server, and how many a server can take."""
    check: Check | None = None
    """Ask the servers regularly whether they work. null: only those at which logins have failed are asked."""
    tunnel: Name | None = None
    """The SSH tunnel through which the servers are reached."""
    server_tunnels: dict[str, Name | None] = Field(default={}, examples=[{"pop2.internal": "jump"}])
    """Servers that are reached through another tunnel than that, by their names in servers; null: through none."""
    socks: Socks | None = None
    """The SOCKS5 proxy through which the servers are reached that are behind no tunnel."""
    source_address: IpAddress | None = Field(default=None, examples=["192.0.2.5"])
    """The address of this machine from which to connect to the servers."""
    tls: Literal["stls", "implicit", "none"] = "stls"
    """How the link is protected. stls never falls back to plain text."""
    ca: LocalPath | None = None
    """CA certificates to trust for this pool, instead of the system's."""
    server_name: str | None = None
    """The name the server's certificate must carry, if it is not the host's."""
    verify: bool = True
    """Verify the server's certificate and name. Switch off only in a laboratory, or where there is a pin."""
    pin: list[Annotated[str, Field(pattern=PIN_PATTERN)]] = Field(
        default=[], examples=[["X3pGTSOuJeEVw989IJ/cEtXUEmy52zs1TZQrU06KUKg="]]
    )
    """The keys that the servers may have: SHA-256 of the public key (SubjectPublicKeyInfo), in base64. A server with
    another key gets nothing, whoever has certified it."""
    legacy_tls: bool = False
    """Quarantine for servers that have nothing better: TLS 1.0 and 1.1, old ciphers and short keys are taken from the
    servers of this pool, and from no others."""
    certificate: Certificate | None = None
    """The certificate that popproxy shows to the servers, for login: [external] or where they insist on one."""
    proxy_header: Literal["none", "v1", "v2"] = "none"
    """Begin each connection with a PROXY header of this version, which tells the servers who the client is; v2 also
    says the session's id in the audit log. For servers that want one (Dovecot: haproxy = yes at the listener, and
    popproxy in haproxy_trusted_networks); others take it for a broken command."""
    xclient: bool = False
    """Tell the servers by XCLIENT, before the login, who the client is: its address and port, and the session's id in
    the audit log. For Dovecot, with popproxy in its login_trusted_networks. A server that refuses it is not used."""
    allow_cleartext: bool = False
    """Say true to send passwords over a link without TLS. Needed with tls: none, but not behind a tunnel."""
    login: list[LoginStrategy] = Field(default=["forward"], min_length=1)
    """How to log in: the first way that can be used for this user at this server. forward (the client's password), apop
    or stored (the user's password there, from the vault), master (an account that may open everybody's maildrop),
    external (popproxy's certificate), xoauth2 (an access token). With Kerberos: kerberos-forwarded (the ticket
    that the client has forwarded), kerberos-delegated (constrained delegation for clients that have shown a ticket),
    kerberos-transition (the same for users that have logged in otherwise), kerberos-service (popproxy's own ticket)."""
    master: Master | None = None
    """The account for login: [master]."""
    xoauth2: XOAuth2 | None = None
    """Where access tokens come from, for login: [xoauth2]."""
    kerberos: PoolKerberos = PoolKerberos()
    """For login: [kerberos-...]."""
    capabilities: list[str] = ["TOP", "UIDL"]
    """What every server of the pool can do, as it would stand in CAPA: TOP, UIDL, "EXPIRE 30", "LOGIN-DELAY 60".
    Verified by `popproxy check`."""
    pipelining: Literal["auto", "yes", "no"] = "auto"
    """Send several commands at once? auto: if the server's CAPA says so."""
    splice: bool = False
    """Move the middle of long messages inside the kernel, unread, where neither side has TLS. Half the CPU for them;
    the end is still found where the server puts it, and a wrong size in its +OK does no harm. But octets that a broken
    server sends behind its own final dot would go unnoticed. Needs tls: none."""

    def tunnel_to(self, server: Address) -> str | None:
        """The tunnel through which one of `servers` is reached."""
        return self.server_tunnels.get(format_server(server), self.tunnel)

    @property
    def all_tunneled(self) -> bool:
        """Is every server behind a tunnel?"""
        if self.tunnel is None and not self.servers:
            return False
        return all(self.tunnel_to(server) is not None for server in self.servers)
