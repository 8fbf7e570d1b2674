"""Checks of users file, routing files, vault, and popproxy's own accounts at servers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from popproxy.app.checks.coverage import check_coverage
from popproxy.app.checks.finding import Finding, counted, misconfigured, ok, problem
from popproxy.auth.names import canonical
from popproxy.auth.rpop import TrustedHosts
from popproxy.auth.users_file import UsersFile
from popproxy.config.model import Config
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, VaultError
from popproxy.routing.router import Router
from popproxy.vault.keys import vault_key
from popproxy.vault.record import Record
from popproxy.vault.store import Vault


def check_accounts(config: Config) -> list[Finding]:
    """Findings about the users file, the routing files and the vault. Reads files; verifies no password."""
    findings: list[Finding] = []
    users = _read_users(config, findings)
    findings += _routing(config)
    findings += _own_accounts(config)
    findings += _trusted_hosts(config)
    vault = _read_vault(config, findings)
    both_read = (config.users is None or users is not None) and (config.vault is None or vault is not None)
    if both_read:  # else the mistake would be told twice
        findings += check_coverage(config, users, vault or {})
    return findings


def _read_users(config: Config, findings: list[Finding]) -> UsersFile | None:
    if config.users is None:
        return None
    area = f"users file {config.users.file}"
    try:
        users = UsersFile.load(config.users.file, _canonical(config))
    except ConfigError as error:
        findings += misconfigured(area, error)
        return None
    findings.append(ok(area, counted(len(users), "user")))
    return users


def _read_vault(config: Config, findings: list[Finding]) -> dict[str, Record] | None:
    if config.vault is None:
        return None
    area = f"vault {config.vault.file}"
    try:
        records = dict(Vault.open(config.vault.file, vault_key(config.vault)).records())
    except ConfigError as error:
        findings += misconfigured(area, error)
        return None
    except VaultError as error:
        findings.append(problem(area, str(error)))
        return None
    findings.append(ok(area, f"opens with its key, {counted(len(records), 'secret')}"))
    return records


def _own_accounts(config: Config) -> list[Finding]:
    findings: list[Finding] = []
    for name, pool in config.pools.items():
        accounts = []
        if pool.master is not None and "master" in pool.login:
            accounts.append((pool.master.user, pool.master.password, f"pools.{name}.master.password"))
        if pool.check is not None and pool.check.user is not None and pool.check.password is not None:
            accounts.append((pool.check.user, pool.check.password, f"pools.{name}.check.password"))
        for user, password, key in accounts:
            area = f"pool {name}"
            try:
                resolve_secret(password, key)
            except ConfigError as error:
                findings += misconfigured(area, error)
            else:
                findings.append(ok(area, f"the password of {user} can be read"))
    return findings


def _trusted_hosts(config: Config) -> list[Finding]:
    if config.rpop is None or config.rpop.hosts is None:
        return []
    try:
        TrustedHosts.load(config.rpop.hosts, _canonical(config))
    except ConfigError as error:
        return misconfigured("RPOP", error)
    return [ok("RPOP", f"{config.rpop.hosts} can be used")]


def _routing(config: Config) -> list[Finding]:
    files = [rule.file for rule in config.routing.rules if rule.file is not None]
    if not files:
        return []
    try:
        Router(config, _canonical(config))
    except ConfigError as error:
        return misconfigured("routing", error)
    return [ok("routing", f"{file} can be used") for file in files]


def _canonical(config: Config) -> Callable[[str], str]:
    rules = config.authentication
    return partial(canonical, default_domain=rules.default_domain, case=rules.case)
