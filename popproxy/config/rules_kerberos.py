"""What the Kerberos keys of listeners, pools and the section kerberos must agree on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding, KeyPath
from popproxy.config.messages import nearest
from popproxy.config.model import Config
from popproxy.config.model_listeners import Listener
from popproxy.config.model_pools import TICKET_STRATEGIES
from popproxy.config.units import quote

_WITH_SECTION = "add the section kerberos with keytab, principals, replay_cache and realms"


def _tickets(config: Config) -> Iterator[Finding]:
    """Listeners that take tickets need a section, and pools that can be logged in to without the client's password."""
    helpless = [name for name, pool in config.pools.items() if set(pool.login) == {"forward"}]
    for number, listener in enumerate(config.listeners):
        at: KeyPath = ("listeners", number)
        key = "protocol" if listener.protocol == "kpop" else "gssapi"
        if key == "gssapi" and not listener.gssapi:
            continue
        if config.kerberos is None:
            instead = "write protocol: pop3" if key == "protocol" else "write gssapi: false"
            what = "tickets cannot be accepted without a keytab"
            yield Finding((*at, key), what, f"{_WITH_SECTION}, or {instead}", because=(("kerberos",),))
        if helpless:
            names = ", ".join(helpless)
            what = f"a client with a ticket sends no password that could be forwarded to {names}"
            cure = f"add kerberos-delegated, master or stored to the login of {names}: login: [forward, master]"
            because = tuple(("pools", name, "login") for name in helpless)
            yield Finding((*at, key), what, cure, warning=len(helpless) < len(config.pools), because=because)
        if key == "protocol":
            yield from _kpop(listener, at)


def _kpop(listener: Listener, at: KeyPath) -> Iterator[Finding]:
    because: tuple[KeyPath, ...] = ((*at, "protocol"),)
    if listener.tls == "implicit":
        cure = "write tls: stls, which raises the connection to TLS after the handshake"
        yield Finding((*at, "tls"), "no KPOP client begins with TLS", cure, because=because)
    for key, given in (("apop", listener.apop), ("gssapi", listener.gssapi)):
        if given:
            what = "has no meaning with protocol: kpop, whose clients have shown their ticket already"
            yield Finding((*at, key), what, f"write {key}: false, or give it a listener of its own", because=because)
    for key, value in (("cleartext_networks", listener.cleartext_networks),):
        if value:
            what = "has no effect with protocol: kpop, where no password is taken"
            yield Finding((*at, key), what, "remove it", warning=True, because=because)


def _unused(config: Config) -> Iterator[Finding]:
    used = any(listener.uses_kerberos for listener in config.listeners) or any(
        TICKET_STRATEGIES.intersection(pool.login) for pool in config.pools.values()
    )
    if config.kerberos is not None and not used:
        cure = "write gssapi: true, protocol: kpop or authenticate: [kerberos] at a listener, or remove the section"
        yield Finding(("kerberos",), "no listener uses Kerberos", cure, warning=True, because=(("listeners",),))


def _own(config: Config) -> Iterator[Finding]:
    """What listeners have of their own replaces something, and is used."""
    for number, listener in enumerate(config.listeners):
        own, at = listener.kerberos, ("listeners", number, "kerberos")
        if own is None:
            continue
        if config.kerberos is None:
            what = "replaces what the section kerberos says, and there is none"
            yield Finding(at, what, _WITH_SECTION, because=(("kerberos",),))
        elif not listener.uses_kerberos:
            cure = "write gssapi: true, protocol: kpop or authenticate: [kerberos] here, or remove it"
            because = tuple(("listeners", number, key) for key in ("gssapi", "protocol", "authenticate"))
            yield Finding(at, "has no effect: this listener does not use Kerberos", cure, warning=True, because=because)
        yield from _names(own.principals, (*at, "principals"))
        yield from _realms(config, own.realms, (*at, "realms"))


def _realms(config: Config, chosen: list[str], at: KeyPath) -> Iterator[Finding]:
    listed = [realm.realm for realm in config.kerberos.realms] if config.kerberos is not None else []
    for number, name in enumerate(chosen):
        if name in chosen[:number]:
            yield Finding((*at, number), f"{name} stands in this list already", "remove one of the two")
        elif listed and name not in listed:
            meant = nearest(name, listed)
            cure = f"did you mean {meant}?" if meant else f"add it there, or name one of {', '.join(listed)}"
            what = f"{quote(name)} is not one of kerberos.realms"
            yield Finding((*at, number), what, cure, because=(("kerberos", "realms"),))


def _principals(config: Config) -> Iterator[Finding]:
    if config.kerberos is None:
        return
    yield from _names(config.kerberos.principals, ("kerberos", "principals"))
    seen: set[str] = set()
    for number, realm in enumerate(config.kerberos.realms):
        if realm.realm in seen:
            path: KeyPath = ("kerberos", "realms", number, "realm")
            yield Finding(path, f"{realm.realm} stands in this list already", "remove one of the two")
        seen.add(realm.realm)


def _names(principals: list[str], at: KeyPath) -> Iterator[Finding]:
    for number, name in enumerate(principals):
        if re.fullmatch(r"pop/[^/@\s]+(@[^/@\s]+)?", name) is None:
            cure = "write pop/HOST@REALM, for example pop/mail.example.com@EXAMPLE.COM"
            yield Finding((*at, number), f"{quote(name)} is not the name of a POP3 service", cure)


def _groups(config: Config) -> Iterator[Finding]:
    for number, rule in enumerate(config.kerberos.rules if config.kerberos is not None else ()):
        if rule.regex is None or rule.mailbox is None:
            continue
        try:
            re.compile(rule.regex).sub(rule.mailbox, "")
        except (re.error, IndexError) as error:
            path: KeyPath = ("kerberos", "rules", number, "mailbox")
            yield Finding(path, f"does not fit the regex: {error}", "put a part of the regex in parentheses")


def _binding(config: Config) -> Iterator[Finding]:
    if config.kerberos is None or config.kerberos.channel_binding != "require":
        return
    for number, listener in enumerate(config.listeners):
        if listener.gssapi and listener.tls == "none":
            what = "nobody can use it: kerberos.channel_binding: require binds tickets to TLS, and there is none"
            cure = "write tls: stls, or channel_binding: allow"
            because: tuple[KeyPath, ...] = (("kerberos", "channel_binding"), ("listeners", number, "tls"))
            yield Finding(("listeners", number, "gssapi"), what, cure, because=because)


def _layers(config: Config) -> Iterator[Finding]:
    plain = [number for number, it in enumerate(config.listeners) if it.gssapi and it.tls != "implicit"]
    if config.kerberos is None or "none" not in config.kerberos.layers or not plain:
        return
    what = "without TLS, clients that choose none get their mail in clear, and whoever is on the way can change it"
    cure = "take none out of the list; clients that know no other layer can use TLS"
    because = tuple(("listeners", number, "tls") for number in plain)
    yield Finding(("kerberos", "layers"), what, cure, warning=True, because=because)


KERBEROS_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _tickets,
    _unused,
    _own,
    _principals,
    _groups,
    _binding,
    _layers,
)
