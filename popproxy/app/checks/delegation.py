"""Checks of tickets for backends: would the KDC give them? No user and no backend is needed to find that out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from popproxy.app.checks.finding import Finding, ok, problem, warning
from popproxy.app.checks.threads import in_daemon_thread
from popproxy.app.kerberos import libraries_missing
from popproxy.backend.pool import Pool
from popproxy.config.model import Config
from popproxy.config.model_pools import TICKET_STRATEGIES
from popproxy.errors import PopproxyError
from popproxy.kerberos.delegation_failure import DelegationFailed
from popproxy.state.executors import BoundedExecutor

KDC_SECONDS = 10.0
"""Longest wait for the KDC, for one way and one server; all are asked at once."""


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """One way to log in at one server. `own` is the principal that clients show their tickets to."""

    pool: str
    strategy: str
    target: str
    keytab: Path
    client: str  # who we are at the KDC
    fixed: bool
    own: str

    @property
    def area(self) -> str:
        return f"pool {self.pool}"


async def check_delegation(config: Config) -> list[Finding]:
    """Ask the KDC for every ticket that logins will need, as far as that can be done without a user."""
    if config.kerberos is None or libraries_missing():
        return []
    found = await asyncio.gather(*(_rehearse(one) for one in dict.fromkeys(_rehearsals(config))))
    return list(dict.fromkeys(found))


def _rehearsals(config: Config) -> Iterator[_Rehearsal]:
    assert config.kerberos is not None
    for name, pool in config.pools.items():
        for backend in Pool(name, pool).backends:
            for strategy in pool.login:
                if strategy not in TICKET_STRATEGIES:
                    continue
                for listener in config.listeners:
                    kerberos = config.kerberos.at(listener)
                    takes = listener.gssapi or listener.protocol == "kpop"
                    names = (
                        kerberos.principals if strategy == "kerberos-delegated" and takes else kerberos.principals[:1]
                    )
                    client, fixed = kerberos.client_principal or names[0], kerberos.client_principal is not None
                    for own in names:
                        yield _Rehearsal(name, strategy, backend.principal, kerberos.keytab, client, fixed, own)


async def _rehearse(one: _Rehearsal) -> Finding:
    try:
        async with asyncio.timeout(KDC_SECONDS):
            await in_daemon_thread(partial(_ask, one))
    except TimeoutError:
        text = f"no KDC has answered within {KDC_SECONDS:g} s about a ticket for {one.target}"
        return problem(one.area, text, "is it up, and is there a firewall in between?")
    except DelegationFailed as failed:
        return problem(one.area, f"{one.strategy}: {failed.what}", failed.cure)
    except PopproxyError as error:
        return warning(one.area, f"{one.strategy} could not be tried: {error}")
    return ok(one.area, _granted(one))


def _granted(one: _Rehearsal) -> str:
    match one.strategy:
        case "kerberos-delegated":
            return f"the KDC lets {one.client if one.fixed else one.own} act at {one.target} for users with a ticket"
        case "kerberos-transition":
            return f"the KDC lets {one.client} act at {one.target} for users without a ticket"
        case _:
            return f"the KDC issues tickets for {one.target}"


def _ask(one: _Rehearsal) -> None:
    from popproxy.kerberos.delegation import Delegation  # noqa: PLC0415 - an optional library

    executor = BoundedExecutor("check", 1, 1, KDC_SECONDS)  # never used: this is a thread already
    delegation = Delegation(one.keytab, one.client, executor=executor, fixed=one.fixed, keep=0, size=0)
    delegation.rehearse(one.strategy, one.target, one.own)
