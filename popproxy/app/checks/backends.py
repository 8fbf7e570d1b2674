"""Checks of the backends: does every server resolve, answer, speak TLS and have what its pool declares?"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import ssl
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING

from popproxy.app.checks.finding import Finding, counted, ok, problem, warning
from popproxy.app.checks.threads import in_daemon_thread
from popproxy.app.checks.tunnels import CheckedTunnels
from popproxy.app.names import make_dns
from popproxy.app.socks import read_socks_password
from popproxy.backend.discovery import srv_name, targets_of
from popproxy.backend.pool import pool_context
from popproxy.config.model import Config
from popproxy.config.model_pools import TICKET_STRATEGIES, Pool
from popproxy.config.model_socks import Socks
from popproxy.errors import BackendError, ConfigError, ConnectFailed
from popproxy.net.certificate import key_pin
from popproxy.types import Address
from popproxy.wire.proxy_protocol import introduce

if TYPE_CHECKING:
    from popproxy.net.dns import Dns

PROBE_SECONDS = 12.0
"""Longest time for one server; all servers are asked at once."""
_LINE_LIMIT = 8192
_LINES_LIMIT = 200
_TIMESTAMP = re.compile(rb"<[^<>\s]+@[^<>\s]+>")
_CERTIFICATE_CURES = {
    9: "correct the clock of this machine",
    10: "renew the certificate of the backend",
    18: "give that certificate as ca: of the pool",
    19: "give the backend's CA certificate as ca: of the pool",
    20: "give the backend's CA certificate as ca: of the pool, or have the backend send its intermediates",
    21: "give the backend's CA certificate as ca: of the pool, or have the backend send its intermediates",
    62: "write the name of the certificate as server_name: of the pool",
    64: "write the name of the certificate as server_name: of the pool",
}
"""By OpenSSL's X509_V_ERR_ number."""
_IS_IT_UP = "start the server, or correct name and port in servers: of the pool"
_ROUTE = "correct the address in servers:, or the routes of this machine (ip route get ADDRESS)"
_ASK_WHO_RUNS_IT = "correct servers: of the pool, or ask who runs what is on the way there"
_OLD_TLS = "look at the backend's log; if it has nothing newer than TLS 1.1, write legacy_tls: true"
_FIREWALL = "is the machine up, and is there a firewall in between?"
_FORBIDDEN = ("may not be connected to: this machine forbids it", "look at the firewall of this machine")
_NOT_CONNECTED = {
    errno.ECONNREFUSED: ("refuses connections", _IS_IT_UP),
    errno.ETIMEDOUT: ("does not answer", _FIREWALL),
    errno.EHOSTUNREACH: ("cannot be reached: its machine is down, or there is no route to it", _ROUTE),
    errno.ENETUNREACH: ("cannot be reached: there is no route to its network", _ROUTE),
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EMFILE: ("cannot be asked: too many files are open here", "raise the limit (ulimit -n)"),
}
"""By errno of connect(2): what to say of the server, and the cure."""


class _ProbeError(Exception):
    """The probe cannot go on. The text goes on where the server's address ends; `cure` says what to do."""

    def __init__(self, text: str, cure: str = "") -> None:
        super().__init__(text)
        self.cure = cure


async def check_backends(config: Config, tunnels: CheckedTunnels) -> list[Finding]:
    """Ask every server of every pool at once. Sends CAPA, STLS and QUIT, never a credential."""
    probes = [
        _probe(name, pool, server, config, tunnels) for name, pool in config.pools.items() for server in pool.servers
    ]
    probes += [_recorded(name, pool, config, tunnels) for name, pool in config.pools.items() if pool.srv is not None]
    return [finding for findings in await asyncio.gather(*probes) for finding in findings]


