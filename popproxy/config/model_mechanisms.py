"""What SASL mechanisms need beside passwords: sections of ``popproxy.yaml`` of their own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from popproxy.config.base import Model
from popproxy.config.patterns import Regex
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import IpNetwork, LocalPath

SaslName = Literal[
    "CRAM-MD5",
    "SCRAM-SHA-1",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-256",
    "SCRAM-SHA-256-PLUS",
    "EXTERNAL",
    "OAUTHBEARER",
    "XOAUTH2",
]
"""What a listener can offer beside PLAIN, LOGIN and GSSAPI."""


class Scram(Model):
    """SCRAM without the vault."""

    decoy_key: SecretSource = Field(examples=[{"file": "/etc/popproxy/scram.key"}])
    """At least 16 random octets, the same on all machines; with them salts are made for users who do not exist, so that
    nobody can tell who does. With a vault it need not be given."""


class ExternalRule(Model):
    """Makes users of what stands in a certificate."""

    take: Literal["email", "upn", "dns", "uri", "common_name", "uid", "subject", "fingerprint"] = Field(
        examples=["email"]
    )
    """What to look at: the subject alternative names of one kind (upn: Microsoft's user principal names), a part of the
    subject or all of it (as RFC 4514 writes it), or the certificate's SHA-256 fingerprint."""
    regex: Regex | None = None
    """Only values that match this regular expression as a whole."""
    user: str | None = Field(default=None, min_length=1)
    """With regex: the user, with \\1 or \\g<name> for groups. Without, the value itself is the user."""
    file: LocalPath | None = None
    """A file with a line for each value: the value, spaces, the user."""

    @model_validator(mode="after")
    def _one_condition(self) -> ExternalRule:
        if self.file is not None and (self.regex is not None or self.user is not None):
            raise ValueError("file says everything already; remove regex and user, or make a rule of each")
        if self.user is not None and self.regex is None:
            raise ValueError("user needs a regex; write for example regex: (.*)@example\\.com")
        if self.file is None and self.regex is None and self.take in ("subject", "fingerprint"):
            raise ValueError(f"a {self.take} is nobody's name; add file: certificates.map")
        return self


class External(Model):
    """Users of client certificates, for EXTERNAL."""

    rules: list[ExternalRule] = Field(min_length=1, examples=[[{"take": "email"}]])
    """Tried in order; the first that finds a user decides."""


class Rpop(Model):
    """Where RPOP is taken from. It goes over the line in clear: name no network that you do not trust."""

    networks: list[IpNetwork] = Field(min_length=1, examples=[["192.0.2.0/28"]])
    """Clients elsewhere are told that there is no RPOP."""
    hosts: LocalPath | None = Field(default=None, examples=["/etc/popproxy/rpop.hosts"])
    """For rpop: rfc, a file with lines of user, network and the user's name there: alice 192.0.2.3 ajones."""
    reserved_port: bool = False
    """With rpop: id, too, only from source ports below 1024. With rpop: rfc that is always so."""
