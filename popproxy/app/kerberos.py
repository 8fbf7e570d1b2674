"""From the section kerberos to acceptors, rules and the asker of the KDC. Its libraries are imported here on demand."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from popproxy.app.chain import KdcJudge
from popproxy.app.measured import KdcExecutor
from popproxy.auth.kerberos import Kdc, RememberingKdc
from popproxy.config.loader import Loaded
from popproxy.config.model import Config
from popproxy.config.model_kerberos import Kerberos
from popproxy.config.model_pools import TICKET_STRATEGIES
from popproxy.errors import ConfigError, Problem, Unavailable
from popproxy.kerberos.keytab import usable
from popproxy.kerberos.mapping import Key, PrincipalMap, RealmRule, Rule, TableRule, parse_table, regex_rule
from popproxy.observe.metrics import Metrics
from popproxy.sasl.credentials import Layer
from popproxy.sasl.gssapi import LayerOffer
from popproxy.session.tickets import Tickets
from popproxy.state.executors import BoundedExecutor
from popproxy.state.remembered import Remembered
from popproxy.state.reread import RereadFile

LAYER_SIZE = 64 * 1024
"""Longest wrapped token, in octets, that clients may send us in a security layer."""
_LAYERS = {"none": Layer.NONE, "integrity": Layer.INTEGRITY, "confidentiality": Layer.CONFIDENTIALITY}
INSTALL = "pip install 'popproxy[kerberos]' (it is built from source: libkrb5-dev, python3-dev and gcc are needed)"


def import_libraries(loaded: Loaded) -> None:
    """Import what Kerberos needs, while root may still read it. Raises ConfigError if it is not installed."""
    why = None if loaded.config.kerberos is None else libraries_missing()
    if why is not None:
        what = f"the libraries for Kerberos are not installed ({why})"
        raise ConfigError([Problem(str(loaded.path), "kerberos", what, INSTALL)])


def libraries_missing() -> str | None:
    """Import what Kerberos needs; what is missing, in words, or None."""
    try:
        importlib.import_module("popproxy.kerberos.acceptor")
        importlib.import_module("popproxy.kerberos.delegation")
        importlib.import_module("popproxy.kerberos.libkrb5").library()
    except (ImportError, Unavailable) as error:
        return str(error)
    return None


def wants_tickets(config: Config) -> bool:
    """Is there a pool that is logged in to with tickets?"""
    return any(TICKET_STRATEGIES.intersection(pool.login) for pool in config.pools.values())


@dataclass(frozen=True, slots=True)
class ListenerKerberos:
    """What the sessions of a listener use."""

    tickets: Tickets
    judge: KdcJudge


class KerberosParts:
    """What the listeners share. Tickets and passwords have pools of their own: a silent KDC must not stop tickets."""

    def __init__(self, config: Config, kerberos: Kerberos, metrics: Metrics) -> None:
        """Raises ConfigError."""
        self._metrics = metrics
        self._delegation = wants_tickets(config)
        self._shared = config.shared_state is not None
        size = kerberos.threads, kerberos.queue, kerberos.deadline
        tickets = BoundedExecutor("tickets", *size)
        metrics.watch_executor(tickets.name, tickets)
        self._executors = tickets, KdcExecutor("kdc", "password", *size, metrics)
        rules = mapping_rules(kerberos)
        self._listeners: dict[str, ListenerKerberos] = {}
        for listener in config.listeners:
            if listener.uses_kerberos:
                at = kerberos.at(listener)
                self._listeners[listener.name] = self._make(
                    at, realm_rules(kerberos, at), principal_map(config, at, rules)
                )
                metrics.watch_keytab(listener.name, partial(usable, at.keytab, at.principals))

    def at(self, listener: str) -> ListenerKerberos | None:
        """What a listener uses; None if it does not use Kerberos."""
        return self._listeners.get(listener)

    def close(self) -> None:
        """Let the threads end."""
        for executor in self._executors:
            executor.close()

    def _passwords(self, kerberos: Kerberos, asked: Kdc) -> Kdc:
        if not kerberos.cache:
            return asked
        return RememberingKdc(asked, Remembered[str](kerberos.cache), self._metrics.auth_cache)

    def _make(self, kerberos: Kerberos, realms: list[RealmRule], principals: PrincipalMap) -> ListenerKerberos:
        from popproxy.kerberos.acceptor import Acceptor  # noqa: PLC0415 - an optional library
        from popproxy.kerberos.apreq import ApReqVerifier  # noqa: PLC0415
        from popproxy.kerberos.password import KdcPassword  # noqa: PLC0415

        tickets, executor = self._executors
        keytab, names, cache = kerberos.keytab, kerberos.principals, kerberos.replay_cache
        require = kerberos.channel_binding == "require"
        asked = KdcPassword(keytab, names[0], [rule.realm for rule in realms], executor=executor)
        acceptor = Acceptor(
            keytab, names, rcache_dir=cache, executor=tickets, require_channel_binding=require,
            delegation=self._delegation,
        )  # fmt: skip
        return ListenerKerberos(
            Tickets(
                acceptor=acceptor,
                verifier=ApReqVerifier(keytab, names, rcache_dir=cache, executor=tickets),
                principals=principals,
                layers=_layers(kerberos),
                bind=kerberos.channel_binding != "off",
                require_binding=require,
                shared=self._shared and kerberos.keys_shared,
                delegation=self._delegation,
            ),
            KdcJudge(self._passwords(kerberos, asked), principals, realms),
        )


def realm_rules(kerberos: Kerberos, at: Kerberos) -> list[RealmRule]:
    """The realms of a listener whose section is `at`; `kerberos` is the one in the file, by whose places they go."""
    places = {realm.realm: number for number, realm in enumerate(kerberos.realms)}
    return [
        RealmRule(
            realm.realm, realm.domain, frozenset(realm.instances), realm.by_name,
            ("kerberos", "realms", places[realm.realm]),
        )
        for realm in at.realms
    ]  # fmt: skip


def mapping_rules(kerberos: Kerberos) -> list[Rule]:
    """The rules that give principals other mailboxes. Raises ConfigError for a file that cannot be used."""
    rules: list[Rule] = []
    for number, rule in enumerate(kerberos.rules):
        key = ("kerberos", "rules", number)
        if rule.file is not None:
            rules.append(_table(rule.file, key))
        elif rule.regex is not None and rule.mailbox is not None:
            rules.append(regex_rule(rule.regex, rule.mailbox, key))
    return rules


def principal_map(config: Config, at: Kerberos, rules: Sequence[Rule]) -> PrincipalMap:
    """The mapping of a listener whose section is `at`; `rules` are `mapping_rules`."""
    return PrincipalMap(realm_rules(config.kerberos or at, at), rules, case=config.authentication.case)


def _table(path: Path, key: Key) -> TableRule:
    try:
        file = RereadFile(path, lambda octets: parse_table(octets, str(path)), logging.getLogger("popproxy.kerberos"))
    except OSError as error:
        cure = "create it, or correct kerberos.rules[].file"
        raise ConfigError([Problem(str(path), "", f"cannot be read: {error.strerror}", cure)]) from None

    def table() -> Mapping[str, str]:
        if file.is_stale():
            file.refresh()
        return file.value

    return TableRule(str(path), table, key)


def _layers(kerberos: Kerberos) -> LayerOffer:
    layers = Layer(0)
    for name in kerberos.layers:
        layers |= _LAYERS[name]
    return LayerOffer(layers, 0 if layers == Layer.NONE else LAYER_SIZE)