async def _recorded(name: str, pool: Pool, config: Config, tunnels: CheckedTunnels) -> list[Finding]:
    """Ask for SRV records, and the servers that they name."""
    assert pool.srv is not None
    area, records = f"pool {name}", srv_name(pool.srv, pool.tls)
    dns = make_dns(config)
    assert dns is not None
    try:
        services, ttl = await dns.services(records)
    except ConnectFailed as error:
        return [problem(area, str(error), f"add SRV records at {records}, or write servers: [mail.example.com]")]
    if not services:
        return [problem(area, f"{records} says that there is no such service", "correct the SRV record, or srv:")]
    targets = targets_of(services, pool.srv, pool.server_name)
    findings = [ok(area, f"{records} names {counted(len(targets), 'server')}, for {ttl:g} s")]
    if len(targets) > 1 and not pool.shared:
        cure = "write shared: true if all of them serve the same maildrops, otherwise list servers"
        findings.append(problem(area, "several SRV records, but nothing says that the servers share maildrops", cure))
    probes = (
        _probe(name, pool.model_copy(update={"server_name": target.name}), target.address, config, tunnels)
        for target in targets
    )
    return [*findings, *(finding for found in await asyncio.gather(*probes) for finding in found)]


async def _probe(name: str, pool: Pool, server: Address, config: Config, tunnels: CheckedTunnels) -> list[Finding]:
    address = Address(server.host, server.port or (995 if pool.tls == "implicit" else 110))
    probe = _Probe(name, pool, server, address, tunnels, make_dns(config) if config.names.servers else None)
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await probe.run(config.timeouts.connect)
    except _ProbeError as failure:
        probe.findings.append(problem(probe.area, f"{address} {failure}", failure.cure))
    except TimeoutError:
        text = f"{address} does not answer {probe.asked or 'the attempt to connect'} within {PROBE_SECONDS:g} s"
        probe.findings.append(problem(probe.area, text, "look at the backend's log"))
    finally:
        probe.close()
    return probe.findings


