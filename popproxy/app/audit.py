"""From the section audit to the audit log and the key that signs it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from popproxy import __version__
from popproxy.config.loader import Loaded
from popproxy.config.model_audit import Audit, Syslog
from popproxy.config.secret import resolve_secret
from popproxy.errors import AuditError, ConfigError, Problem
from popproxy.net.tls import client_context
from popproxy.observe.audit import AuditLog
from popproxy.observe.audit_copy import Copy, JournalCopy, StdoutCopy
from popproxy.observe.audit_file import FileSink
from popproxy.observe.audit_render import UniqueIds
from popproxy.observe.audit_sink import Sink, StdoutSink
from popproxy.observe.audit_syslog import SyslogCopy
from popproxy.observe.metrics import Metrics
from popproxy.types import Address

if TYPE_CHECKING:
    from popproxy.observe.audit_keys import SigningKey

SYSLOG_TLS_PORT, SYSLOG_PORT = 6514, 601
"""RFC 5425 and RFC 6587."""
UNIQUE_IDS = "unique-ids"
"""What the key is used for besides signatures."""


def read_signing_key(audit: Audit, where: str) -> SigningKey | None:
    """The key that signs, while root may read it. `where` is the configuration. Raises ConfigError."""
    if audit.key is None:
        return None
    from popproxy.observe.audit_keys import SigningKey  # noqa: PLC0415 - large, and it may not be needed

    secret = resolve_secret(audit.key, "audit.key")
    try:
        return SigningKey(secret)
    except AuditError as error:
        cure = "make one with `popproxy audit key`, or with openssl genpkey -algorithm ed25519"
        raise ConfigError([Problem(str(audit.key.file or where), "audit.key", str(error), cure)]) from None


def unique_ids(audit: Audit, key: SigningKey | None) -> UniqueIds:
    """How messages are named in the records."""
    return UniqueIds(audit.unique_ids, b"" if key is None else key.subkey(UNIQUE_IDS))


def open_audit(loaded: Loaded, key: SigningKey | None, metrics: Metrics) -> AuditLog:
    """The audit log of this process. Raises ConfigError."""
    audit = loaded.config.audit
    return AuditLog(
        _sink(audit, str(loaded.path)), metrics, on_error=audit.on_error, flush_interval=audit.flush,
        log_unknown_users=audit.log_unknown_users, version=__version__, signer=key,
        checkpoint_records=audit.checkpoint_records, checkpoint_interval=audit.checkpoint_interval,
        origin={"process.name": _process_name(), "popproxy.config.hash": loaded.digest},
        unique_ids=unique_ids(audit, key), copies=_copies(audit, str(loaded.path), metrics),
    )  # fmt: skip


def public_file(audit: Audit) -> Path | None:
    """Where `popproxy audit key` puts the public keys."""
    private = None if audit.key is None else audit.key.file
    return None if private is None else private.with_name(private.name + ".pub")


def syslog_server(syslog: Syslog) -> Address:
    """Host and port."""
    host, port = syslog.server.host, syslog.server.port
    return Address(host, port or (SYSLOG_TLS_PORT if syslog.tls else SYSLOG_PORT))


def syslog_tls(syslog: Syslog) -> ssl.SSLContext | None:
    """What TLS runs with; None without. Raises OSError, of which ssl.SSLError is one."""
    if not syslog.tls:
        return None
    shown = None if syslog.certificate is None else (syslog.certificate, None)
    return client_context(ca=syslog.ca, certificate=shown)


def _copies(audit: Audit, where: str, metrics: Metrics) -> list[Copy]:
    copies: list[Copy] = []
    if audit.stdout:
        copies.append(StdoutCopy(metrics))
    if audit.journald:
        copies.append(JournalCopy(metrics))
    if audit.syslog is not None:
        try:
            tls = syslog_tls(audit.syslog)
        except OSError as error:
            cure = "name files in PEM that popproxy's user can read"
            raise ConfigError([Problem(where, "audit.syslog", f"TLS: {error}", cure)]) from None
        copies.append(SyslogCopy(metrics, syslog_server(audit.syslog), tls, audit.syslog.server_name or ""))
    return copies


def _process_name() -> str:
    """Workers have names of their own."""
    try:
        return Path("/proc/self/comm").read_text().strip()
    except OSError:
        return "popproxy"


def _sink(audit: Audit, where: str) -> Sink:
    if audit.file is None:
        return StdoutSink()
    try:
        return FileSink(audit.file, audit.rotate_size, audit.rotate_interval)
    except AuditError as error:
        cure = "its folder must be writable by process.user"
        raise ConfigError([Problem(where, "audit.file", str(error), cure)]) from None
