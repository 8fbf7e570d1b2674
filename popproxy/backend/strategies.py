"""How to log in at a backend: the pool's strategies and the credentials there are, as logins the core can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from popproxy.backend.kerberos_logins import KerberosLogins
from popproxy.backend.pool import Pool
from popproxy.pop3.logins import Apop, Login, Plain, UserPass
from popproxy.sasl.credentials import Credential, PasswordCredential
from popproxy.types import Identity, Secret

Skipped = Callable[[str, str], None]
"""Told of each strategy that cannot be used, and why."""


def logins_for(
    pool: Pool,
    backend_user: str,
    identity: Identity,
    credential: Credential,
    stored: Callable[[], Secret | None],
    kerberos: KerberosLogins | None = None,
    skipped: Skipped = lambda _strategy, _why: None,
) -> list[Login]:
    """The logins that can be tried, in the pool's order; empty if there is none.

    `stored` looks the user up in the vault. A password that only the backend can judge may be used for nothing else:
    a stored secret would let anybody in.
    """
    logins: list[Login] = []
    for strategy in pool.config.login:
        login: Login | None = None
        if strategy == "forward":
            login = _forward(backend_user, identity, credential)
        elif not identity.proven:
            skipped(strategy, "only the server can tell who it is, and this would let anybody in")
            continue
        elif strategy == "master":
            login = _master(pool, backend_user)
        elif strategy in ("apop", "stored"):
            login = _from_vault(strategy, backend_user, stored())
        elif kerberos is not None:
            login = kerberos.login(strategy, pool, backend_user, identity, credential)
        if login is not None:
            logins.append(login)
        else:
            skipped(strategy, _LACKING[strategy])
    return logins


_LACKING: Final = {
    "forward": "the client sends no password",
    "master": "the user's name has the separator in it, behind which the master's name would stand",
    "apop": "the vault has no secret of this user",
    "stored": "the vault has no secret of this user",
    "kerberos-forwarded": "the client has forwarded no ticket",
    "kerberos-delegated": "the client has shown no ticket",
    "kerberos-transition": "there is no principal, or more than one, whose mailbox this is",
    "kerberos-service": "there is no section kerberos",
}
"""What a strategy has not got, if it makes no login."""


def _forward(backend_user: str, identity: Identity, credential: Credential) -> Login | None:
    """With the client's password, or the one that a directory has for it there."""
    if identity.location is not None and identity.location.password is not None:
        return UserPass(backend_user, identity.location.password)
    if isinstance(credential, PasswordCredential):
        return UserPass(backend_user, credential.password, users_own=not identity.proven)
    return None


def _from_vault(strategy: str, backend_user: str, secret: Secret | None) -> Login | None:
    if secret is None:
        return None
    return Apop(backend_user, secret) if strategy == "apop" else UserPass(backend_user, secret, strategy=strategy)


def _master(pool: Pool, backend_user: str) -> Login | None:
    """By USER, the master's name stands behind the user's: with the separator in its name it opens another maildrop."""
    master, password = pool.config.master, pool.master_password
    if master is None or password is None:
        return None
    if master.mechanism == "plain":
        return Plain(backend_user, master.user, password)
    if master.separator in backend_user:
        return None
    return UserPass(f"{backend_user}{master.separator}{master.user}", password, strategy="master")
