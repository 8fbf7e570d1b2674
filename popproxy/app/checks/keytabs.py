"""Checks of keytabs: can the service read them, and do they hold the keys that tickets of each listener need?"""

from __future__ import annotations

import grp
import ipaddress
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from popproxy.app.checks.finding import Finding, ok, problem, unreadable, warning
from popproxy.app.checks.permissions import account, may
from popproxy.config.model import Config
from popproxy.kerberos.keytab import Entry, NotAKeytab, belongs, entries, serves

MAKE_KEY = (
    "kadmin ktadd -k {path} {principal} (MIT, Heimdal), ipa-getkeytab -k {path} -p {principal} (FreeIPA), "
    "ktpass or msktutil (Active Directory)"
)
_SHOWN = 5  # names in one message


@dataclass(frozen=True, slots=True)
class Acceptors:
    """Listeners that take tickets for the same names with the same keytab."""

    listeners: tuple[str, ...]
    keytab: Path
    principals: tuple[str, ...]

    @property
    def area(self) -> str:
        """What findings about them are about."""
        return f"kerberos at {', '.join(self.listeners)}"

    def cure(self, principal: str) -> str:
        """How to add a key."""
        return f"add it: {MAKE_KEY.format(path=self.keytab, principal=principal)}"


def acceptors(config: Config) -> list[Acceptors]:
    """Every keytab with the listeners that use it, in file order."""
    groups: dict[tuple[Path, tuple[str, ...]], list[str]] = {}
    for listener in config.listeners:
        if config.kerberos is not None and listener.uses_kerberos:
            at = config.kerberos.at(listener)
            groups.setdefault((at.keytab, tuple(at.principals)), []).append(listener.name)
    return [Acceptors(tuple(listeners), *key) for key, listeners in groups.items()]


def check_keytabs(config: Config) -> list[Finding]:
    """Findings about the keytab of each listener. Reads files only."""
    groups = acceptors(config)
    findings: list[Finding] = []
    for group in groups:
        findings += _readable(config, group)
        findings += _names(group)
        try:
            held = entries(group.keytab)
        except OSError:
            continue  # told above
        except NotAKeytab as error:
            text = f"{group.keytab} is no keytab: {error}"
            findings.append(problem(group.area, text, f"make it anew: {_make(group)}"))
            continue
        findings += _keys(group, held)
        findings += _unlisted(
            group, held, [name for one in groups if one.keytab == group.keytab for name in one.principals]
        )
    return findings


def _make(group: Acceptors) -> str:
    return MAKE_KEY.format(path=group.keytab, principal=group.principals[0])


def _readable(config: Config, group: Acceptors) -> Iterator[Finding]:
    path, area = group.keytab, group.area
    try:
        path.open("rb").close()
    except FileNotFoundError:
        yield problem(area, f"the keytab {path} does not exist", f"make it: {_make(group)}")
        return
    except OSError as error:
        yield unreadable(area, path, error)
        return
    service = account(config.process.user)
    if service is not None and not may(path, os.R_OK, service, config.process.group):
        group_name = config.process.group or grp.getgrgid(service.pw_gid).gr_name
        cure = f"chgrp {group_name} {path}; chmod 640 {path}, and let {service.pw_name} into its directories"
        yield problem(area, f"the keytab {path} cannot be read by {service.pw_name}", cure)
    elif path.stat().st_mode & 0o007:
        yield problem(area, f"everybody on this machine can read the keytab {path}", f"chmod o= {path}")


def _names(group: Acceptors) -> Iterator[Finding]:
    """Names for which no client would ever ask a ticket."""
    for principal in group.principals:
        host = host_of(principal)
        if host != host.lower():
            text = f"{principal} has capital letters in the name of its host: clients ask for {host.lower()}"
            yield warning(group.area, text, "write the host in small letters, in the KDC, the keytab and principals")
        elif _is_address(host):
            text = f"{principal} names an address: clients ask tickets for names only"
            yield warning(group.area, text, "write the name that clients connect to")
        elif "." not in host and host != "localhost":
            text = f"{principal} has a short name: clients ask tickets for the full name of the host"
            yield warning(group.area, text, f"write the name with its domain, for example pop/{host}.example.com")


def host_of(principal: str) -> str:
    """``mail.example.com`` of ``pop/mail.example.com@EXAMPLE.COM``."""
    return principal.partition("/")[2].partition("@")[0]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _keys(group: Acceptors, held: list[Entry]) -> Iterator[Finding]:
    if not any(map(serves, held)):
        names = _listing(entry.principal for entry in held) or "no key at all"
        text = f"the keytab {group.keytab} has no key of a POP3 service (pop/HOST), but {names}"
        yield problem(group.area, text, group.cure(group.principals[0]))
        return
    for principal in group.principals:
        keys = [entry for entry in held if belongs(entry, principal)]
        if keys:
            yield from _kinds(group, principal, keys)
        else:
            near = _near(principal, held)
            text = f"the keytab {group.keytab} has no key of {principal}"
            if near:
                cure = f"if clients connect to that name, write it under principals, otherwise {group.cure(principal)}"
                yield problem(group.area, f"{text}, but {near}", cure)
            else:
                yield problem(group.area, text, group.cure(principal))


def _near(principal: str, held: list[Entry]) -> str:
    """The services that the keytab has instead."""
    return _listing(entry.principal for entry in held if serves(entry) and entry.principal != principal)


def _kinds(group: Acceptors, principal: str, keys: list[Entry]) -> Iterator[Finding]:
    version = max(entry.version for entry in keys)
    newest = [entry for entry in keys if entry.version == version]
    kinds = ", ".join(dict.fromkeys(entry.encryption for entry in newest))
    if all(entry.weak for entry in newest):
        text = f"the keytab has only weak keys of {principal} ({kinds}): KDCs and clients of today refuse them"
        cure = "give the account AES: cpw -randkey and ktadd (MIT, Heimdal); msDS-SupportedEncryptionTypes 24, "
        yield warning(group.area, text, f"{cure}a new password and a new keytab (Active Directory)")
    else:
        yield ok(group.area, f"the keytab {group.keytab} holds {principal}, version {version} ({kinds})")


def _unlisted(group: Acceptors, held: list[Entry], listed: Sequence[str]) -> Iterator[Finding]:
    """Keys of POP3 services whose tickets are refused."""
    services = [entry for entry in held if serves(entry)]
    if not any(belongs(entry, name) for entry in services for name in group.principals):
        return  # told as a missing key
    spare = _listing(entry.principal for entry in services if not any(belongs(entry, name) for name in listed))
    if spare:
        text = f"tickets for {spare} are refused: the keytab {group.keytab} has the key, but principals does not say so"
        yield warning(group.area, text, "add it to principals if clients connect to that name")


def _listing(names: Iterator[str]) -> str:
    different = list(dict.fromkeys(names))
    more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
    return ", ".join(different[:_SHOWN]) + more
