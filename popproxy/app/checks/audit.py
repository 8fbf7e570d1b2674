"""Checks of the audit log: where it goes, what signs it, and whether it can be rotated."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

from popproxy.app.audit import public_file, read_signing_key, syslog_server, syslog_tls
from popproxy.app.checks.finding import Finding, ok, problem, warning
from popproxy.app.checks.permissions import account, make_directory, may
from popproxy.config.model import Config
from popproxy.errors import AuditError, ConfigError
from popproxy.observe.audit_copy import JOURNAL

SYSLOG_SECONDS = 5.0
"""For a connection to the syslog server, its handshake included."""


def check_audit(config: Config) -> list[Finding]:
    """Findings about the section audit, as far as this machine knows."""
    return list(_audit(config))


async def check_syslog(config: Config) -> list[Finding]:
    """Whether the syslog server answers."""
    syslog = config.audit.syslog
    if syslog is None:
        return []
    server = syslog_server(syslog)
    try:
        tls = syslog_tls(syslog)
        async with asyncio.timeout(SYSLOG_SECONDS):
            name = (syslog.server_name or server.host) if tls is not None else None
            _, writer = await asyncio.open_connection(server.host, server.port, ssl=tls, server_hostname=name)
            writer.close()
    except (OSError, TimeoutError) as error:
        cure = "without it the copy of the audit log is missing; logins go on"
        return [problem("audit", f"the syslog server {server}: {str(error) or 'no answer in time'}", cure)]
    return [ok("audit", f"the syslog server {server} answers {'with' if tls is not None else 'without'} TLS")]


def _audit(config: Config) -> Iterator[Finding]:
    if config.audit.file is None:
        yield ok("audit", "goes to standard output")
    else:
        yield _writable(config.audit.file, config)
        if config.audit.rotate_size is not None or config.audit.rotate_interval is not None:
            yield from _renamable(config.audit.file.parent, config)
    yield from _signed(config)
    if config.audit.journald and not JOURNAL.exists():
        cure = "systemctl start systemd-journald, or journald: false"
        yield problem("audit", f"there is no journal at {JOURNAL}", cure)
    if config.audit.log_unknown_users:
        yield warning(
            "audit", "log_unknown_users writes whatever is typed as user name, sometimes a password",
            "switch it off unless you need it for a while",
        )  # fmt: skip


def _signed(config: Config) -> Iterator[Finding]:
    try:
        key = read_signing_key(config.audit, "")
    except ConfigError as error:
        for wrong in error.problems:
            yield problem("audit", f"{wrong.where or wrong.key} {wrong.what}", wrong.cure)
        return
    if key is None:
        return
    from popproxy.observe.audit_keys import read_public  # noqa: PLC0415 - large, and it may not be needed

    yield ok("audit", f"is signed with the key {key.key_id}")
    public = public_file(config.audit)
    try:
        known = public is not None and key.key_id in read_public([public])
    except (AuditError, OSError):
        known = False
    if public is not None and not known:
        cure = f"openssl pkey -in {config.audit.key and config.audit.key.file} -pubout >>{public}"
        yield warning("audit", f"{public} lacks the public half of the key, by which the log is verified", cure)


def _renamable(directory: Path, config: Config) -> Iterator[Finding]:
    """Files are rotated by giving them another name."""
    service = account(config.process.user)
    who, need = config.process.user or "this user", os.W_OK | os.X_OK
    allowed = os.access(directory, need) if service is None else may(directory, need, service, config.process.group)
    if directory.is_dir() and not allowed:
        yield problem("audit", f"{who} cannot rotate the log in {directory}", f"chown {who} {directory}")


def _writable(file: Path, config: Config) -> Finding:
    service = account(config.process.user)
    who = config.process.user or "this user"
    directory = file.parent
    if not directory.is_dir():
        return problem(
            "audit",
            f"the directory {directory} does not exist",
            make_directory(directory, config.process.user),
        )
    target = file if file.exists() else directory
    need = os.W_OK if target is file else os.W_OK | os.X_OK
    allowed = os.access(target, need) if service is None else may(target, need, service, config.process.group)
    if allowed:
        return ok("audit", f"{file} can be written by {who}")
    return problem(
        "audit",
        f"{file} cannot be written by {who}",
        f"chown {who} {target}" if service else f"correct the permissions of {target}",
    )
