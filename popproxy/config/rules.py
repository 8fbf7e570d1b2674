"""What the sections must agree on: checks that no single field can make.

Every rule is a pure function of the configuration and yields findings; a finding's `because` names the other values
that it rests on, so that a mistake is told once and not again by its consequences.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

from popproxy.config.capabilities import check_capabilities
from popproxy.config.finding import Finding, KeyPath, dotted, twice
from popproxy.config.model import Config
from popproxy.config.model_listeners import Listener
from popproxy.config.model_pools import Pool
from popproxy.config.rules_abuse import ABUSE_RULES
from popproxy.config.rules_audit import AUDIT_RULES
from popproxy.config.rules_authentication import AUTHENTICATION_RULES
from popproxy.config.rules_backends import BACKEND_RULES
from popproxy.config.rules_balance import BALANCE_RULES
from popproxy.config.rules_console import CONSOLE_RULES
from popproxy.config.rules_delegation import DELEGATION_RULES
from popproxy.config.rules_directories import DIRECTORY_RULES
from popproxy.config.rules_kerberos import KERBEROS_RULES
from popproxy.config.rules_mechanisms import MECHANISM_RULES
from popproxy.config.rules_policy import POLICY_RULES
from popproxy.config.rules_routing import check_domain, check_route_directories, check_routing, check_unused_pools
from popproxy.config.rules_shared import SHARED_RULES
from popproxy.config.rules_tunnels import TUNNEL_RULES
from popproxy.config.units import format_duration
from popproxy.types import Address

RFC_1939_IDLE = 600.0
"""Seconds: the least that RFC 1939 section 3 allows for the inactivity timer."""

Rule = Callable[[Config], Iterator[Finding]]


def check(config: Config) -> Iterator[Finding]:
    """Everything that the rules have to say about `config`, warnings included, in no particular order."""
    for rule in _RULES:
        yield from rule(config)


def _listeners(config: Config) -> Iterator[tuple[KeyPath, Listener]]:
    for number, listener in enumerate(config.listeners):
        yield ("listeners", number), listener


def _pools(config: Config) -> Iterator[tuple[KeyPath, Pool]]:
    for name, pool in config.pools.items():
        yield ("pools", name), pool


def _listener_names(config: Config) -> Iterator[Finding]:
    first: dict[str, KeyPath] = {}
    for at, listener in _listeners(config):
        if listener.name in first:
            what = f"{dotted(first[listener.name])} is called {listener.name} too"
            yield Finding((*at, "name"), what, f"give it another name, for example {listener.name}-2")
        first.setdefault(listener.name, at)


def _listen_addresses(config: Config) -> Iterator[Finding]:
    taken: list[tuple[Address, KeyPath]] = []
    wanted = [((*at, "listen", n), a) for at, listener in _listeners(config) for n, a in enumerate(listener.listen)]
    if config.http.listen is not None:
        wanted.append((("http", "listen"), config.http.listen))
    if config.console is not None:
        wanted.append((("console", "listen"), config.console.listen))
    for path, address in wanted:
        other = next((at for earlier, at in taken if _overlap(earlier, address)), None)
        if other is not None:
            yield Finding(
                path, f"{address} is taken by {dotted(other)}", "give one of the two another port", because=(other,)
            )
        taken.append((address, path))


def _overlap(one: Address, other: Address) -> bool:
    if one.port != other.port or one.port == 0:
        return False
    if one.host == other.host or "" in (one.host, other.host):
        return True
    try:
        hosts = ipaddress.ip_address(one.host), ipaddress.ip_address(other.host)
    except ValueError:
        return False
    return hosts[0].version == hosts[1].version and (hosts[0] == hosts[1] or any(host.is_unspecified for host in hosts))


def _certificates(config: Config) -> Iterator[Finding]:
    shared: KeyPath = ("tls", "certificates")
    for at, listener in _listeners(config):
        own = (*at, "certificates")
        if listener.tls == "none":
            if listener.certificates:
                yield Finding(own, "is not used, because tls is none", "remove it, or write tls: stls", warning=True)
        elif not listener.certificates and not config.tls.certificates:
            cure = "add the section tls with certificates: [{cert: /path/cert.pem, key: /path/key.pem}]"
            yield Finding((*at, "tls"), f"tls {listener.tls} needs a certificate", cure, because=(own, shared))


def _cleartext(config: Config) -> Iterator[Finding]:
    for at, listener in _listeners(config):
        networks = (*at, "cleartext_networks")
        if listener.tls == "none" and not (listener.cleartext_networks or listener.takes_proofs):
            cure = "add cleartext_networks with the clients' networks, for example [192.0.2.0/24], or write tls: stls"
            what = "nobody can log in: no TLS, and no network may send passwords without it"
            because = (networks, *((*at, key) for key in ("apop", "sasl", "rpop", "gssapi")))
            yield Finding((*at, "tls"), what, cure, because=because)
        if listener.tls == "implicit" and listener.cleartext_networks:
            yield Finding(networks, "has no effect with tls: implicit", "remove it", warning=True)
        for number, network in enumerate(listener.cleartext_networks):
            if network.prefixlen == 0:
                what = "passwords are accepted without TLS from the whole internet"
                yield Finding((*networks, number), what, "name the networks of the old clients only", warning=True)
        for key, cure in (("proxy_protocol", "the load balancers"), ("xclient", "the fronts")):
            for number, network in enumerate(getattr(listener, key)):
                if network.prefixlen == 0:
                    what = "everybody may forge the address of a client"
                    yield Finding((*at, key, number), what, f"name {cure} only", warning=True)
        if listener.xclient and listener.protocol == "kpop":
            cure = "remove it; load balancers say who the client is by proxy_protocol"
            yield Finding((*at, "xclient"), "has no effect with protocol: kpop", cure, warning=True)


def _apop(config: Config) -> Iterator[Finding]:
    brought = {"forward", "kerberos-forwarded", "kerberos-delegated"}  # by clients; those of APOP bring nothing
    helpless = [name for name, pool in config.pools.items() if brought.issuperset(pool.login)]
    for at, listener in _listeners(config):
        path = (*at, "apop")
        if not listener.apop:
            continue
        by_service = config.judges_digests(listener)  # which may also give a password for the server
        if config.vault is None and not by_service:
            cure = "add the section vault with file and key, or write apop: false"
            yield Finding(path, "APOP needs the vault", cure, because=(("vault",),))
        if helpless and not by_service:
            names = ", ".join(helpless)
            what = f"an APOP client brings nothing that would log it in at {names}"
            cure = f"add stored or apop to the login of {names}, for example login: [forward, stored]"
            because = tuple(("pools", name, "login") for name in helpless)
            yield Finding(path, what, cure, warning=len(helpless) < len(config.pools), because=because)


def _vault(config: Config) -> Iterator[Finding]:
    used = any(listener.apop or listener.sasl or listener.rpop == "id" for listener in config.listeners)
    for at, pool in _pools(config):
        used = used or (pool.xoauth2 is not None and pool.xoauth2.grant == "refresh_token")
        for number, strategy in enumerate(pool.login):
            if strategy not in ("apop", "stored"):
                continue
            used = True
            if config.vault is None:
                cure = "add the section vault with file and key, or write login: [forward]"
                path = (*at, "login", number)
                yield Finding(
                    path, f"{strategy} takes its secret from the vault, and there is none", cure, because=(("vault",),)
                )
    if config.vault is not None and not used:
        because = (("listeners",), *((*at, "login") for at, _ in _pools(config)))
        cure = "add stored or apop to a pool's login, write apop: true at a listener, or remove the section"
        yield Finding(("vault",), "nothing uses the vault", cure, warning=True, because=because)


def _master(config: Config) -> Iterator[Finding]:
    for at, pool in _pools(config):
        if "master" in pool.login and pool.master is None:
            cure = "add master: {user: popproxy, password: {file: /etc/popproxy/master.password}}"
            path = (*at, "login", pool.login.index("master"))
            yield Finding(path, "nothing says which account that is", cure, because=((*at, "master"),))
        if "master" not in pool.login and pool.master is not None:
            cure = "add it, for example login: [master], or remove the section"
            what = "is not used: login does not name master"
            yield Finding((*at, "master"), what, cure, warning=True, because=((*at, "login"),))
        if pool.master is not None and pool.master.mechanism == "plain" and "separator" in pool.master.model_fields_set:
            what = "has no effect with mechanism: plain, where the names are sent apart"
            yield Finding((*at, "master", "separator"), what, "remove it", warning=True)


def _pool_links(config: Config) -> Iterator[Finding]:
    for at, pool in _pools(config):
        yield from twice(pool.login, (*at, "login"))
        if pool.tls != "none" and pool.splice:
            yield Finding((*at, "splice"), f"has no effect with tls: {pool.tls}", "remove it", warning=True)
        if pool.tls != "none" and not pool.verify and not pool.pin:
            cure = "name the server's CA with ca: /path/ca.pem and remove verify: false"
            yield Finding((*at, "verify"), "anybody on the way can pose as the backend", cure, warning=True)
        for key, value in (("ca", pool.ca), ("server_name", pool.server_name)):
            if value is not None and (pool.tls == "none" or not pool.verify):
                reason = "tls: none" if pool.tls == "none" else "verify: false"
                yield Finding((*at, key), f"has no effect with {reason}", "remove it", warning=True)
        if pool.source_address is not None and pool.all_tunneled:
            yield Finding((*at, "source_address"), "has no effect with a tunnel", "remove it", warning=True)
        for key in ("pin", "legacy_tls"):
            if pool.tls == "none" and getattr(pool, key):
                yield Finding((*at, key), "has no effect with tls: none", "remove it", warning=True)
        yield from check_capabilities(pool.capabilities, (*at, "capabilities"))


def _times(config: Config) -> Iterator[Finding]:
    times = config.timeouts
    if times.idle < RFC_1939_IDLE:
        what = f"{format_duration(times.idle)} is less than the ten minutes that RFC 1939 section 3 asks for"
        yield Finding(("timeouts", "idle"), what, "write 10m or more", warning=True)
    if times.connect > times.connect_total:
        what = f"one attempt may take longer than all of them ({format_duration(times.connect_total)})"
        cure = f"write connect_total: {format_duration(times.connect)} or more"
        yield Finding(("timeouts", "connect"), what, cure, because=(("timeouts", "connect_total"),))
    if config.authentication.failure_delay >= times.login:
        what = f"a failed login would never be answered: timeouts.login is {format_duration(times.login)}"
        yield Finding(
            ("authentication", "failure_delay"), what, "write for example 2s", because=(("timeouts", "login"),)
        )


def _process(config: Config) -> Iterator[Finding]:
    if config.process.group is not None and config.process.user is None:
        yield Finding(
            ("process", "group"), "has no effect without user", "add user: popproxy", because=(("process", "user"),)
        )


_RULES: tuple[Rule, ...] = (
    _listener_names,
    _listen_addresses,
    _certificates,
    _cleartext,
    *AUTHENTICATION_RULES,
    _apop,
    _vault,
    _master,
    *DIRECTORY_RULES,
    *KERBEROS_RULES,
    *DELEGATION_RULES,
    *MECHANISM_RULES,
    *POLICY_RULES,
    *BALANCE_RULES,
    *CONSOLE_RULES,
    _pool_links,
    *BACKEND_RULES,
    *TUNNEL_RULES,
    *SHARED_RULES,
    check_routing,
    check_route_directories,
    check_unused_pools,
    check_domain,
    _times,
    *ABUSE_RULES,
    *AUDIT_RULES,
    _process,
)
