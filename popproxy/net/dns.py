"""Questions to the domain name system, with the time for which the answers hold. The only home of dnspython.

Addresses of names in /etc/hosts, and of names that no name server knows, are what the system's own resolver says: it
may have other sources. What it says holds for `HOSTS_TTL`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.rdatatype
import dns.resolver

from popproxy.errors import ConnectFailed
from popproxy.types import Address

HOSTS_TTL: Final = 30.0
"""Seconds."""
_HOSTS, _RESOLV_CONF = Path("/etc/hosts"), Path("/etc/resolv.conf")
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


class NoSuchName(ConnectFailed):
    """The name service works, and says that there is nothing."""


@dataclass(frozen=True, slots=True)
class Service:
    """An SRV record (RFC 2782): lower `priority` first, among equals in proportion to `weight`."""

    priority: int
    weight: int
    target: Address


class Dns:
    """Asks the system's name servers, or `servers` if there are any; gives up after `seconds`."""

    def __init__(self, servers: Sequence[Address], seconds: float) -> None:
        self._seconds = seconds
        self._own = bool(servers)
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._resolver.nameservers = [dns.nameserver.Do53Nameserver(one.host, one.port) for one in servers]
        self._configured: object = None  # the version of resolv.conf
        self._hosts: tuple[object, frozenset[str]] = (None, frozenset())

    async def addresses(self, host: str) -> tuple[list[str], float]:
        """IP addresses, and for how many seconds that holds. Raises ConnectFailed(reason="dns")."""
        if _is_ip(host) or (not self._own and self._in_hosts_file(host)):
            return await _system(host)
        try:
            return await self._addresses(host)
        except NoSuchName:
            if self._own:
                raise
            return await _system(host)

    async def services(self, name: str) -> tuple[list[Service], float]:
        """The SRV records of a name, and for how many seconds they hold; none if the service is said not to exist.

        Raises ConnectFailed(reason="dns"), and NoSuchName if there are no records at all.
        """
        answer = await self._ask(name, dns.rdatatype.SRV)
        found = []
        for record in answer.rrset or ():
            target = record.target.to_text(omit_final_dot=True)
            if target == "." and len(answer.rrset or ()) == 1:
                return [], _ttl(answer)
            if record.port and _HOST_NAME.fullmatch(target):
                found.append(Service(record.priority, record.weight, Address(target.lower(), record.port)))
        if not found:
            raise NoSuchName(f"{name} has no SRV records that name a server", "dns")
        return found, _ttl(answer)

    async def _addresses(self, host: str) -> tuple[list[str], float]:
        kinds = (dns.rdatatype.AAAA, dns.rdatatype.A)
        answers = await asyncio.gather(*(self._ask(host, kind) for kind in kinds), return_exceptions=True)
        found: list[str] = []
        ttls: list[float] = []
        failures: list[ConnectFailed] = []
        for answer in answers:
            if isinstance(answer, ConnectFailed):
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            elif answer.rrset:
                found += [record.address for record in answer.rrset]
                ttls.append(_ttl(answer))
        if found:
            return sorted(found, key=_no_route_to), min(ttls)
        raise next(
            (failure for failure in failures if not isinstance(failure, NoSuchName)),
            NoSuchName(f"{host} does not resolve: there is no such name", "dns"),
        )

    async def _ask(self, name: str, kind: dns.rdatatype.RdataType) -> dns.resolver.Answer:
        try:
            self._configure()
            return await self._resolver.resolve(
                name, kind, search=not self._own, raise_on_no_answer=False, lifetime=self._seconds
            )
        except dns.resolver.NXDOMAIN:
            raise NoSuchName(f"{name} does not resolve: there is no such name", "dns") from None
        except (dns.exception.DNSException, OSError) as error:
            raise ConnectFailed(f"{name} does not resolve: {type(error).__name__}", "dns") from None

    def _configure(self) -> None:
        """Read resolv.conf when it has changed."""
        if self._own:
            return
        version = _version(_RESOLV_CONF)
        if version != self._configured:
            self._resolver = dns.asyncresolver.Resolver(str(_RESOLV_CONF))
            self._configured = version

    def _in_hosts_file(self, host: str) -> bool:
        version = _version(_HOSTS)
        if version != self._hosts[0]:
            try:
                lines = [line.partition("#")[0].split() for line in _HOSTS.read_text(errors="replace").splitlines()]
            except OSError:
                lines = []
            self._hosts = version, frozenset(name.lower() for words in lines for name in words[1:])
        return host.rstrip(".").lower() in self._hosts[1]


async def _system(host: str) -> tuple[list[str], float]:
    """What the C library says, from whatever sources. Raises ConnectFailed."""
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectFailed(f"{host} does not resolve: {error.strerror or error}", "dns") from None
    return list(dict.fromkeys(str(info[4][0]) for info in infos)), HOSTS_TTL


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _ttl(answer: dns.resolver.Answer) -> float:
    """The least of all records on the way: aliases (CNAME) have times of their own."""
    return float(answer.chaining_result.minimum_ttl)


def _no_route_to(address: str) -> bool:
    """True if this machine has no way to send there at all (no IPv6, say); such addresses come last."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((address, 9))  # sends nothing
    except OSError:
        return True
    return False


def _version(path: Path) -> object:
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_size, found.st_mtime_ns
