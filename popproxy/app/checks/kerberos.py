"""Checks of Kerberos: libraries, keytab, replay cache, and the files that map principals."""

from __future__ import annotations

import grp
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

from popproxy.app.checks.finding import Finding, ok, problem, unreadable
from popproxy.app.checks.permissions import account, make_directory, may
from popproxy.app.kerberos import INSTALL, libraries_missing, principal_map
from popproxy.config.model import Config, Kerberos
from popproxy.errors import ConfigError

_AREA = "kerberos"


def check_kerberos(config: Config) -> list[Finding]:
    """Findings about the section kerberos. Asks no KDC."""
    kerberos = config.kerberos
    if kerberos is None:
        return []
    return [*_keytab(config, kerberos), *_replay_cache(config, kerberos.replay_cache), *_mapping(config, kerberos)]


def _keytab(config: Config, kerberos: Kerberos) -> Iterator[Finding]:
    why = libraries_missing()
    if why is not None:
        yield problem(_AREA, f"its libraries are not installed ({why})", INSTALL)
    path = kerberos.keytab
    try:
        path.open("rb").close()
    except OSError as error:
        yield unreadable(_AREA, path, error)
        return
    service = account(config.process.user)
    if service is not None and not may(path, os.R_OK, service, config.process.group):
        group = config.process.group or grp.getgrgid(service.pw_gid).gr_name
        cure = f"chgrp {group} {path}; chmod 640 {path}, and let {service.pw_name} into its directories"
        yield problem(_AREA, f"the keytab {path} cannot be read by {service.pw_name}", cure)
    elif path.stat().st_mode & 0o007:
        yield problem(_AREA, f"everybody on this machine can read the keytab {path}", f"chmod o= {path}")
    if why is None:
        keytab = importlib.import_module("popproxy.kerberos.keytab")
        for principal in kerberos.principals:
            if keytab.has_key(path, principal):
                yield ok(_AREA, f"the keytab holds {principal}")
            else:
                cure = "add it: ktadd (MIT), ktpass (Active Directory), ipa-getkeytab (FreeIPA); klist -k shows keys"
                yield problem(_AREA, f"the keytab {path} has no key of {principal}", cure)


def _replay_cache(config: Config, directory: Path) -> Iterator[Finding]:
    service = account(config.process.user)
    who = config.process.user or "this user"
    need = os.R_OK | os.W_OK | os.X_OK
    if not directory.is_dir():
        cure = make_directory(directory, config.process.user).replace("-m 750", "-m 700")
        yield problem(_AREA, f"the directory {directory} does not exist", cure)
    elif directory.stat().st_mode & 0o002:
        yield problem(_AREA, f"everybody can write the replay cache in {directory}", f"chmod 700 {directory}")
    elif not (os.access(directory, need) if service is None else may(directory, need, service, config.process.group)):
        yield problem(_AREA, f"the directory {directory} cannot be written by {who}", f"chown {who} {directory}")
    else:
        yield ok(_AREA, f"the replay cache can be kept in {directory}")


def _mapping(config: Config, kerberos: Kerberos) -> Iterator[Finding]:
    try:
        principal_map(config, kerberos)
    except ConfigError as error:
        for one in error.problems:
            yield problem(_AREA, ": ".join(filter(None, (one.where, one.key, one.what))), one.cure)
