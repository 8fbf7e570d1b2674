"""The section audit."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from popproxy.config.base import Model
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import Duration, LocalPath, ServerAddress, Size


class Syslog(Model):
    """A syslog server that gets a copy of the audit log, by RFC 5424 with octet counting."""

    server: ServerAddress = Field(examples=["loghost.example.com:6514"])
    """Where it listens. The port is 6514 for TLS, 601 otherwise, unless it is written."""
    tls: bool = True
    """TLS (RFC 5425), its certificate and name verified. false: in clear, user names and all."""
    ca: LocalPath | None = None
    """CA certificates in PEM for it; by default those of the system."""
    server_name: str | None = None
    """The name in its certificate, if it is not that of server."""
    certificate: LocalPath | None = None
    """What popproxy shows if the server asks for it: certificate and private key in one PEM file."""


class Audit(Model):
    """The record of who fetched and deleted what."""

    file: LocalPath | None = None
    """JSON lines are appended here; without it they go to standard output."""
    on_error: Literal["closed", "open"] = "closed"
    """If the record cannot be written: closed refuses new logins, open lets them go on and counts."""
    log_unknown_users: bool = False
    """Write the names of users that could not log in. People type passwords there; off writes a keyed hash."""
    unique_ids: Literal["clear", "hashed", "omitted"] = "clear"
    """How messages are named: as the server does, by a hash under a key that comes from `key`, or by number only."""
    flush: Duration = 0.05
    """Records of fetches and deletions are written together, at the latest after this time."""
    key: SecretSource | None = None
    """The private key that signs the log, made by `popproxy audit key`."""
    checkpoint_records: int = Field(default=1000, ge=1)
    """After so many records there is a signature."""
    checkpoint_interval: Duration = 60.0
    """So long after a record there is a signature, at the latest."""
    rotate_size: Size | None = None
    """A file of this size gets the time for a name, and a new one begins."""
    rotate_interval: Duration | None = None
    """So does a file at the end of each such span of time, counted from 1970: 1d is midnight, UTC."""
    syslog: Syslog | None = None
    """A copy to a syslog server."""
    journald: bool = False
    """A copy to systemd's journal, as popproxy-audit."""
    stdout: bool = False
    """A copy to standard output, besides the file."""
