"""Whether those who could use a mechanism have what it takes for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from popproxy.app.checks.finding import Finding, counted, problem, warning
from popproxy.auth.names import canonical
from popproxy.auth.users_file import DISABLED, UsersFile
from popproxy.config.model import Config
from popproxy.config.model_pools import Pool
from popproxy.errors import ConfigError
from popproxy.routing.router import Router
from popproxy.sasl.scram_verifier import scheme_of
from popproxy.types import Mechanism
from popproxy.vault.record import Record

NAMED: Final = 5
"""Users named in one finding; the others are counted."""


def check_coverage(config: Config, users: UsersFile | None, vault: Mapping[str, Record]) -> list[Finding]:
    """Findings about APOP, CRAM-MD5, SCRAM, and the ways in at pools, for the users of the users file and the vault."""
    findings: list[Finding] = []
    known = [user for user in users.users() if users.lookup(user) != DISABLED] if users is not None else []
    secrets = {user for user, record in vault.items() if record.secret is not None}
    digests = {"APOP": any(listener.apop for listener in config.listeners)}
    digests["CRAM-MD5"] = any("CRAM-MD5" in listener.sasl for listener in config.listeners)
    for name, offered in digests.items():
        if offered and config.vault is not None:
            findings += _digest(name, known, secrets)
    findings += _behind(config, known, vault)
    if any(listener.rpop == "id" for listener in config.listeners) and not any(one.rpop for one in vault.values()):
        cure = "popproxy vault set USER --kind rpop"
        findings.append(problem("RPOP", "nobody has an id for RPOP, so it would always fail", cure))
    rules = config.authentication
    schemes = {
        scheme_of(Mechanism(name)): [user for user in known if "users" in rules.checks(listener.authenticate, user)]
        for listener in config.listeners
        for name in listener.sasl
        if name.startswith("SCRAM")
    }
    for scheme, judged in schemes.items():
        findings += _scram(scheme, users, judged, vault)
    return findings


def _behind(config: Config, users: list[str], vault: Mapping[str, Record]) -> Iterator[Finding]:
    """Pools whose every way in is something that the vault keeps for the user."""
    pools = {name: pool for name, pool in config.pools.items() if all(map(partial(_kept, pool), pool.login))}
    if not pools or config.vault is None:
        return
    rules = config.authentication
    try:
        router = Router(config, partial(canonical, default_domain=rules.default_domain, case=rules.case))
    except ConfigError:
        return  # told of the routing files
    lacking: dict[str, list[str]] = {}
    for user in users:
        route = router.find(user)
        if route is not None and route.pool in pools and not _has_any(pools[route.pool], vault.get(user, Record())):
            lacking.setdefault(route.pool, []).append(user)
    for name, names in lacking.items():
        kind = "backend" if {"apop", "stored"} & {*pools[name].login} else "refresh-token"
        shown = ", ".join(names[:NAMED]) + (" and others" if len(names) > NAMED else "")
        text = f"the vault has nothing to log in with for {counted(len(names), 'user')}: {shown}"
        yield problem(f"pool {name}", text, f"popproxy vault set USER --kind {kind}")


def _kept(pool: Pool, strategy: str) -> bool:
    """Does the strategy need something of the user's in the vault?"""
    by_token = pool.xoauth2 is not None and pool.xoauth2.grant == "refresh_token"
    return strategy in ("apop", "stored") or (strategy == "xoauth2" and by_token)


def _has_any(pool: Pool, record: Record) -> bool:
    found = {"apop": record.for_backend, "stored": record.for_backend, "xoauth2": record.refresh_token}
    return any(found[strategy] is not None for strategy in pool.login)


def _digest(name: str, users: list[str], secrets: set[str]) -> Iterator[Finding]:
    """RFC 1939 section 7 and RFC 2195 take the secret itself."""
    for user in users:
        if user not in secrets:
            text = f"{user} only has a hash, so {name} would always fail"
            yield problem(name, text, f"popproxy vault set {user}")


def _scram(
    scheme: Mechanism, users: UsersFile | None, judged: list[str], vault: Mapping[str, Record]
) -> Iterator[Finding]:
    """`judged`: those whose passwords the users file judges."""
    able = {user for user, record in vault.items() if scheme in record.verifiers}
    if users is not None:
        able |= {user for user in judged if scheme in users.verifiers(user)}
    unable = sorted({*vault, *judged} - able)
    cure = f"popproxy vault set USER --kind scram, or popproxy hash-password --scheme {scheme.lower()}"
    if not able:
        yield problem(scheme, f"nobody has a verifier for {scheme}, so it would always fail", cure)
    elif unable:
        names = ", ".join(unable[:NAMED]) + (" and others" if len(unable) > NAMED else "")
        yield warning(scheme, f"{counted(len(unable), 'user')} cannot use {scheme}: {names}", cure)
