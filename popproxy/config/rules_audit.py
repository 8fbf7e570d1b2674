"""What the keys of the section audit must agree on."""

from __future__ import annotations

from collections.abc import Iterator

from popproxy.config.finding import Finding
from popproxy.config.model import Config

SMALLEST = 1 << 16
"""Octets of a file that is worth a name of its own."""
SHORTEST = 60.0
"""Seconds that it is."""


def _key(config: Config) -> Iterator[Finding]:
    audit = config.audit
    if audit.unique_ids == "hashed" and audit.key is None:
        cure = "add audit.key (see `popproxy audit key`), or write omitted"
        yield Finding(("audit", "unique_ids"), "hashes need a key", cure, because=(("audit", "key"),))
    if audit.checkpoint_interval < 1:
        yield Finding(("audit", "checkpoint_interval"), "is too short", "write 1s or more")


def _rotation(config: Config) -> Iterator[Finding]:
    audit = config.audit
    for name, given in (("rotate_size", audit.rotate_size), ("rotate_interval", audit.rotate_interval)):
        if given is not None and audit.file is None:
            cure = "add audit.file, or remove it"
            yield Finding(("audit", name), "standard output is not rotated", cure, because=(("audit", "file"),))
    if audit.rotate_size is not None and audit.rotate_size < SMALLEST:
        yield Finding(("audit", "rotate_size"), "is too small", "write 64KiB or more, for example 1GiB")
    if audit.rotate_interval is not None and audit.rotate_interval < SHORTEST:
        yield Finding(("audit", "rotate_interval"), "is too short", "write 1m or more, for example 1d")


def _copies(config: Config) -> Iterator[Finding]:
    audit = config.audit
    if audit.stdout and audit.file is None:
        cure = "add audit.file, or remove it"
        yield Finding(("audit", "stdout"), "the log goes there already", cure, because=(("audit", "file"),))
    if audit.syslog is not None and not audit.syslog.tls:
        for key in ("ca", "server_name", "certificate"):
            if getattr(audit.syslog, key) is not None:
                cure, because = "remove it, or write tls: true", (("audit", "syslog", "tls"),)
                yield Finding(("audit", "syslog", key), "has no effect without TLS", cure, because=because)


AUDIT_RULES = (_key, _rotation, _copies)
