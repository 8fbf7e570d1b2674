"""Checks of Kerberos that ask others: which keys and what time the KDC has, and what DNS makes of our names."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from popproxy.app.checks.finding import Finding, ok, problem, warning
from popproxy.app.checks.keytabs import Acceptors, acceptors, host_of
from popproxy.app.checks.threads import in_daemon_thread
from popproxy.app.kerberos import libraries_missing
from popproxy.config.model import Config
from popproxy.errors import PopproxyError
from popproxy.kerberos.keytab import Entry, NotAKeytab, belongs, entries
from popproxy.kerberos.probe import KdcAnswer, ProbeRefusal, ProbeRefused, ask

KDC_SECONDS = 10.0
"""Longest wait for one KDC; all are asked at once."""
DNS_SECONDS = 6.0
"""Longest wait for the name servers, for one host."""
CLOCK_SKEW = 300
"""Seconds that Kerberos allows two clocks to differ (krb5.conf: clockskew)."""
_NOTICEABLE = 30  # seconds

_SET_CLOCK = "keep the clock by NTP, here and there: timedatectl set-ntp true"


async def check_kdcs(config: Config) -> list[Finding]:
    """Ask the KDCs and the name servers about every principal, at once."""
    if config.kerberos is None:
        return []
    groups = acceptors(config)
    passwords = any("kerberos" in listener.authenticate for listener in config.listeners)
    keys = [] if libraries_missing() else [pair for group in groups for pair in _newest(group)]
    probes = [_probe(group, entry, passwords) for group, entry in keys]
    hosts = [_dns(group, host) for group in groups for host in dict.fromkeys(map(host_of, group.principals))]
    found = [one for findings in await asyncio.gather(*probes, *hosts) for one in findings]
    return list(dict.fromkeys(found))  # a dead KDC is told once


def _newest(group: Acceptors) -> Iterator[tuple[Acceptors, Entry]]:
    """The newest key of each principal of `group` that has one."""
    try:
        held = entries(group.keytab)
    except (OSError, NotAKeytab):
        return
    newest: dict[str, Entry] = {}
    for entry in held:
        if any(belongs(entry, name) for name in group.principals):
            before = newest.setdefault(entry.principal, entry)
            if entry.version > before.version:
                newest[entry.principal] = entry
    yield from ((group, entry) for entry in newest.values())


async def _probe(group: Acceptors, entry: Entry, passwords: bool) -> list[Finding]:
    realm = entry.principal.rpartition("@")[2]
    try:
        async with asyncio.timeout(KDC_SECONDS):
            answer = await in_daemon_thread(partial(_ask, group.keytab, entry.principal))
    except TimeoutError:
        return [_no_kdc(realm, f"no KDC of {realm} has answered within {KDC_SECONDS:g} s", passwords)]
    except ProbeRefused as refused:
        return [_refused(group, entry, refused, passwords)]
    except PopproxyError as error:
        return [problem(group.area, str(error))]
    return [*_key(group, entry, answer), *_clock(realm, answer)]


def _ask(keytab: Path, service: str) -> KdcAnswer:
    """As the service itself; if the KDC lets only accounts log in, as the account whose key is in the keytab, too."""
    try:
        return ask(keytab, service, service)
    except ProbeRefused as refused:
        realm = service.rpartition("@")[2]
        named = (entry.principal for entry in entries(keytab))
        owner = next((name for name in named if "/" not in name and name.endswith(f"@{realm}")), None)
        if refused.reason is not ProbeRefusal.NO_CLIENT or owner is None:
            raise
        return ask(keytab, owner, service)


def _key(group: Acceptors, entry: Entry, answer: KdcAnswer) -> Iterator[Finding]:
    held = {one.version for one in entries(group.keytab) if one.principal == entry.principal}
    if answer.version in held:
        text = f"the KDC issues tickets for {entry.principal} with version {answer.version} ({answer.encryption})"
        yield ok(group.area, f"{text}, which the keytab has")
    else:
        text = f"the KDC issues tickets for {entry.principal} with key version {answer.version}"
        have = ", ".join(map(str, sorted(held)))
        yield problem(group.area, f"{text}, the keytab has {have}: they are refused", group.cure(entry.principal))


def _clock(realm: str, answer: KdcAnswer) -> Iterator[Finding]:
    seconds = abs(answer.clock_ahead)
    where = "behind" if answer.clock_ahead > 0 else "ahead of"
    text = f"the clock of this machine is {seconds} s {where} that of the KDC of {realm}"
    if seconds >= CLOCK_SKEW:
        yield problem("kerberos", f"{text}: tickets are refused", _SET_CLOCK)
    elif seconds >= _NOTICEABLE:
        yield warning("kerberos", f"{text}; at {CLOCK_SKEW} s tickets are refused", _SET_CLOCK)
    else:
        yield ok("kerberos", f"the clock agrees with that of the KDC of {realm}")


def _refused(group: Acceptors, entry: Entry, refused: ProbeRefused, passwords: bool) -> Finding:
    name, realm = entry.principal, entry.principal.rpartition("@")[2]
    match refused.reason:
        case ProbeRefusal.KEY:
            text = f"the KDC refuses the key of {name} in the keytab (version {entry.version}): it has another one"
            return problem(group.area, f"{text}, and tickets made with that are refused here", group.cure(name))
        case ProbeRefusal.NO_SERVICE:
            cure = f"addprinc -randkey {name} (MIT, Heimdal), setspn -S {name.partition('@')[0]} ACCOUNT (Windows)"
            return problem(group.area, f"the KDC does not know {name}: nobody gets a ticket for it", cure)
        case ProbeRefusal.NO_CLIENT:
            text = f"the KDC does not know {name} as one that can log in, so its key version could not be compared"
            cure = "normal for an SPN of Active Directory (see setspn -Q); with another KDC nobody gets a ticket for it"
            return warning(group.area, text, cure)
        case ProbeRefusal.LOCKED:
            return problem(group.area, f"the KDC says that {name} is disabled or has expired", "enable the account")
        case ProbeRefusal.ENCTYPE:
            text = f"the KDC takes no key of {name} of the kind in the keytab ({entry.encryption})"
            return problem(group.area, text, group.cure(name))
        case ProbeRefusal.CLOCK:
            return problem("kerberos", f"the KDC of {realm} finds the clock of this machine wrong", _SET_CLOCK)
        case ProbeRefusal.SILENT | ProbeRefusal.NO_REALM:
            return _no_kdc(realm, f"no KDC of {realm} can be found, or none answers", passwords)
        case _:
            text = f"the KDC gives no ticket for {name} (Kerberos error {refused.code})"
            return warning(group.area, text, f"try it: kinit -k -t {group.keytab} {name} && kvno {name}")


def _no_kdc(realm: str, text: str, passwords: bool) -> Finding:
    named = f"/etc/krb5.conf ([realms] {realm} = {{ kdc = ... }}) or DNS (_kerberos._udp.{realm.lower()})"
    cure = f"name it in {named}; is there a firewall in between?"
    if passwords:
        return problem("kerberos", f"{text}: passwords cannot be checked", cure)
    return warning("kerberos", f"{text}: tickets are accepted all the same, keys and clock could not be checked", cure)


async def _dns(group: Acceptors, host: str) -> list[Finding]:
    try:
        async with asyncio.timeout(DNS_SECONDS):
            return list(await in_daemon_thread(partial(_names, group, host)))
    except TimeoutError:
        return [warning(group.area, f"no answer from the name servers about {host} within {DNS_SECONDS:g} s")]


def _names(group: Acceptors, host: str) -> list[Finding]:
    """What clients make of `host` before they ask for a ticket: MIT's take the canonical name, by default by PTR."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
    except OSError as error:
        cure = "give it an address in DNS, or correct principals: it is the name that clients connect to"
        return [warning(group.area, f"{host} does not resolve here ({_why(error)})", cure)]
    hosts = {host_of(name).lower() for name in group.principals}
    findings = []
    alias = _plain(found[0][3])
    if alias and alias not in hosts:
        text = f"{host} is another name of {alias} in DNS: many clients will ask for a ticket for pop/{alias}"
        findings.append(warning(group.area, text, _either(alias, "dns_canonicalize_hostname = false")))
    for address in dict.fromkeys(entry[4][0] for entry in found):
        name = _reverse(str(address))
        if name and name not in hosts and name != alias:
            text = f"{address}, the address of {host}, is called {name} in DNS: many clients will ask for a ticket for"
            findings.append(warning(group.area, f"{text} pop/{name}", _either(name, "rdns = false")))
    return findings or [ok(group.area, f"clients that look {host} up find no other name for it")]


def _reverse(address: str) -> str:
    try:
        return _plain(socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0])
    except OSError:
        return ""


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


def _either(name: str, setting: str) -> str:
    return f"add pop/{name} to KDC, keytab and principals, or write {setting} in the clients' krb5.conf"


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
