"""Checks of what all listeners with Kerberos share: libraries, replay cache, and the files that map principals."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from popproxy.app.checks.finding import Finding, misconfigured, ok, problem
from popproxy.app.checks.keytabs import check_keytabs
from popproxy.app.checks.permissions import account, make_directory, may
from popproxy.app.kerberos import INSTALL, libraries_missing, mapping_rules
from popproxy.config.model import Config
from popproxy.config.model_kerberos import Kerberos
from popproxy.errors import ConfigError
from popproxy.kerberos.service import CACHE_FILE

_AREA = "kerberos"


def check_kerberos(config: Config) -> list[Finding]:
    """Findings about Kerberos on this machine. Asks no KDC."""
    kerberos = config.kerberos
    if kerberos is None:
        return []
    return [
        *_libraries(),
        *check_keytabs(config),
        *_replay_cache(config, kerberos.replay_cache),
        *_mapping(kerberos),
    ]


def _libraries() -> Iterator[Finding]:
    why = libraries_missing()
    if why is not None:
        yield problem(_AREA, f"its libraries are not installed ({why})", INSTALL)


def _replay_cache(config: Config, directory: Path) -> Iterator[Finding]:
    service = account(config.process.user)
    who = config.process.user or "this user"
    need = os.R_OK | os.W_OK | os.X_OK
    owner = service.pw_uid if service is not None else os.geteuid()
    file = directory / CACHE_FILE
    if not directory.is_dir():
        cure = make_directory(directory, config.process.user).replace("-m 750", "-m 700")
        text = f"the directory {directory} does not exist: without a replay cache no ticket is accepted"
        yield problem(_AREA, text, cure)
    elif directory.stat().st_mode & 0o002:
        yield problem(_AREA, f"everybody can write the replay cache in {directory}", f"chmod 700 {directory}")
    elif not (os.access(directory, need) if service is None else may(directory, need, service, config.process.group)):
        text = f"the directory {directory} cannot be written by {who}: without a replay cache no ticket is accepted"
        yield problem(_AREA, text, f"chown {who} {directory}; chmod 700 {directory}")
    elif directory.stat().st_uid not in (owner, 0):
        text = f"the directory {directory} of the replay cache belongs to {_name(directory)}, who could empty it"
        yield problem(_AREA, f"{text}: tickets would be accepted twice", f"chown {who} {directory}")
    elif file.exists() and file.stat().st_uid != owner:
        text = f"the replay cache {file} belongs to {_name(file)}, not to {who}: no ticket is accepted"
        yield problem(_AREA, text, f"chown {who} {file}")
    else:
        yield ok(_AREA, f"the replay cache can be kept in {directory}")


def _name(path: Path) -> str:
    number = path.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user id {number}"


def _mapping(kerberos: Kerberos) -> Iterator[Finding]:
    try:
        mapping_rules(kerberos)
    except ConfigError as error:
        yield from misconfigured(_AREA, error)
