"""From the section audit to the audit log and the key that signs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from popproxy import __version__
from popproxy.config.loader import Loaded
from popproxy.config.model_audit import Audit
from popproxy.config.secret import resolve_secret
from popproxy.errors import AuditError, ConfigError, Problem
from popproxy.observe.audit import AuditLog
from popproxy.observe.audit_file import FileSink
from popproxy.observe.audit_render import UniqueIds
from popproxy.observe.audit_sink import Sink, StdoutSink
from popproxy.observe.metrics import Metrics

if TYPE_CHECKING:
    from popproxy.observe.audit_keys import SigningKey

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
        origin={"popproxy.config.hash": loaded.digest}, unique_ids=unique_ids(audit, key),
    )  # fmt: skip


def public_file(audit: Audit) -> Path | None:
    """Where `popproxy audit key` puts the public keys."""
    private = None if audit.key is None else audit.key.file
    return None if private is None else private.with_name(private.name + ".pub")


def _sink(audit: Audit, where: str) -> Sink:
    if audit.file is None:
        return StdoutSink()
    try:
        return FileSink(audit.file, audit.rotate_size, audit.rotate_interval)
    except AuditError as error:
        cure = "its folder must be writable by process.user"
        raise ConfigError([Problem(where, "audit.file", str(error), cure)]) from None
