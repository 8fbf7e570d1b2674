"""From the configuration to the pools, and to what popproxy itself proves itself with at their servers."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from popproxy.app.socks import read_socks_password
from popproxy.backend.access_tokens import AccessTokens, Ask
from popproxy.backend.pool import Pool, pool_context
from popproxy.config.loader import Loaded
from popproxy.config.model import Config
from popproxy.config.model_backends import XOAuth2
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, Problem, VaultError
from popproxy.observe.metrics import Metrics
from popproxy.state.executors import BoundedExecutor
from popproxy.types import Secret

if TYPE_CHECKING:
    from popproxy.vault.record import Record
    from popproxy.vault.store import Vault


@dataclass(frozen=True, slots=True)
class PoolSecrets:
    """What is read before the privileges are dropped, by pool."""

    masters: dict[str, Secret] = field(default_factory=dict)
    clients: dict[str, Secret] = field(default_factory=dict)  # OAuth's, of xoauth2
    checks: dict[str, Secret] = field(default_factory=dict)  # of the users of checks
    socks: dict[str, Secret] = field(default_factory=dict)  # at the SOCKS proxy
    tls: dict[str, ssl.SSLContext] = field(default_factory=dict)  # with a certificate of ours


def read_pool_secrets(loaded: Loaded) -> PoolSecrets:
    """Raises ConfigError with everything that cannot be read."""
    found, problems = PoolSecrets(), []
    for name, pool in loaded.config.pools.items():
        at = f"pools.{name}"
        try:
            if pool.master is not None and "master" in pool.login:
                found.masters[name] = resolve_secret(pool.master.password, f"{at}.master.password")
            if pool.xoauth2 is not None and pool.xoauth2.client_secret is not None and "xoauth2" in pool.login:
                found.clients[name] = resolve_secret(pool.xoauth2.client_secret, f"{at}.xoauth2.client_secret")
            if pool.check is not None and pool.check.password is not None:
                found.checks[name] = resolve_secret(pool.check.password, f"{at}.check.password")
            if pool.socks is not None:
                password = read_socks_password(str(loaded.path), at, pool.socks)
                if password is not None:
                    found.socks[name] = password
        except ConfigError as error:
            problems += error.problems
        if pool.certificate is not None and pool.tls != "none":
            try:
                found.tls[name] = pool_context(pool)
            except (OSError, ssl.SSLError) as error:
                cure = "run `popproxy check`, it says which file and why"
                problems.append(Problem(str(loaded.path), f"{at}.certificate", str(error), cure))
    if problems:
        raise ConfigError(problems)
    return found


def make_pools(config: Config, secrets: PoolSecrets) -> dict[str, Pool]:
    """The pools, by name."""
    return {
        name: Pool(name, pool, secrets.masters.get(name), tls=secrets.tls.get(name))
        for name, pool in config.pools.items()
    }


class TokenParts:
    """Access tokens for the pools that want them. Imports the HTTP client only if there is one."""

    def __init__(
        self,
        pools: dict[str, Pool],
        secrets: PoolSecrets,
        vault: Vault | None,
        executor: BoundedExecutor,
        metrics: Metrics,
        where: str,
    ) -> None:
        """Raises ConfigError for CA files that cannot be used."""
        self._made: list[AccessTokens] = []
        for name, pool in pools.items():
            section = pool.config.xoauth2
            if section is None or "xoauth2" not in pool.config.login:
                continue
            try:
                context = endpoint_context(section)
            except (OSError, ssl.SSLError) as error:
                cure = "name a file of CA certificates in PEM"
                problem = Problem(where, f"pools.{name}.xoauth2.ca", f"{section.ca}: {error}", cure)
                raise ConfigError([problem]) from None
            pool.tokens = made = AccessTokens(
                section, _asker(section, context), secrets.clients.get(name),
                keep=partial(_keep, vault, executor), count=partial(_count, metrics),
            )  # fmt: skip
            self._made.append(made)

    def close(self) -> None:
        """Nobody waits for tokens any more."""
        for tokens in self._made:
            tokens.close()


def endpoint_context(section: XOAuth2) -> ssl.SSLContext:
    """For TLS to the endpoint. Raises OSError, ssl.SSLError."""
    context = ssl.create_default_context(cafile=None if section.ca is None else str(section.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _asker(section: XOAuth2, context: ssl.SSLContext) -> Ask:
    from popproxy.net.json_http import JsonHttp  # noqa: PLC0415 - large, and few need it

    return JsonHttp(context, section.deadline).request_token


def _count(metrics: Metrics, outcome: str) -> None:
    metrics.backend_access_tokens[outcome] += 1


async def _keep(vault: Vault | None, executor: BoundedExecutor, user: str, before: Secret, token: Secret) -> None:
    """Put a user's new refresh token into the vault, unless somebody has put another one there meanwhile."""
    if vault is None:
        raise VaultError("there is no vault")

    def change(record: Record) -> Record:
        return record.with_refresh_token(token) if record.refresh_token == before else record

    await executor.run(vault.change, {user: change})
