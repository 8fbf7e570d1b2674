"""How to log in at a backend: the pool's strategies and the credentials there are, as logins the core can do."""

from __future__ import annotations

from collections.abc import Callable

from popproxy.backend.pool import Pool
from popproxy.pop3.client import Apop, Login, UserPass
from popproxy.sasl.credentials import Credential, PasswordCredential
from popproxy.types import Identity, Secret


def logins_for(
    pool: Pool, backend_user: str, identity: Identity, credential: Credential, stored: Callable[[], Secret | None]
) -> list[Login]:
    """The logins that can be tried, in the pool's order; empty if there is none.

    `stored` looks the user up in the vault. A password that only the backend can judge may be used for nothing else:
    a stored secret would let anybody in.
    """
    logins: list[Login] = []
    for strategy in pool.config.login:
        if strategy == "forward":
            if isinstance(credential, PasswordCredential):
                logins.append(UserPass(backend_user, credential.password, users_own=not identity.proven))
        elif not identity.proven:
            continue
        elif strategy == "master":
            logins += _master(pool, backend_user)
        else:
            secret = stored()
            if secret is not None:
                logins.append(Apop(backend_user, secret) if strategy == "apop" else UserPass(backend_user, secret))
    return logins


def _master(pool: Pool, backend_user: str) -> list[Login]:
    """The master's name stands behind the user's; a user with the separator in its name would open another maildrop."""
    master, password = pool.config.master, pool.master_password
    if master is None or password is None or master.separator in backend_user:
        return []
    return [UserPass(f"{backend_user}{master.separator}{master.user}", password)]
