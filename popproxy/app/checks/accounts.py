"""Checks of users file, routing files, vault and master users, and of users who could not use what is offered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from popproxy.app.checks.finding import Finding, counted, ok, problem
from popproxy.auth.names import canonical
from popproxy.auth.users_file import UsersFile
from popproxy.config.model import Config
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, VaultError
from popproxy.routing.router import Router
from popproxy.vault.store import Vault


def check_accounts(config: Config) -> list[Finding]:
    """Findings about the users file, the routing files and the vault. Reads files; verifies no password."""
    findings: list[Finding] = []
    users = _read_users(config, findings)
    findings += _routing(config)
    findings += _masters(config)
    secrets = _read_vault(config, findings)
    if users is not None and secrets is not None and any(listener.apop for listener in config.listeners):
        findings += _apop(users, secrets)
    return findings


def _read_users(config: Config, findings: list[Finding]) -> list[str] | None:
    if config.users is None:
        return None
    area = f"users file {config.users.file}"
    try:
        users = UsersFile.load(config.users.file, _canonical(config)).users()
    except ConfigError as error:
        findings += _problems(area, error)
        return None
    findings.append(ok(area, counted(len(users), "user")))
    return users


def _read_vault(config: Config, findings: list[Finding]) -> set[str] | None:
    """Who has a secret in clear."""
    if config.vault is None:
        return None
    area = f"vault {config.vault.file}"
    try:
        vault = Vault.open(config.vault.file, resolve_secret(config.vault.key))
        secrets = {user for user, record in vault.records() if record.secret is not None}
    except ConfigError as error:
        findings += _problems(area, error)
        return None
    except VaultError as error:
        findings.append(problem(area, str(error)))
        return None
    findings.append(ok(area, f"opens with its key, {counted(len(vault.users()), 'secret')}"))
    return secrets


def _masters(config: Config) -> list[Finding]:
    findings: list[Finding] = []
    for name, pool in config.pools.items():
        if pool.master is None or "master" not in pool.login:
            continue
        area = f"pool {name}"
        try:
            resolve_secret(pool.master.password, f"pools.{name}.master.password")
        except ConfigError as error:
            findings += _problems(area, error)
        else:
            findings.append(ok(area, f"the password of {pool.master.user} can be read"))
    return findings


def _routing(config: Config) -> list[Finding]:
    files = [rule.file for rule in config.routing.rules if rule.file is not None]
    if not files:
        return []
    try:
        Router(config, _canonical(config))
    except ConfigError as error:
        return _problems("routing", error)
    return [ok("routing", f"{file} can be used") for file in files]


def _canonical(config: Config) -> Callable[[str], str]:
    rules = config.authentication
    return partial(canonical, default_domain=rules.default_domain, case=rules.case)


def _apop(users: Iterable[str], secrets: set[str]) -> list[Finding]:
    """A hash cannot prove an APOP digest: that takes the secret itself (RFC 1939 section 7)."""
    return [
        problem("APOP", f"{user} only has a hash, so APOP would always fail", f"popproxy vault set {user}")
        for user in users
        if user not in secrets
    ]


def _problems(area: str, error: ConfigError) -> list[Finding]:
    return [problem(area, ": ".join(filter(None, (one.where, one.key, one.what))), one.cure) for one in error.problems]
