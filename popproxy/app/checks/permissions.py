"""What a user may do with a file or a directory, by the mode bits on the way to it."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path


def account(user: str | None) -> pwd.struct_passwd | None:
    """The entry of `user` in the system's accounts."""
    try:
        return pwd.getpwnam(user) if user else None
    except KeyError:
        return None


def group_id(group: str | None) -> int | None:
    """The number of `group`."""
    try:
        return grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        return None


def may(path: Path, need: int, user: pwd.struct_passwd, group: str | None = None) -> bool:
    """Do the mode bits of `path` let `user` do `need` (os.R_OK ...) and let it get there? Access lists are not read.

    `group` takes the place of the user's own. Raises OSError if there is no such path.
    """
    if user.pw_uid == 0:
        return True
    path = path.resolve()
    groups = os.getgrouplist(user.pw_name, group_id(group) or user.pw_gid)
    wanted = [(path, need), *((parent, os.X_OK) for parent in path.parents)]
    return all(_granted(place.stat(), user.pw_uid, groups) & bits == bits for place, bits in wanted)


def make_directory(directory: Path, owner: str | None) -> str:
    """The command that makes a directory for the service."""
    return f"install -d -m 750 {f'-o {owner} ' if owner else ''}{directory}"


def _granted(found: os.stat_result, uid: int, groups: list[int]) -> int:
    """The bits (os.R_OK, os.W_OK, os.X_OK) for a user of these groups."""
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid == uid:
        return mode >> 6 & 7
    return (mode >> 3 if found.st_gid in groups else mode) & 7