class _Probe:
    """One conversation with one server."""

    def __init__(
        self, name: str, pool: Pool, server: Address, address: Address, tunnels: CheckedTunnels, dns: Dns | None
    ) -> None:
        self.area = f"pool {name}"
        self.name = name
        self.tunnel = pool.tunnel_to(server)
        self.dns = dns  # None: the system is asked
        self.tunnels = tunnels
        self.pool = pool
        self.address = address
        self.findings: list[Finding] = []
        self.asked = ""  # the last command, for messages
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter | None = None

    async def run(self, connect_seconds: float) -> None:
        context = self._tls_context()
        if self.pool.proxy_header == "none":
            await self._connect(connect_seconds, context if self.pool.tls == "implicit" else None)
        else:
            await self._connect(connect_seconds, None)
            assert self.writer is not None
            self.writer.write(introduce(self.pool.proxy_header, None))
            if self.pool.tls == "implicit":
                await self._start_tls(context, connect_seconds)
        greeting = await self._greeting(connect_seconds)
        if self.pool.tls == "stls":
            await self._upgrade(context)
        self._judge_key()
        self.findings.append(ok(self.area, f"{self.address} answers{self._protection()}"))
        self._judge_apop(greeting)
        self._judge_capabilities(await self._capa())
        await self._send("QUIT")
        with contextlib.suppress(_ProbeError):
            await self._line()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()

    def _tls_context(self) -> ssl.SSLContext:
        try:
            context = pool_context(self.pool)
        except (OSError, ssl.SSLError) as error:
            if self.pool.certificate is not None:
                text = f"cannot be asked: ca or certificate of the pool cannot be used: {error.strerror or error}"
                raise _ProbeError(text, "see what is said of the certificate, or correct ca: of the pool") from None
            raise _ProbeError(
                f"cannot be verified: the CA file {self.pool.ca} cannot be used: {error.strerror or error}",
                "correct ca: of the pool",
            ) from None
        if not self.pool.verify and not self.pool.pin and self.pool.tls != "none":
            self.findings.append(
                warning(
                    self.area, "verify: false, anybody can pose as the backend", "give the CA as ca: and remove verify"
                )
            )
        return context

    async def _connect(self, seconds: float, context: ssl.SSLContext | None) -> None:
        if self.tunnel is not None:
            opening = self.tunnels.connect(self.tunnel, self.address)
            await self._connect_through(opening, f"the tunnel {self.tunnel}", seconds, context)
            return
        if self.pool.socks is not None:
            opening = self._connect_by_socks(self.pool.socks, seconds)
            await self._connect_through(opening, f"the SOCKS proxy {self.pool.socks.address}", seconds, context)
            return
        hosts = await self._resolve(self.address, seconds)
        server_name = (self.pool.server_name or self.address.host) if context else None
        refusal: OSError | None = None
        try:
            async with asyncio.timeout(seconds):
                for host in hosts:
                    try:
                        self.reader, self.writer = await asyncio.open_connection(
                            host,
                            self.address.port,
                            ssl=context,
                            server_hostname=server_name,
                            limit=_LINE_LIMIT,
                            local_addr=(self.pool.source_address, 0) if self.pool.source_address else None,
                        )
                    except ssl.SSLError as error:
                        raise self._tls_failure(error) from None
                    except OSError as error:
                        refusal = error
                    else:
                        return
        except TimeoutError:
            raise _ProbeError(f"does not answer within {seconds:g} s (timeouts.connect)", _FIREWALL) from None
        raise _not_connected(refusal, context is not None)

    async def _connect_by_socks(self, socks: Socks, seconds: float) -> socket.socket:
        try:
            password = read_socks_password("", f"pools.{self.name}", socks)
        except ConfigError as error:
            one = error.problems[0]
            raise _ProbeError(f"cannot be asked: {one.key} {one.what}", one.cure) from None
        from popproxy.backend.socks import connect  # noqa: PLC0415 - an optional library

        hosts = [Address(host, socks.address.port) for host in await self._resolve(socks.address, seconds)]
        target = self.address
        if socks.resolve == "local":
            target = Address((await self._resolve(target, seconds))[0], target.port)
        return await connect(socks, password, hosts, target, self.pool.source_address)

    async def _connect_through(
        self, opening: Awaitable[socket.socket], what: str, seconds: float, context: ssl.SSLContext | None
    ) -> None:
        server_name = (self.pool.server_name or self.address.host) if context else None
        try:
            async with asyncio.timeout(seconds):
                sock = await opening
                self.reader, self.writer = await asyncio.open_connection(
                    sock=sock, ssl=context, server_hostname=server_name, limit=_LINE_LIMIT
                )
        except BackendError as error:
            said = str(error).removeprefix(f"{self.address}").removeprefix(":").strip()
            said = f"cannot be asked: {said}" if error.reason == "socks" else said
            raise _ProbeError(said, _ASK_WHO_RUNS_IT) from None
        except TimeoutError:
            text = f"does not answer through {what} within {seconds:g} s (timeouts.connect)"
            raise _ProbeError(text, _FIREWALL) from None
        except ssl.SSLError as error:
            raise self._tls_failure(error) from None
        except OSError:
            raise _closed_in_handshake() from None

    async def _resolve(self, address: Address, seconds: float) -> list[str]:
        look_up = partial(socket.getaddrinfo, address.host, address.port, type=socket.SOCK_STREAM)
        try:
            if self.dns is not None:
                return (await self.dns.addresses(address.host))[0]
            async with asyncio.timeout(seconds):
                found = await in_daemon_thread(look_up)
        except ConnectFailed as error:
            raise _ProbeError(f"has a name that does not resolve ({error})", "correct the name, or the zone") from None
        except (socket.gaierror, TimeoutError) as error:
            reason = error.strerror if isinstance(error, socket.gaierror) else "no answer from the name servers"
            if address is not self.address:
                text = f"cannot be asked: the name of the SOCKS proxy, {address.host}, does not resolve: {reason}"
                raise _ProbeError(text, "correct server: in socks: of the pool, or ask your DNS") from None
            text = f"has a name that does not resolve: {reason}"
            raise _ProbeError(text, "correct the name in servers: or ask your DNS") from None
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    async def _greeting(self, seconds: float) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                line = await self._line()
        except TimeoutError:
            cure = "a server that speaks first in TLS needs tls: implicit" if self.pool.tls != "implicit" else ""
            raise _ProbeError(f"sends no greeting within {seconds:g} s", cure) from None
        if not line.startswith(b"+OK"):
            raise _ProbeError(
                f"greets with {_printable(line)}", "is this a POP3 server, and does it let this machine in?"
            )
        return line

    async def _upgrade(self, context: ssl.SSLContext) -> None:
        if not await self._ask("STLS"):
            cure = "use tls: implicit (port 995), or tls: none with allow_cleartext: true on a link nobody can tap"
            raise _ProbeError("refuses STLS", cure)
        await self._start_tls(context)

    async def _start_tls(self, context: ssl.SSLContext, seconds: float | None = None) -> None:
        assert self.writer is not None
        try:
            async with asyncio.timeout(seconds):
                await self.writer.start_tls(context, server_hostname=self.pool.server_name or self.address.host)
        except TimeoutError:
            raise _ProbeError(f"does not answer within {seconds:g} s (timeouts.connect)", _FIREWALL) from None
        except ssl.SSLError as error:
            raise self._tls_failure(error) from None
        except OSError:
            raise _closed_in_handshake() from None

    def _tls_failure(self, error: ssl.SSLError) -> _ProbeError:
        if isinstance(error, ssl.SSLCertVerificationError):
            cure = _CERTIFICATE_CURES.get(
                error.verify_code, "look at it with: openssl s_client -connect " + str(self.address)
            )
            return _ProbeError(f"has a certificate that is refused: {error.verify_message.rstrip('.')}", cure)
        return _ProbeError(f"fails in TLS: {error.reason or error}", "does this port speak TLS (implicit), or STLS?")

    def _judge_key(self) -> None:
        assert self.writer is not None
        session = self.writer.get_extra_info("ssl_object")
        if session is None or not self.pool.pin:
            return
        found = key_pin(session.getpeercert(True))
        if found not in self.pool.pin:
            raise _ProbeError(f"has another key than pin: says, {found}", "ask who runs it whether that is its key")

    def _protection(self) -> str:
        assert self.writer is not None
        session = self.writer.get_extra_info("ssl_object")
        if session is None:
            return " without TLS"
        return f" with {session.version()}" + (", its certificate is good" if self.pool.verify else "")

    def _judge_apop(self, greeting: bytes) -> None:
        if "apop" not in self.pool.login or _TIMESTAMP.search(greeting):
            return
        make = problem if self.pool.login == ["apop"] else warning
        self.findings.append(
            make(self.area, f"{self.address} offers no APOP (no timestamp in its greeting)", "remove apop from login:")
        )

    def _judge_capabilities(self, announced: list[str] | None) -> None:
        if announced is None:
            declared = ", ".join(self.pool.capabilities) or "nothing"
            self.findings.append(
                ok(self.area, f"{self.address} has no CAPA: what is declared ({declared}) cannot be verified")
            )
        else:
            names = {line.upper(): None for line in announced}
            for declared in self.pool.capabilities:
                self._judge_declared(declared, [*names])
            self._judge_mechanisms([*names])
        pipelining = announced is not None and any(line.upper() == "PIPELINING" for line in announced)
        if pipelining:
            self.findings.append(ok(self.area, f"{self.address} takes pipelined commands"))
        elif self.pool.pipelining == "yes":
            self.findings.append(
                warning(
                    self.area,
                    f"{self.address} does not announce PIPELINING but the pool says yes",
                    "set pipelining: auto",
                )
            )
        else:
            self.findings.append(ok(self.area, f"{self.address} gets one command at a time (no PIPELINING)"))

    def _judge_mechanisms(self, announced: list[str]) -> None:
        """What popproxy will log in with, as far as it needs AUTH."""
        offered = {word for line in announced if line.split()[:1] == ["SASL"] for word in line.split()[1:]}
        token = "XOAUTH2" if self.pool.xoauth2 is None else self.pool.xoauth2.mechanism.upper()
        for mechanism, wanted in (
            ("GSSAPI", TICKET_STRATEGIES.intersection(self.pool.login)),
            ("PLAIN", "master" in self.pool.login and self.pool.master and self.pool.master.mechanism == "plain"),
            ("EXTERNAL", "external" in self.pool.login),
            (token, "xoauth2" in self.pool.login),
        ):
            if wanted and mechanism not in offered:
                cure = "let the server offer it, or write another login: of the pool"
                self.findings.append(problem(self.area, f"{self.address} does not offer AUTH {mechanism}", cure))
            elif wanted:
                self.findings.append(ok(self.area, f"{self.address} offers AUTH {mechanism}"))

    def _judge_declared(self, declared: str, announced: list[str]) -> None:
        if declared.upper() in announced:
            return
        verb = declared.upper().split()[0]
        similar = [line for line in announced if line.split()[0:1] == [verb]]
        what = f"says {_printable(similar[0].encode())}" if similar else "does not announce it"
        cure = (
            f"correct capabilities: of the pool ({similar[0]})"
            if similar
            else "remove it from capabilities: of the pool"
        )
        self.findings.append(problem(self.area, f"{declared} is declared, but {self.address} {what}", cure))

    async def _capa(self) -> list[str] | None:
        if not await self._ask("CAPA"):
            return None
        lines: list[str] = []
        while (line := await self._line()) != b".":
            lines.append(line.decode("ascii", "replace").strip())
            if len(lines) > _LINES_LIMIT:
                raise _ProbeError("answers CAPA without end", "look at it with telnet")
        return lines

    async def _ask(self, command: str) -> bool:
        await self._send(command)
        return (await self._line()).upper().startswith(b"+OK")

    async def _send(self, command: str) -> None:
        assert self.writer is not None
        self.asked = command
        try:
            self.writer.write(command.encode() + b"\r\n")
            await self.writer.drain()
        except OSError:
            raise self._closed() from None

    async def _line(self) -> bytes:
        try:
            line = await self.reader.readline()
        except ValueError:
            raise _ProbeError("sends an endless line", "is this a POP3 server?") from None
        except OSError:
            raise self._closed() from None
        if not line.endswith(b"\n"):
            raise self._closed()
        return line.rstrip(b"\r\n")

    def _closed(self) -> _ProbeError:
        if not self.asked:
            return _ProbeError("closed the connection before its greeting", "does the backend let this machine in?")
        return _ProbeError(f"closed the connection at {self.asked}", "look at the backend's log")


def _not_connected(error: OSError | None, in_tls: bool) -> _ProbeError:
    """In our words, by number: asyncio writes its own text, with the address as Python shows it, into `strerror`."""
    if error is None:
        return _ProbeError("has a name without an address", "correct the name in servers: or ask your DNS")
    if error.errno in _NOT_CONNECTED:
        return _ProbeError(*_NOT_CONNECTED[error.errno])
    if in_tls and isinstance(error, ConnectionError):
        return _closed_in_handshake()
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return _ProbeError(f"cannot be reached: {reason}", _IS_IT_UP)


def _closed_in_handshake() -> _ProbeError:
    return _ProbeError("closed the connection during the TLS handshake", _OLD_TLS)


def _printable(line: bytes) -> str:
    text = line[:100].decode("ascii", "replace")
    return repr("".join(char if char.isprintable() else "?" for char in text))
