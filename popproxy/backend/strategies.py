"""How to log in at a backend: the pool's strategies and the credentials there are, as logins the core can do.

A strategy applies if there is what it takes: a password of the client, an entry in the vault, a ticket ... The core
then takes the first one that the server has not said it lacks. What the server refuses is never tried again in another
way: a wrong credential must be noticed, not covered up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from popproxy.backend.kerberos_logins import KerberosLogins
from popproxy.backend.pool import Pool
from popproxy.pop3.logins import Apop, Bearer, External, Login, Plain, UserPass
from popproxy.sasl.credentials import Credential, PasswordCredential
from popproxy.types import Identity

if TYPE_CHECKING:
    from popproxy.vault.record import Record

Skipped = Callable[[str, str], None]
"""Told of each strategy that cannot be used, and why."""


def logins_for(
    pool: Pool,
    backend_user: str,
    identity: Identity,
    credential: Credential,
    stored: Callable[[], Record | None],
    kerberos: KerberosLogins | None = None,
    skipped: Skipped = lambda _strategy, _why: None,
) -> list[Login]:
    """The logins that can be tried, in the pool's order; empty if there is none.

    `stored` looks the user up in the vault, if there is one. A password that only the backend can judge may be used for
    nothing else: a stored secret would let anybody in.
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
        elif strategy == "external":
            login = External(backend_user) if pool.config.certificate is not None else None
        elif strategy == "xoauth2":
            login = _bearer(pool, backend_user, identity.user, stored)
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
    "apop": "the vault has no password of this user",
    "stored": "the vault has no password of this user",
    "external": "there is no certificate to show",
    "xoauth2": "the vault has no refresh token of this user",
    "kerberos-forwarded": "the client has forwarded no ticket",
    "kerberos-delegated": "the client has shown no ticket",
    "kerberos-transition": "there is no principal, or more than one, whose mailbox this is",
    "kerberos-service": "there is no section kerberos",
}
"""What a strategy has not got, if it makes no login."""


def _forward(backend_user: str, identity: Identity, credential: Credential) -> Login | None:
    """With the client's password, or the one that the directory which has judged it gives for there."""
    if identity.proven and identity.location is not None and identity.location.password is not None:
        return UserPass(backend_user, identity.location.password)
    if isinstance(credential, PasswordCredential):
        return UserPass(backend_user, credential.password, users_own=not identity.proven)
    return None


def _from_vault(strategy: str, backend_user: str, record: Record | None) -> Login | None:
    secret = None if record is None else record.for_backend
    if secret is None:
        return None
    return Apop(backend_user, secret) if strategy == "apop" else UserPass(backend_user, secret, strategy=strategy)


def _bearer(pool: Pool, backend_user: str, user: str, stored: Callable[[], Record | None]) -> Login | None:
    config, tokens = pool.config.xoauth2, pool.tokens
    if config is None or tokens is None:
        return None
    if config.grant == "client_credentials":
        source = tokens.own()
    else:
        record = stored()
        if record is None or record.refresh_token is None:
            return None
        source = tokens.of(user, record.refresh_token)
    mechanism: Literal["XOAUTH2", "OAUTHBEARER"] = "XOAUTH2" if config.mechanism == "xoauth2" else "OAUTHBEARER"
    return Bearer(backend_user, source, mechanism, config.two_lines)


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
