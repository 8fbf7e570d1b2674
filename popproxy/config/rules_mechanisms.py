"""What the SASL mechanisms of listeners need: secrets, TLS, and pools that can be logged in to without a password."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from popproxy.config.finding import Finding, KeyPath
from popproxy.config.model import Config
from popproxy.config.model_listeners import Listener
from popproxy.config.model_mechanisms import Rpop
from popproxy.config.model_oauth import OAuth, OAuthIssuer
from popproxy.config.units import quote

TOKEN_MECHANISMS: Final = frozenset(("OAUTHBEARER", "XOAUTH2"))
_BROUGHT: Final = frozenset(("forward", "kerberos-forwarded", "kerberos-delegated"))
"""Ways to log in with what a client has brought: a password, or a ticket."""
_WITH_VAULT = "add the section vault with file and key"


def _offered(config: Config) -> Iterator[tuple[KeyPath, Listener, str]]:
    """Every mechanism of every listener, with its place."""
    for number, listener in enumerate(config.listeners):
        for index, name in enumerate(listener.sasl):
            yield ("listeners", number, "sasl", index), listener, name


def _lists(config: Config) -> Iterator[Finding]:
    for number, listener in enumerate(config.listeners):
        at: KeyPath = ("listeners", number, "sasl")
        for index, name in enumerate(listener.sasl):
            if name in listener.sasl[:index]:
                yield Finding((*at, index), f"{name} stands in this list already", "remove one of the two")
        if listener.sasl and listener.protocol == "kpop":
            what = "has no meaning with protocol: kpop, whose clients have shown their ticket already"
            because: tuple[KeyPath, ...] = (("listeners", number, "protocol"),)
            yield Finding(at, what, "remove it, or give it a listener of its own", because=because)


def _pools(config: Config) -> Iterator[Finding]:
    """No password comes with these mechanisms that could be forwarded."""
    helpless = [name for name, pool in config.pools.items() if _BROUGHT.issuperset(pool.login)]
    for number, listener in enumerate(config.listeners):
        if not helpless or not listener.sasl or listener.protocol == "kpop":
            continue
        if listener.sasl == ["CRAM-MD5"] and config.judges_digests(
            listener
        ):  # which may give a password for the server
            continue
        names = ", ".join(helpless)
        what = f"{', '.join(listener.sasl)} bring no password that could be forwarded to {names}"
        cure = f"add master or stored to the login of {names}, for example login: [forward, master]"
        because = tuple(("pools", name, "login") for name in helpless)
        at: KeyPath = ("listeners", number, "sasl")
        yield Finding(at, what, cure, warning=len(helpless) < len(config.pools), because=because)


def _secrets(config: Config) -> Iterator[Finding]:
    for at, listener, name in _offered(config):
        if name == "CRAM-MD5" and config.vault is None and not config.judges_digests(listener):
            yield Finding(at, "CRAM-MD5 needs the vault", f"{_WITH_VAULT}, or remove it", because=(("vault",),))
        if not name.startswith("SCRAM"):
            continue
        lists = [listener.authenticate, *config.authentication.domains.values()]
        users = config.users is not None and any("users" in names for names in lists)
        if config.vault is None and not users:
            what = f"nobody has a verifier for {name}: there is no vault, and the users file is not asked"
            cure = f"{_WITH_VAULT}, or write authenticate: [users] and make verifiers with popproxy hash-password"
            yield Finding(at, what, cure, because=(("vault",), ("users",), (*at[:2], "authenticate")))
        elif config.vault is None and config.scram is None:
            what = "without a key, a restart would show which users exist"
            cure = "add scram: {decoy_key: {file: /etc/popproxy/scram.key}}; openssl rand -base64 32 makes one"
            yield Finding(at, what, cure, because=(("vault",), ("scram",)))


def _binding(config: Config) -> Iterator[Finding]:
    for at, listener, name in _offered(config):
        if name.endswith("-PLUS") and listener.tls == "none":
            cure = f"write tls: stls, or {name.removesuffix('-PLUS')}"
            yield Finding(at, f"{name} is bound to TLS, and there is none", cure, because=((*at[:2], "tls"),))


def _certificates(config: Config) -> Iterator[Finding]:
    for at, listener, name in _offered(config):
        if name != "EXTERNAL":
            continue
        if listener.tls == "none":
            cure = "write tls: stls or tls: implicit, or remove it"
            yield Finding(at, "client certificates come with TLS, and there is none", cure, because=((*at[:2], "tls"),))
        elif listener.client_ca is None:
            what = "no client is asked for a certificate"
            cure = "add client_ca: /etc/popproxy/clients-ca.pem to the listener"
            yield Finding(at, what, cure, because=((*at[:2], "client_ca"),))
        if config.external is None:
            what = "nothing says whose a certificate is"
            cure = "add the section external, for example external: {rules: [{take: email}]}"
            yield Finding(at, what, cure, because=(("external",),))
    for number, listener in enumerate(config.listeners):
        place: KeyPath = ("listeners", number)
        if listener.client_ca is not None and "EXTERNAL" not in listener.sasl:
            cure = "add EXTERNAL to sasl, or remove it"
            because: tuple[KeyPath, ...] = ((*place, "sasl"),)
            yield Finding((*place, "client_ca"), "has no effect without EXTERNAL", cure, warning=True, because=because)
        if listener.client_crl is not None and listener.client_ca is None:
            cure = "add client_ca, or remove it"
            because = ((*place, "client_ca"),)
            yield Finding(
                (*place, "client_crl"), "has no effect without client_ca", cure, warning=True, because=because
            )


def _certificate_users(config: Config) -> Iterator[Finding]:
    for number, rule in enumerate(config.external.rules if config.external is not None else ()):
        if rule.regex is None or rule.user is None:
            continue
        try:
            re.compile(rule.regex).sub(rule.user, "")
        except (re.error, IndexError) as error:
            path: KeyPath = ("external", "rules", number, "user")
            yield Finding(path, f"does not fit the regex: {error}", "put a part of the regex in parentheses")


def _tokens(config: Config) -> Iterator[Finding]:
    for at, listener, name in _offered(config):
        if name not in TOKEN_MECHANISMS:
            continue
        if listener.tls == "none":
            cure = "write tls: stls or tls: implicit, or remove it"
            what = f"{name} sends the token in clear and is offered inside TLS only, and there is none"
            yield Finding(at, what, cure, because=((*at[:2], "tls"),))
        if config.oauth is None:
            cure = "add oauth: {issuers: [{issuer: https://login.example.com, audience: [popproxy]}]}"
            yield Finding(at, "nothing says whose tokens count", cure, because=(("oauth",),))
    for number, issuer in enumerate(config.oauth.issuers if config.oauth is not None else ()):
        yield from _issuer(issuer, ("oauth", "issuers", number))
    if config.oauth is not None:
        yield from _issuers(config.oauth)


def _issuer(issuer: OAuthIssuer, at: KeyPath) -> Iterator[Finding]:
    if not issuer.audience:
        what = "tokens that the issuer has made for any other service would open mailboxes"
        cure = "write the name that popproxy's tokens are for, for example audience: [popproxy]"
        asked = issuer.introspection is not None
        yield Finding((*at, "audience"), what, cure, warning=asked, because=((*at, "introspection"),))
    if issuer.introspection is not None:
        for key in ("jwks", "algorithms"):
            if key in issuer.model_fields_set:
                because: tuple[KeyPath, ...] = ((*at, "introspection"),)
                what = "has no effect with introspection"
                yield Finding((*at, key), what, "remove it", warning=True, because=because)
    for index, domain in enumerate(issuer.domains):
        if "@" in domain:
            example = domain.rpartition("@")[2] or "example.com"
            yield Finding((*at, "domains", index), f"{quote(domain)} is not a domain", f"write {example}")


def _issuers(section: OAuth) -> Iterator[Finding]:
    names = [issuer.issuer for issuer in section.issuers]
    asked = [number for number, issuer in enumerate(section.issuers) if issuer.introspection is not None]
    for number, issuer in enumerate(section.issuers):
        at: KeyPath = ("oauth", "issuers", number)
        if issuer.issuer in names[:number]:
            yield Finding((*at, "issuer"), f"{issuer.issuer} stands in this list already", "remove one of the two")
        if issuer.introspection is not None and number != asked[0]:
            what = "of a token that says nothing of itself only one issuer can be asked, and the first one is"
            cure = "remove introspection here if its tokens are JWTs"
            yield Finding((*at, "introspection"), what, cure, warning=True)
        if len(names) > 1 and not issuer.domains:
            what = "one of several issuers, and it vouches for everybody's mailbox"
            cure = "write whose users it has, for example domains: [example.com]"
            yield Finding((*at, "domains"), what, cure, warning=True)


def _rpop(config: Config) -> Iterator[Finding]:
    helpless = [name for name, pool in config.pools.items() if _BROUGHT.issuperset(pool.login)]
    for number, listener in enumerate(config.listeners):
        at: KeyPath = ("listeners", number, "rpop")
        if listener.rpop == "off":
            continue
        if listener.protocol == "kpop":
            what = "has no meaning with protocol: kpop, whose clients have shown their ticket already"
            yield Finding(at, what, "remove it, or give it a listener of its own", because=((*at[:2], "protocol"),))
            continue
        if config.rpop is None:
            cure = "add the section rpop with networks, or write rpop: off"
            yield Finding(at, "nothing says from where RPOP is taken", cure, because=(("rpop",),))
        elif listener.rpop == "rfc" and config.rpop.hosts is None:
            cure = "add hosts: /etc/popproxy/rpop.hosts to the section rpop"
            yield Finding(at, "nothing says which machines are trusted", cure, because=(("rpop", "hosts"),))
        if listener.rpop == "id" and config.vault is None:
            yield Finding(at, "RPOP ids are in the vault, and there is none", _WITH_VAULT, because=(("vault",),))
        if helpless:
            names = ", ".join(helpless)
            what = f"RPOP brings no password that could be forwarded to {names}"
            cure = f"add master or stored to the login of {names}, for example login: [forward, master]"
            because = tuple(("pools", name, "login") for name in helpless)
            yield Finding(at, what, cure, warning=len(helpless) < len(config.pools), because=because)
    if config.rpop is not None:
        yield from _rpop_section(config, config.rpop)


def _rpop_section(config: Config, section: Rpop) -> Iterator[Finding]:
    meanings = {listener.rpop for listener in config.listeners} - {"off"}
    listed: tuple[KeyPath, ...] = (("listeners",),)
    if not meanings:
        cure = "write rpop: id or rpop: rfc at a listener, or remove the section"
        yield Finding(("rpop",), "no listener takes RPOP", cure, warning=True, because=listed)
    elif section.hosts is not None and "rfc" not in meanings:
        cure = "remove it, or write rpop: rfc at a listener"
        yield Finding(("rpop", "hosts"), "has no effect without rpop: rfc", cure, warning=True, because=listed)
    for number, network in enumerate(section.networks):
        if network.prefixlen == 0:
            what = "RPOP is taken from the whole internet"
            yield Finding(("rpop", "networks", number), what, "name the networks of the old clients only", warning=True)


def _unused(config: Config) -> Iterator[Finding]:
    if config.external is not None and not any(name == "EXTERNAL" for _, _, name in _offered(config)):
        cure = "add EXTERNAL to a listener's sasl, or remove the section"
        yield Finding(("external",), "no listener offers EXTERNAL", cure, warning=True, because=(("listeners",),))
    if config.oauth is not None and not any(name in TOKEN_MECHANISMS for _, _, name in _offered(config)):
        cure = "add OAUTHBEARER to a listener's sasl, or remove the section"
        yield Finding(("oauth",), "no listener takes tokens", cure, warning=True, because=(("listeners",),))
    if config.scram is not None and not any(name.startswith("SCRAM") for _, _, name in _offered(config)):
        cure = "add SCRAM-SHA-256 to a listener's sasl, or remove the section"
        yield Finding(("scram",), "no listener offers SCRAM", cure, warning=True, because=(("listeners",),))


MECHANISM_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _lists,
    _pools,
    _secrets,
    _binding,
    _certificates,
    _certificate_users,
    _tokens,
    _rpop,
    _unused,
)
