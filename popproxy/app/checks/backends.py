"""Checks of the backends: does every server resolve, answer, speak TLS and have what its pool declares?"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from typing import TYPE_CHECKING

from popproxy.app.checks.finding import Finding, counted, ok, problem, warning
from popproxy.app.checks.server_link import ProbeError, ServerLink
from popproxy.app.checks.tunnels import CheckedTunnels
from popproxy.app.names import make_dns
from popproxy.backend.discovery import srv_name, targets_of
from popproxy.backend.pool import pool_context
from popproxy.config.model import Config
from popproxy.config.model_pools import TICKET_STRATEGIES, Pool
from popproxy.errors import ConnectFailed
from popproxy.net.certificate import key_pin
from popproxy.types import Address
from popproxy.wire.proxy_protocol import introduce

if TYPE_CHECKING:
    from popproxy.net.dns import Dns

PROBE_SECONDS = 12.0
"""Longest time for one server; all servers are asked at once."""
_LINES_LIMIT = 200
_TIMESTAMP = re.compile(rb"<[^<>\s]+@[^<>\s]+>")


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
    except ProbeError as failure:
        probe.findings.append(problem(probe.area, f"{address} {failure}", failure.cure))
    except TimeoutError:
        text = f"{address} does not answer {probe.asked or 'the attempt to connect'} within {PROBE_SECONDS:g} s"
        probe.findings.append(problem(probe.area, text, "look at the backend's log"))
    finally:
        probe.close()
    return probe.findings


class _Probe(ServerLink):
    """One conversation with one server."""

    def __init__(
        self, name: str, pool: Pool, server: Address, address: Address, tunnels: CheckedTunnels, dns: Dns | None
    ) -> None:
        super().__init__(name, pool, server, address, tunnels, dns)
        self.area = f"pool {name}"
        self.findings: list[Finding] = []
        self.asked = ""  # the last command, for messages

    async def run(self, connect_seconds: float) -> None:
        context = self._tls_context()
        if self.pool.proxy_header == "none":
            await self.connect(connect_seconds, context if self.pool.tls == "implicit" else None)
        else:
            await self.connect(connect_seconds, None)
            assert self.writer is not None
            self.writer.write(introduce(self.pool.proxy_header, None))
            if self.pool.tls == "implicit":
                await self.start_tls(context, connect_seconds)
        greeting = await self._greeting(connect_seconds)
        if self.pool.tls == "stls":
            await self._upgrade(context)
        self._judge_key()
        self.findings.append(ok(self.area, f"{self.address} answers{self._protection()}"))
        self._judge_apop(greeting)
        self._judge_capabilities(await self._capa())
        await self._send("QUIT")
        with contextlib.suppress(ProbeError):
            await self._line()

    def _tls_context(self) -> ssl.SSLContext:
        try:
            context = pool_context(self.pool)
        except (OSError, ssl.SSLError) as error:
            if self.pool.certificate is not None:
                text = f"cannot be asked: ca or certificate of the pool cannot be used: {error.strerror or error}"
                raise ProbeError(text, "see what is said of the certificate, or correct ca: of the pool") from None
            raise ProbeError(
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

    async def _greeting(self, seconds: float) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                line = await self._line()
        except TimeoutError:
            cure = "a server that speaks first in TLS needs tls: implicit" if self.pool.tls != "implicit" else ""
            raise ProbeError(f"sends no greeting within {seconds:g} s", cure) from None
        if not line.startswith(b"+OK"):
            raise ProbeError(
                f"greets with {_printable(line)}", "is this a POP3 server, and does it let this machine in?"
            )
        return line

    async def _upgrade(self, context: ssl.SSLContext) -> None:
        if not await self._ask("STLS"):
            cure = "use tls: implicit (port 995), or tls: none with allow_cleartext: true on a link nobody can tap"
            raise ProbeError("refuses STLS", cure)
        await self.start_tls(context)

    def _judge_key(self) -> None:
        assert self.writer is not None
        session = self.writer.get_extra_info("ssl_object")
        if session is None or not self.pool.pin:
            return
        found = key_pin(session.getpeercert(True))
        if found not in self.pool.pin:
            raise ProbeError(f"has another key than pin: says, {found}", "ask who runs it whether that is its key")

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
                raise ProbeError("answers CAPA without end", "look at it with telnet")
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
            raise ProbeError("sends an endless line", "is this a POP3 server?") from None
        except OSError:
            raise self._closed() from None
        if not line.endswith(b"\n"):
            raise self._closed()
        return line.rstrip(b"\r\n")

    def _closed(self) -> ProbeError:
        if not self.asked:
            return ProbeError("closed the connection before its greeting", "does the backend let this machine in?")
        return ProbeError(f"closed the connection at {self.asked}", "look at the backend's log")


def _printable(line: bytes) -> str:
    text = line[:100].decode("ascii", "replace")
    return repr("".join(char if char.isprintable() else "?" for char in text))
