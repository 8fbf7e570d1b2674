"""Where clients connect, and the certificates that they see."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from popproxy.config.base import Model
from popproxy.config.model_mechanisms import SaslName
from popproxy.config.patterns import Name
from popproxy.config.units import IpNetwork, ListenAddress, LocalPath

BANNER_PATTERN = r"^[ -;=?-~]*$"


class Certificate(Model):
    """A certificate chain in PEM and its private key."""

    cert: LocalPath = Field(examples=["/etc/popproxy/mail.example.com.pem"])
    """The certificate, followed by its intermediates."""
    key: LocalPath | None = None
    """The private key; left out when it stands in the same file."""


class ListenerKerberos(Model):
    """What one listener has of its own instead of what the section kerberos says. What is left out stays as there."""

    keytab: LocalPath | None = Field(default=None, examples=["/etc/popproxy/pop-inside.keytab"])
    """The keys of this listener's principals."""
    principals: list[str] = Field(default=[], examples=[["pop/inside.example.com@EXAMPLE.COM"]])
    """The names that tickets must be for here: pop/HOST@REALM."""
    realms: list[str] = Field(default=[], examples=[["EXAMPLE.COM"]])
    """Those of kerberos.realms whose users may come here. Names without a realm belong to the first one."""


class Listener(Model):
    """A place where clients connect."""

    name: Name = Field(examples=["pop3"])
    """Label in logs and metrics."""
    protocol: Literal["pop3", "kpop"] = "pop3"
    """pop3, or kpop: POP3 behind a Kerberos handshake (port 1109). It needs the section kerberos."""
    listen: list[ListenAddress] = Field(min_length=1, examples=[[":110"]])
    """Addresses and ports; ":110" means every IPv4 and IPv6 address of the machine."""
    tls: Literal["stls", "implicit", "none"] = "stls"
    """stls: plain text that can be raised to TLS (port 110). implicit: TLS from the first octet (port 995).
    none: never TLS."""
    certificates: list[Certificate] = []
    """Certificates of this listener; if empty, those of the top-level section tls."""
    client_ca: LocalPath | None = Field(default=None, examples=["/etc/popproxy/clients-ca.pem"])
    """Certificates of the authorities whose certificates clients may show. Nobody must show one; it counts for EXTERNAL
    alone."""
    client_crl: LocalPath | None = None
    """Revocation lists of these authorities, in PEM. A new version is read as soon as it is there."""
    cleartext_networks: list[IpNetwork] = []
    """Networks from which passwords are accepted without TLS. Empty: from nowhere."""
    apop: bool = False
    """Offer APOP (needs the vault)."""
    sasl: list[SaslName] = []
    """SASL mechanisms to offer beside PLAIN and LOGIN, which come with passwords: CRAM-MD5, SCRAM-SHA-1, SCRAM-SHA-256,
    with -PLUS behind these bound to TLS by tls-server-end-point; EXTERNAL (client certificates); OAUTHBEARER and
    XOAUTH2 (bearer tokens)."""
    rpop: Literal["off", "rfc", "id"] = "off"
    """Take RPOP (needs the section rpop). rfc: trust machines to name their users, as RFC 1081 has it. id: a secret id
    for each user, from the vault, as fetchmail has it."""
    gssapi: bool = False
    """Offer SASL GSSAPI: single sign-on with Kerberos tickets (needs the section kerberos)."""
    kerberos: ListenerKerberos | None = None
    """Keytab, principals and realms of this listener, where they differ from those of the section kerberos."""
    authenticate: list[Name] = Field(default=["passthrough"], min_length=1)
    """Who decides about a password: users (the users file), kerberos (the KDC), passthrough (the backend), a directory
    by its name, or one after the other."""
    proxy_protocol: list[IpNetwork] = []
    """Networks of load balancers that send a PROXY v1 or v2 header. From them it is then compulsory, from others
    refused."""
    xclient: list[IpNetwork] = Field(default=[], examples=[["192.0.2.10/32"]])
    """Networks of trusted fronts, Dovecot's login proxy or another popproxy, which say by XCLIENT for whom they have
    come. The address that they name counts as the client's everywhere; others who try are refused."""
    banner: str = Field(default="POP3 ready", max_length=200, pattern=BANNER_PATTERN)
    """Text of the greeting, printable ASCII without < and >."""

    @property
    def takes_proofs(self) -> bool:
        """Can one log in without a password in clear?"""
        return bool(self.apop or self.sasl or self.rpop != "off" or self.gssapi or self.protocol == "kpop")

    @property
    def uses_kerberos(self) -> bool:
        """Does it take tickets, or passwords for the KDC?"""
        return self.gssapi or self.protocol == "kpop" or "kerberos" in self.authenticate


class Tls(Model):
    """TLS towards clients."""

    certificates: list[Certificate] = []
    """Certificates for all listeners; chosen by the name that the client asks for (SNI), the first one otherwise."""
    minimum: Literal["1.2", "1.3"] = "1.2"
    """Oldest TLS version accepted."""
