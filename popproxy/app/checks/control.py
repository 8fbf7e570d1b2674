"""Checks of the control socket: its place, and who may give commands."""

from __future__ import annotations

import grp
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from popproxy.admin.control_socket import peer_of
from popproxy.app.checks.finding import Finding, ok, problem, warning
from popproxy.app.checks.permissions import account, group_id, make_directory, may
from popproxy.config.model import Config

_AREA = "control socket"


def check_control(config: Config) -> list[Finding]:
    """Findings about the section control."""
    return [] if config.control.socket is None else [*_names(config), *_place(config, config.control.socket)]


def _names(config: Config) -> Iterator[Finding]:
    control = config.control
    service = account(config.process.user)
    gid = group_id(control.group or config.process.group) or (service.pw_gid if service else os.getegid())
    for user in control.users:
        found = account(user)
        if found is None:
            yield problem(_AREA, f"the user {user} does not exist", f"take it out of control.users, or: useradd {user}")
        elif found.pw_uid and gid not in os.getgrouplist(user, found.pw_gid):
            group = grp.getgrgid(gid).gr_name
            yield problem(
                _AREA, f"{user} cannot connect, not being in the group {group}", f"usermod -aG {group} {user}"
            )
    for group in dict.fromkeys([*control.groups, *([control.group] if control.group else [])]):
        if group_id(group) is None:
            yield problem(_AREA, f"the group {group} does not exist", f"groupadd --system {group}")


def _place(config: Config, path: Path) -> Iterator[Finding]:
    service = account(config.process.user)
    # it is made before root is given up
    root = os.geteuid() == 0
    if not path.parent.is_dir():
        if root and path.parent.parent.is_dir():
            yield ok(_AREA, f"{path.parent} will be made for {path.name}")
        else:
            yield warning(
                _AREA, f"the directory {path.parent} does not exist: no commands such as popproxy penalties",
                make_directory(path.parent, config.process.user),
            )  # fmt: skip
        return
    if not root and not os.access(path.parent, os.W_OK | os.X_OK):
        yield warning(
            _AREA, f"this user cannot make {path}: no commands such as popproxy penalties",
            "start as root, or name another path in control.socket",
        )  # fmt: skip
        return
    taken = _taken(path)
    if taken is not None:
        yield taken
        return
    yield ok(_AREA, f"{path} can be made")
    if root and service is not None and not may(path.parent, os.W_OK | os.X_OK, service, config.process.group):
        yield warning(
            _AREA, f"{service.pw_name} cannot take {path} away at the end: the next start will",
            f"chown {service.pw_name} {path.parent}",
        )  # fmt: skip


def _taken(path: Path) -> Finding | None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return problem(_AREA, f"{path} is there already and is no socket", "remove it, or name another path")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            probe.connect(str(path))
            return ok(_AREA, f"{path} is held by a running process (pid {peer_of(probe).pid})")
    except OSError:
        return None  # nothing there, or left by one that was killed
