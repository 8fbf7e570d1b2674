"""Checks of what operators use beside the control socket: the token of the status page, and the console."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from popproxy.app.checks.finding import Finding, ok, problem
from popproxy.app.checks.permissions import account, may
from popproxy.app.operators import read_console_key, read_token
from popproxy.config.model import Config
from popproxy.errors import ConfigError

_AREA = "operators"


def check_operators(config: Config) -> list[Finding]:
    """Findings about http.token and the section console."""
    found: list[Finding] = []
    if config.http.token is not None:
        found += _read(lambda: read_token(config.http), "the token of the status page can be read")
    if config.console is not None:
        found += _read(lambda: read_console_key(config), "the console has its host key")
        found += _files(config)
    return found


def _read(read: Callable[[], object], good: str) -> list[Finding]:
    try:
        read()
    except ConfigError as error:
        return [problem(_AREA, f"{one.key}: {one.what}", one.cure) for one in error.problems]
    return [ok(_AREA, good)]


def _files(config: Config) -> Iterator[Finding]:
    from popproxy.admin.console import read_authorized_keys  # noqa: PLC0415 - an optional library

    assert config.console is not None
    service = account(config.process.user)
    wanted: dict[Path, str] = {}
    for name, operator in config.console.operators.items():
        if operator.authorized_keys is not None:
            wanted[operator.authorized_keys] = f"keys of {name}"
            try:
                read_authorized_keys(operator.authorized_keys)
            except ValueError as error:
                yield problem(_AREA, str(error), f"one public key a line; chmod 644 {operator.authorized_keys}")
                continue
            yield ok(_AREA, f"{name} ({operator.role}) has keys")
    if config.console.keytab is not None:
        wanted[config.console.keytab] = "keytab of the console"
    for path, what in wanted.items():
        try:
            readable = service is None or may(path, os.R_OK, service, config.process.group)
        except OSError as error:
            if what.startswith("keytab"):
                yield problem(_AREA, f"{path}: {error.strerror}", "make it, or correct console.keytab")
            continue
        if not readable:
            assert service is not None
            cure = f"chown {service.pw_name} {path}"
            yield problem(_AREA, f"{service.pw_name} cannot read {path}, the {what}", cure)
