"""Secrets live outside the configuration file; this fetches them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from popproxy.config.secret_source import SecretSource
from popproxy.errors import ConfigError, Problem
from popproxy.types import Secret

MAX_SECRET_OCTETS = 64 << 10


def resolve_secret(source: SecretSource, key: str = "vault.key") -> Secret:
    """The secret that `source` names; `key` is the dotted key of `source`, for messages. Raises ConfigError.

    A final line end is dropped. A file must not be open to others: nothing for the world, nothing for the group if the
    file is ours (a mounted Kubernetes secret belongs to root and is readable by our group). A systemd credential is
    guarded by its directory.
    """
    if source.file is not None:
        return _from_file(source.file, f"{key}.file", guarded=False)
    if source.env is not None:
        return _from_environment(source.env, f"{key}.env")
    name = source.credential or ""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        cure = f"start popproxy by systemd with LoadCredential={name}:/path/of/the/secret, or use file"
        raise _wrong(
            "", f"{key}.credential", "there are no systemd credentials (CREDENTIALS_DIRECTORY is not set)", cure
        )
    if "/" in name or name in {"", ".", ".."}:
        raise _wrong("", f"{key}.credential", "is not the name of a credential", "write the name from LoadCredential=")
    return _from_file(Path(directory) / name, f"{key}.credential", guarded=True)


def _from_environment(name: str, key: str) -> Secret:
    try:
        value = os.environb.get(os.fsencode(name))
    except ValueError:
        value = None
    if value is None:
        raise _wrong("", key, f"the environment variable {name} is not set", "set it for popproxy, or use file")
    return _checked(value, "", key, f"the environment variable {name} is empty")


def _from_file(path: Path, key: str, guarded: bool) -> Secret:
    where = str(path)
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _wrong(where, key, "is not a regular file", "name a file that holds the secret and nothing else")
            if not guarded:
                _refuse_open_to_others(status, where, key)
            value = file.read(MAX_SECRET_OCTETS + 1)
    except FileNotFoundError:
        cure = "add LoadCredential= to the unit" if guarded else "make the file, or correct the path"
        raise _wrong(where, key, "there is no such file", cure) from None
    except PermissionError:
        raise _wrong(where, key, "may not be read", f"let popproxy's user own it: chown popproxy {where}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a file name"
        raise _wrong(
            where, key, f"cannot be read: {reason}", "name a file that holds the secret and nothing else"
        ) from None
    if len(value) > MAX_SECRET_OCTETS:
        raise _wrong(
            where, key, f"is larger than {MAX_SECRET_OCTETS >> 10} KiB", "name the file that holds only the secret"
        )
    return _checked(value, where, key, "the file is empty")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer for ever


def _refuse_open_to_others(status: os.stat_result, where: str, key: str) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o007:
        raise _wrong(where, key, f"every user of the machine can open it (mode {mode:04o})", f"run: chmod 600 {where}")
    if mode & 0o020 or (mode & 0o070 and status.st_uid == os.geteuid()):
        raise _wrong(where, key, f"its group can open it (mode {mode:04o})", f"run: chmod 600 {where}")


def _checked(value: bytes, where: str, key: str, empty: str) -> Secret:
    value = value.removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise _wrong(where, key, empty, "write the secret there")
    return Secret(value)


def _wrong(where: str, key: str, what: str, cure: str) -> ConfigError:
    return ConfigError([Problem(where, key, what, cure)])
