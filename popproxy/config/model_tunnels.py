"""The section about SSH tunnels: ways to servers that cannot be reached directly."""

from __future__ import annotations

from pydantic import Field, field_validator

from popproxy.config.base import Model
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import Duration, LocalPath


class Tunnel(Model):
    """One SSH connection, kept up all the time; each session has a channel of its own in it."""

    host: str = Field(min_length=1, examples=["jump.example.com"])
    """The SSH server. It opens the connections to the POP3 servers, whose names it looks up itself."""
    port: int = Field(default=22, ge=1, le=65535)
    """Its port."""
    user: str = Field(min_length=1, examples=["popproxy"])
    """popproxy's user there."""
    known_hosts: LocalPath = Field(examples=["/etc/popproxy/known_hosts"])
    """The server's key, as OpenSSH has it (ssh-keyscan makes it; compare the fingerprint). A server with another key
    gets nothing."""
    key: SecretSource | None = None
    """The private key, as ssh-keygen makes it."""
    passphrase: SecretSource | None = None
    """What the private key is encrypted with."""
    gssapi: bool = False
    """Log in with Kerberos, also if there is a key that is not taken."""
    keytab: LocalPath | None = None
    """The key of popproxy's principal, for gssapi. null: the tickets in the credential cache of popproxy's user."""
    via: str | None = None
    """Another tunnel through which this SSH server is reached."""
    timeout: Duration = 10.0
    """Longest time to connect and log in."""
    keepalive: Duration = 15.0
    """A server that has been silent so long is asked whether it is there; after three questions without an answer the
    connection is given up."""
    retry: Duration = 0.5
    """A lost connection is made again after this time, then after twice that, and so on."""
    retry_longest: Duration = 30.0
    """The longest time between two attempts."""

    @field_validator("timeout", "keepalive", "retry", "retry_longest")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 10s")
        return value
