"""What SASL mechanisms need beside passwords: sections of ``popproxy.yaml`` of their own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from popproxy.config.base import Model
from popproxy.config.secret_source import SecretSource

SaslName = Literal["CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"]
"""What a listener can offer beside PLAIN, LOGIN and GSSAPI."""


class Scram(Model):
    """SCRAM without the vault."""

    decoy_key: SecretSource = Field(examples=[{"file": "/etc/popproxy/scram.key"}])
    """At least 16 random octets, the same on all machines; with them salts are made for users who do not exist, so that
    nobody can tell who does. With a vault it need not be given."""
