"""Checks of the machine: the user to run as, and what it must read."""

from __future__ import annotations

import grp
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from popproxy.app.checks.finding import Finding, ok, problem, warning
from popproxy.app.checks.permissions import account, group_id, make_directory, may
from popproxy.config.model import Config
from popproxy.errors import ConfigError
from popproxy.state.order_file import read_orders


def check_system(config: Config) -> list[Finding]:
    """Findings about process.user, process.group, and the files that this user must read."""
    return [*_process(config), *_readable(config), *_installation(config), *_state(config)]


def installation() -> list[Path]:
    """Where Python, what popproxy needs, and popproxy itself are installed."""
    package = Path(__file__).parents[2]
    return list(dict.fromkeys(place.resolve() for place in (Path(sys.base_prefix), Path(sys.prefix), package)))


def _process(config: Config) -> Iterator[Finding]:
    user, group = config.process.user, config.process.group
    if user is None and os.geteuid() == 0:
        yield warning(
            "process",
            "no process.user: started as root, popproxy would stay root",
            "name an unprivileged user in process.user",
        )
    if user is not None and account(user) is None:
        yield problem(
            "process",
            f"the user {user} does not exist",
            f"useradd --system --no-create-home --shell /usr/sbin/nologin {user}",
        )
    elif user is not None:
        yield ok("process", f"runs as {user}")
    if group is not None and group_id(group) is None:
        yield problem("process", f"the group {group} does not exist", f"groupadd --system {group}")


def _readable(config: Config) -> Iterator[Finding]:
    """What is opened after root has become process.user; whether it can be used is found out elsewhere."""
    service = account(config.process.user)
    if service is None:
        return
    sections = [section for section in (config.users, config.vault) if section is not None]
    files: list[Path | None] = [section.file for section in sections]
    files += [rule.file for rule in config.routing.rules]
    files += [pool.ca for pool in config.pools.values()]
    for directory in config.directories.values():
        if directory.ldap is not None:
            files.append(directory.ldap.ca)
        elif directory.sql is not None:
            target = directory.sql.target
            files += [directory.sql.ca, Path(target.database) if target.kind == "sqlite" else None]
    user, group = service.pw_name, config.process.group or grp.getgrgid(service.pw_gid).gr_name
    for file in dict.fromkeys(files):
        if file is not None and file.exists() and not may(file, os.R_OK, service, config.process.group):
            cure = f"chgrp {group} {file}; chmod 640 {file}, and let {user} into its directories"
            yield problem("process", f"{file} cannot be read by {user}", cure)
    for directory in config.directories.values():
        socket = None if directory.http is None else directory.http.target.socket
        if socket is not None and socket.exists() and not may(socket, os.W_OK, service, config.process.group):
            cure = f"chgrp {group} {socket}; chmod 660 {socket}, and let {user} into its directories"
            yield problem("process", f"{socket} cannot be connected to by {user}", cure)


def _installation(config: Config) -> Iterator[Finding]:
    """Python imports some of its library on first use; a service manager that sets the user cannot even start it."""
    service = account(config.process.user)
    if service is None:
        return
    need = os.R_OK | os.X_OK
    closed = [str(place) for place in installation() if not may(place, need, service, config.process.group)]
    if closed:
        yield warning(
            "process",
            f"{service.pw_name} cannot read what popproxy is installed in ({', '.join(closed)}): "
            "it may fail at any time once it has given up root",
            "install it with the system's python3 outside of home directories (/usr/bin/python3 -m venv /opt/popproxy)",
        )


def _state(config: Config) -> Iterator[Finding]:
    """The orders of operators, and whether they lead anywhere."""
    directory = config.process.state_directory
    if directory is None:
        return
    service, area = account(config.process.user), "orders"
    if not directory.is_dir():
        yield problem(area, f"the directory {directory} does not exist", make_directory(directory, config.process.user))
        return
    need = os.R_OK | os.W_OK | os.X_OK
    if not (os.access(directory, need) if service is None else may(directory, need, service, config.process.group)):
        who = config.process.user or "this user"
        yield problem(area, f"{directory} cannot be written by {who}", f"chown {who} {directory}")
        return
    try:
        orders = read_orders(directory)
    except ConfigError as error:
        yield from (problem(area, f"{one.where}: {one.what}", one.cure) for one in error.problems)
        return
    yield ok(area, f"are kept in {directory}")
    for user, move in orders.moves.items():
        if move.pool not in config.pools:
            cure = f"add it, or popproxy move {user} to another pool, or --undo"
            yield problem(area, f"{user} has been moved to the pool {move.pool}, which does not exist", cure)
