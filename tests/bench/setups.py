"""How popproxy is set up for the scenarios: what differs in its configuration, and the files that it needs."""

from __future__ import annotations

import base64
import os
import pwd
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from popproxy.auth.hashes import hash_password
from popproxy.types import Secret
from popproxy.vault.store import Vault

DEFAULT = "default"
"""The set-up that all proxies have: they relay to the synthetic server, and do not judge passwords."""
OWN = "own"
"""The same, for scenarios that only popproxy can do."""
SPLICE = "splice"
"""Bodies of messages are moved inside the kernel."""
SHARED = "shared"
"""State is shared with other replicas, in a Redis at redis.sock in the proxy's directory."""
WORKERS = "workers"
"""Two worker processes."""
ARGON2ID = "argon2id"
APOP = "apop"

USER, PASSWORD = "s1", "secret"  # what tools/load.c sends; the backend takes any password

_PASS_THROUGH = {"authenticate": "passthrough", "apop": "false", "login": "forward", "splice": "", "sections": ""}


@dataclass(frozen=True, slots=True)
class Setup:
    """`values` for the template of the configuration; `prepare` writes files into the proxy's directory."""

    values: Mapping[str, str]
    prepare: Callable[[Path], None] = lambda directory: None


def sections_of(tree: Path) -> dict[str, str]:
    """Values for what a checkout may be too old to know: limits of sessions (a load is all one user), control."""
    if "sessions_per_user" not in (tree / "popproxy/config/model.py").read_text():
        return {"session_limits": "", "control": ""}
    limits = ", sessions_per_user: 20000, sessions_per_user_and_address: 20000"
    return {"session_limits": limits, "control": "control: {socket: null}"}


def _users_file(directory: Path) -> None:
    """One account, hashed at the cost that `popproxy hash-password` asks for."""
    (directory / "users").write_text(f"{USER}:{hash_password(PASSWORD.encode())}\n")
    _give_to_nobody(directory / "users")


def _vault(directory: Path) -> None:
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    (directory / "vault.key").write_text(key + "\n")
    (directory / "vault.key").chmod(0o600)
    vault = Vault.create(directory / "vault", Secret(key))
    vault.set(USER, Secret(PASSWORD))
    for name in ("vault.key", "vault"):
        _give_to_nobody(directory / name)


def _shared_key(directory: Path) -> None:
    (directory / "shared.key").write_text(secrets.token_hex(32))
    (directory / "shared.key").chmod(0o600)
    _give_to_nobody(directory / "shared.key")


def _give_to_nobody(path: Path) -> None:
    if os.geteuid() == 0:  # popproxy becomes nobody
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


SETUPS: Mapping[str, Setup] = {
    DEFAULT: Setup(_PASS_THROUGH),
    OWN: Setup(_PASS_THROUGH),
    SPLICE: Setup({**_PASS_THROUGH, "splice": ", splice: true"}),
    SHARED: Setup(
        {
            **_PASS_THROUGH,
            "sections": 'shared_state: {url: "unix://@dir@/redis.sock", key: {file: "@dir@/shared.key"}}',
        },
        _shared_key,
    ),
    WORKERS: Setup({**_PASS_THROUGH, "sections": "workers: 2"}),
    ARGON2ID: Setup(
        {**_PASS_THROUGH, "authenticate": "users", "sections": 'users: {file: "@dir@/users"}'}, _users_file
    ),
    APOP: Setup(
        {
            **_PASS_THROUGH, "apop": "true", "login": "forward, stored",
            "sections": 'vault: {file: "@dir@/vault", key: {file: "@dir@/vault.key"}}',
        },
        _vault,
    ),
}  # fmt: skip
