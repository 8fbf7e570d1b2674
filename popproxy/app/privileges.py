"""Becoming an ordinary user once the ports are bound."""

from __future__ import annotations

import grp
import os
import pwd

from popproxy.app.hardening import give_up_capabilities
from popproxy.config.model import Process
from popproxy.errors import ConfigError, Problem
from popproxy.observe.logs import get_logger

log = get_logger("process")


def drop(process: Process, where: str) -> None:
    """Become `process.user`, for good. Raises ConfigError if that cannot be."""
    if process.user is None:
        if os.geteuid() == 0:
            log.warning("running as root", cure="name a user in process.user")
        return
    try:
        user = pwd.getpwnam(process.user)
        gid = grp.getgrnam(process.group).gr_gid if process.group else user.pw_gid
    except KeyError as error:
        cure = "create it (useradd --system), or name another"
        raise ConfigError([Problem(where, "process", f"{error.args[0]}", cure)]) from None
    if os.geteuid() != 0:
        if os.geteuid() != user.pw_uid:
            cure = "start as root, or as that user, or remove process.user"
            raise ConfigError([Problem(where, "process.user", f"cannot become {process.user}", cure)])
        return
    give_up_capabilities()
    os.initgroups(process.user, gid)
    os.setgid(gid)
    os.setuid(user.pw_uid)
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise ConfigError(
        [Problem(where, "process.user", "privileges could not be dropped", "name a user other than root")]
    )
