"""From the section kerberos to acceptors, rules and the asker of the KDC. Its libraries are imported here on demand."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path

from popproxy.config.loader import Loaded
from popproxy.config.model import Config, Kerberos
from popproxy.errors import ConfigError, Problem, Unavailable
from popproxy.kerberos.mapping import PrincipalMap, RealmRule, RegexRule, TableRule, parse_table, regex_rule
from popproxy.observe.metrics import Metrics
from popproxy.sasl.credentials import Layer
from popproxy.sasl.gssapi import LayerOffer
from popproxy.session.tickets import Tickets
from popproxy.state.executors import BoundedExecutor
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
        importlib.import_module("popproxy.kerberos.keytab")
        importlib.import_module("popproxy.kerberos.libkrb5").library()
    except (ImportError, Unavailable) as error:
        return str(error)
    return None


class KerberosParts:
    """What the listeners share. Tickets and passwords have pools of their own: a silent KDC must not stop tickets."""

    def __init__(self, config: Config, kerberos: Kerberos, metrics: Metrics) -> None:
        """Raises ConfigError."""
        from popproxy.kerberos.acceptor import Acceptor  # noqa: PLC0415 - an optional library
        from popproxy.kerberos.apreq import ApReqVerifier  # noqa: PLC0415
        from popproxy.kerberos.password import KdcPassword  # noqa: PLC0415

        self._executors = [
            BoundedExecutor(name, kerberos.threads, kerberos.queue, kerberos.deadline) for name in ("tickets", "kdc")
        ]
        for executor in self._executors:
            metrics.watch_executor(executor.name, executor)
        tickets, kdc = self._executors
        self.realms = realm_rules(kerberos)
        self.principals = principal_map(config, kerberos)
        keytab, names, cache = kerberos.keytab, kerberos.principals, kerberos.replay_cache
        require = kerberos.channel_binding == "require"
        self.tickets = Tickets(
            acceptor=Acceptor(keytab, names, rcache_dir=cache, executor=tickets, require_channel_binding=require),
            verifier=ApReqVerifier(keytab, names, rcache_dir=cache, executor=tickets),
            principals=self.principals,
            layers=_layers(kerberos),
            bind=kerberos.channel_binding != "off",
            require_binding=require,
        )
        self.kdc = KdcPassword(keytab, names[0], [rule.realm for rule in self.realms], executor=kdc)

    def close(self) -> None:
        """Let the threads end."""
        for executor in self._executors:
            executor.close()


def realm_rules(kerberos: Kerberos) -> list[RealmRule]:
    """The realms of the configuration."""
    return [
        RealmRule(realm.realm, realm.domain, frozenset(realm.instances), realm.by_name) for realm in kerberos.realms
    ]


def principal_map(config: Config, kerberos: Kerberos) -> PrincipalMap:
    """The rules of the configuration. Raises ConfigError for a file that cannot be used."""
    rules: list[RegexRule | TableRule] = []
    for rule in kerberos.rules:
        if rule.file is not None:
            rules.append(_table(rule.file))
        elif rule.regex is not None and rule.mailbox is not None:
            rules.append(regex_rule(rule.regex, rule.mailbox))
    return PrincipalMap(realm_rules(kerberos), rules, case=config.authentication.case)


def _table(path: Path) -> TableRule:
    try:
        file = RereadFile(path, lambda octets: parse_table(octets, str(path)), logging.getLogger("popproxy.kerberos"))
    except OSError as error:
        cure = "create it, or correct kerberos.rules[].file"
        raise ConfigError([Problem(str(path), "", f"cannot be read: {error.strerror}", cure)]) from None

    def find(principal: str) -> str | None:
        if file.is_stale():
            file.refresh()
        return file.value.get(principal)

    return TableRule(str(path), find)


def _layers(kerberos: Kerberos) -> LayerOffer:
    layers = Layer(0)
    for name in kerberos.layers:
        layers |= _LAYERS[name]
    return LayerOffer(layers, 0 if layers == Layer.NONE else LAYER_SIZE)
