"""The way to one server, for a check: its name, tunnel or SOCKS proxy, TLS; and what to say if it leads nowhere."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING

from popproxy.app.checks.threads import in_daemon_thread
from popproxy.app.checks.tunnels import CheckedTunnels
from popproxy.app.socks import read_socks_password
from popproxy.config.model_pools import Pool
from popproxy.config.model_socks import Socks
from popproxy.errors import BackendError, ConfigError, ConnectFailed
from popproxy.types import Address

if TYPE_CHECKING:
    from popproxy.net.dns import Dns

_LINE_LIMIT = 8192
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


class ProbeError(Exception):
    """The probe cannot go on. The text goes on where the server's address ends; `cure` says what to do."""

    def __init__(self, text: str, cure: str = "") -> None:
        super().__init__(text)
        self.cure = cure


class ServerLink:
    """A connection to one server of a pool, as `reader` and `writer` once it is there."""

    def __init__(
        self, name: str, pool: Pool, server: Address, address: Address, tunnels: CheckedTunnels, dns: Dns | None
    ) -> None:
        self.pool = pool
        self.address = address
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter | None = None
        self._name = name
        self._tunnel = pool.tunnel_to(server)
        self._tunnels = tunnels
        self._dns = dns  # None: the system is asked

    def close(self) -> None:
        """End it."""
        if self.writer is not None:
            self.writer.transport.abort()

    async def connect(self, seconds: float, context: ssl.SSLContext | None) -> None:
        """Connect, with TLS from the first octet if there is a `context`. Raises ProbeError."""
        if self._tunnel is not None:
            opening = self._tunnels.connect(self._tunnel, self.address)
            await self._connect_through(opening, f"the tunnel {self._tunnel}", seconds, context)
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
            raise ProbeError(f"does not answer within {seconds:g} s (timeouts.connect)", _FIREWALL) from None
        raise _not_connected(refusal, context is not None)

    async def _connect_by_socks(self, socks: Socks, seconds: float) -> socket.socket:
        try:
            password = read_socks_password("", f"pools.{self._name}", socks)
        except ConfigError as error:
            one = error.problems[0]
            raise ProbeError(f"cannot be asked: {one.key} {one.what}", one.cure) from None
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
            raise ProbeError(said, _ASK_WHO_RUNS_IT) from None
        except TimeoutError:
            text = f"does not answer through {what} within {seconds:g} s (timeouts.connect)"
            raise ProbeError(text, _FIREWALL) from None
        except ssl.SSLError as error:
            raise self._tls_failure(error) from None
        except OSError:
            raise _closed_in_handshake() from None

    async def _resolve(self, address: Address, seconds: float) -> list[str]:
        look_up = partial(socket.getaddrinfo, address.host, address.port, type=socket.SOCK_STREAM)
        try:
            if self._dns is not None:
                return (await self._dns.addresses(address.host))[0]
            async with asyncio.timeout(seconds):
                found = await in_daemon_thread(look_up)
        except ConnectFailed as error:
            raise ProbeError(f"has a name that does not resolve ({error})", "correct the name, or the zone") from None
        except (socket.gaierror, TimeoutError) as error:
            reason = error.strerror if isinstance(error, socket.gaierror) else "no answer from the name servers"
            if address is not self.address:
                text = f"cannot be asked: the name of the SOCKS proxy, {address.host}, does not resolve: {reason}"
                raise ProbeError(text, "correct server: in socks: of the pool, or ask your DNS") from None
            text = f"has a name that does not resolve: {reason}"
            raise ProbeError(text, "correct the name in servers: or ask your DNS") from None
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    async def start_tls(self, context: ssl.SSLContext, seconds: float | None = None) -> None:
        """TLS from here on. Raises ProbeError."""
        assert self.writer is not None
        try:
            async with asyncio.timeout(seconds):
                await self.writer.start_tls(context, server_hostname=self.pool.server_name or self.address.host)
        except TimeoutError:
            raise ProbeError(f"does not answer within {seconds:g} s (timeouts.connect)", _FIREWALL) from None
        except ssl.SSLError as error:
            raise self._tls_failure(error) from None
        except OSError:
            raise _closed_in_handshake() from None

    def _tls_failure(self, error: ssl.SSLError) -> ProbeError:
        if isinstance(error, ssl.SSLCertVerificationError):
            cure = _CERTIFICATE_CURES.get(
                error.verify_code, "look at it with: openssl s_client -connect " + str(self.address)
            )
            return ProbeError(f"has a certificate that is refused: {error.verify_message.rstrip('.')}", cure)
        return ProbeError(f"fails in TLS: {error.reason or error}", "does this port speak TLS (implicit), or STLS?")


def _not_connected(error: OSError | None, in_tls: bool) -> ProbeError:
    """In our words, by number: asyncio writes its own text, with the address as Python shows it, into `strerror`."""
    if error is None:
        return ProbeError("has a name without an address", "correct the name in servers: or ask your DNS")
    if error.errno in _NOT_CONNECTED:
        return ProbeError(*_NOT_CONNECTED[error.errno])
    if in_tls and isinstance(error, ConnectionError):
        return _closed_in_handshake()
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return ProbeError(f"cannot be reached: {reason}", _IS_IT_UP)


def _closed_in_handshake() -> ProbeError:
    return ProbeError("closed the connection during the TLS handshake", _OLD_TLS)
