"""Checks of the machine: the user to run as, and where the audit log goes."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from popproxy.app.checks.finding import Finding, ok, problem, warning
from popproxy.config.model import Config


def check_system(config: Config) -> list[Finding]:
    """Findings about process.user, process.group, the files that this user must read, and the audit file."""
    return [*_process(config), *_readable(config), *_audit(config)]


def _process(config: Config) -> Iterator[Finding]:
    user, group = config.process.user, config.process.group
    if user is None and os.geteuid() == 0:
        yield warning(
            "process",
            "no process.user: started as root, popproxy would stay root",
            "name an unprivileged user in process.user",
        )
    if user is not None and _account(user) is None:
        yield problem(
            "process",
            f"the user {user} does not exist",
            f"useradd --system --no-create-home --shell /usr/sbin/nologin {user}",
        )
    elif user is not None:
        yield ok("process", f"runs as {user}")
    if group is not None and _group(group) is None:
        yield problem("process", f"the group {group} does not exist", f"groupadd --system {group}")


def _readable(config: Config) -> Iterator[Finding]:
    """What is opened after root has become process.user; whether it can be used is found out elsewhere."""
    account = _account(config.process.user) if config.process.user else None
    if account is None:
        return
    sections = [section for section in (config.users, config.vault) if section is not None]
    files: list[Path | None] = [section.file for section in sections]
    files += [rule.file for rule in config.routing.rules]
    files += [pool.ca for pool in config.pools.values()]
    for file in dict.fromkeys(files):
        if file is not None and file.exists() and not _may(file, os.R_OK, account, config.process.group):
            user = account.pw_name
            group = config.process.group or grp.getgrgid(account.pw_gid).gr_name
            cure = f"chgrp {group} {file}; chmod 640 {file}, and let {user} into its directories"
            yield problem("process", f"{file} cannot be read by {user}", cure)


def _audit(config: Config) -> Iterator[Finding]:
    if config.audit.file is None:
        yield ok("audit", "goes to standard output")
    else:
        yield _writable(config.audit.file, config)
    if config.audit.log_unknown_users:
        yield warning(
            "audit", "log_unknown_users writes whatever is typed as user name, sometimes a password",
            "switch it off unless you need it for a while",
        )  # fmt: skip


def _writable(file: Path, config: Config) -> Finding:
    account = _account(config.process.user) if config.process.user else None
    who = config.process.user or "this user"
    directory = file.parent
    if not directory.is_dir():
        return problem(
            "audit",
            f"the directory {directory} does not exist",
            f"install -d -m 750 -o {config.process.user or 'root'} {directory}",
        )
    target = file if file.exists() else directory
    need = os.W_OK if target is file else os.W_OK | os.X_OK
    allowed = os.access(target, need) if account is None else _may(target, need, account, config.process.group)
    if allowed:
        return ok("audit", f"{file} can be written by {who}")
    return problem(
        "audit",
        f"{file} cannot be written by {who}",
        f"chown {who} {target}" if account else f"correct the permissions of {target}",
    )


def _may(path: Path, need: int, account: pwd.struct_passwd, group: str | None) -> bool:
    """Do the mode bits of `path` let `account` do `need` and let it get there? Access lists are not read."""
    if account.pw_uid == 0:
        return True
    path = path.resolve()
    groups = os.getgrouplist(account.pw_name, (_group(group) if group else None) or account.pw_gid)
    wanted = [(path, need), *((parent, os.X_OK) for parent in path.parents)]
    return all(_granted(place.stat(), account.pw_uid, groups) & bits == bits for place, bits in wanted)


def _granted(found: os.stat_result, uid: int, groups: list[int]) -> int:
    """The bits (os.R_OK, os.W_OK, os.X_OK) for a user of these groups."""
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid == uid:
        return mode >> 6 & 7
    return (mode >> 3 if found.st_gid in groups else mode) & 7


def _account(user: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        return None


def _group(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None
