"""From the configuration to logins by ticket. GSSAPI is imported on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from popproxy.app.kerberos import mapping_rules, principal_map
from popproxy.app.measured import KdcExecutor
from popproxy.backend.kerberos_logins import KerberosLogins
from popproxy.config.model import Config
from popproxy.config.model_kerberos import Kerberos
from popproxy.config.model_listeners import Listener
from popproxy.observe.metrics import Metrics

if TYPE_CHECKING:
    from popproxy.kerberos.delegation import Delegation


class DelegationParts:
    """What the listeners share. The pool of threads is their own: a silent KDC must not stop tickets and passwords."""

    def __init__(self, config: Config, kerberos: Kerberos, metrics: Metrics, canonical: Callable[[str], str]) -> None:
        """Raises ConfigError. The event loop must be running."""
        size = kerberos.threads, kerberos.queue, kerberos.deadline
        self._executor = KdcExecutor("delegation", "delegation", *size, metrics)
        rules = mapping_rules(kerberos)
        self._delegations: dict[tuple[str, str], Delegation] = {}
        self._logins: dict[str, KerberosLogins] = {}
        for listener in config.listeners:
            at = kerberos.at(listener)
            principals = principal_map(config, at, rules)
            principal_of = partial(principals.principal_of, canonical=canonical)
            self._logins[listener.name] = KerberosLogins(self._delegation(at), principal_of)
        self._interval = max(kerberos.delegation_cache, 1.0)
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._tidy)

    def at(self, listener: Listener) -> KerberosLogins:
        """For the sessions of a listener."""
        return self._logins[listener.name]

    def close(self) -> None:
        """Let the threads end."""
        self._timer.cancel()
        self._executor.close()

    def _delegation(self, kerberos: Kerberos) -> Delegation:
        """One for listeners with the same keytab and name: they share what is kept for a user."""
        from popproxy.kerberos.delegation import Delegation  # noqa: PLC0415 - an optional library

        principal = kerberos.client_principal or kerberos.principals[0]
        key = (str(kerberos.keytab), principal)
        if key not in self._delegations:
            self._delegations[key] = Delegation(
                kerberos.keytab, principal, executor=self._executor, fixed=kerberos.client_principal is not None,
                keep=kerberos.delegation_cache, size=kerberos.delegation_cache_size,
            )  # fmt: skip
        return self._delegations[key]

    def _tidy(self) -> None:
        """Tickets in users' names do not stay in memory because nobody comes who would push them out."""
        for delegation in self._delegations.values():
            delegation.expire()
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._tidy)
