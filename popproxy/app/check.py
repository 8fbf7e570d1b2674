"""Would `popproxy serve` work here? All checks of the environment, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from popproxy.app.checks.accounts import check_accounts
from popproxy.app.checks.audit import check_audit, check_syslog
from popproxy.app.checks.backends import check_backends
from popproxy.app.checks.certificates import check_certificates
from popproxy.app.checks.client_certificates import check_client_certificates
from popproxy.app.checks.control import check_control
from popproxy.app.checks.delegation import check_delegation
from popproxy.app.checks.directories import check_directories
from popproxy.app.checks.endpoints import check_endpoints
from popproxy.app.checks.finding import Finding, ok, problem, warning
from popproxy.app.checks.kdc import check_kdcs
from popproxy.app.checks.kerberos import check_kerberos
from popproxy.app.checks.listeners import check_listeners
from popproxy.app.checks.oauth import check_oauth
from popproxy.app.checks.operators import check_operators
from popproxy.app.checks.policy import check_policy
from popproxy.app.checks.shared import check_shared
from popproxy.app.checks.system import check_system
from popproxy.app.checks.threads import in_daemon_thread
from popproxy.app.checks.tunnels import check_tunnel_files, check_tunnels
from popproxy.config.loader import Loaded
from popproxy.config.model import Config

LOCAL_SECONDS = 14.0
"""Longest time for the checks of this machine: a name server or a network file system may hang."""

_LOCAL: dict[str, Callable[[Config], list[Finding]]] = {
    "ports": check_listeners,
    "certificates": check_certificates,
    "client certificates": check_client_certificates,
    "accounts": check_accounts,
    "kerberos": check_kerberos,
    "policy": check_policy,
    "process": check_system,
    "audit": check_audit,
    "control socket": check_control,
    "operators": check_operators,
}


async def check_environment(loaded: Loaded, *, offline: bool = False) -> list[Finding]:
    """Every finding about `loaded` on this machine, grouped by what was looked at; ends within about 15 seconds.

    Binds and releases the ports and reads the files. Unless `offline`, asks the backends, without logging in, the KDCs,
    with the keys of the keytabs, the directories, the issuers and endpoints of tokens, and Redis.
    """
    config = loaded.config
    local = [_run(area, check, config) for area, check in _LOCAL.items()]
    network = (
        [] if offline else [check_syslog(config), check_kdcs(config), check_delegation(config), _check_ways(config)]
    )
    if offline and config.tunnels:
        local.append(_run("tunnels", check_tunnel_files, config))
    network += [check_directories(config, offline=offline), check_oauth(config, offline=offline)]
    network += [check_endpoints(config, offline=offline), check_shared(config, offline=offline)]
    results = await asyncio.gather(*local, *network)
    return [*_configuration(loaded), *(finding for findings in results for finding in findings)]


async def _check_ways(config: Config) -> list[Finding]:
    async with check_tunnels(config) as tunnels:
        return [*tunnels.findings, *await check_backends(config, tunnels)]


def _configuration(loaded: Loaded) -> list[Finding]:
    area = f"configuration {loaded.path}"
    found = [
        warning(area, ": ".join(filter(None, (item.where, item.key, item.what))), item.cure) for item in loaded.warnings
    ]
    return found or [ok(area, "no mistakes")]


async def _run(area: str, check: Callable[[Config], list[Finding]], config: Config) -> list[Finding]:
    try:
        async with asyncio.timeout(LOCAL_SECONDS):
            return await in_daemon_thread(partial(check, config))
    except TimeoutError:
        return [problem(area, f"the check did not end within {LOCAL_SECONDS:g} s", "does a file system or DNS hang?")]
