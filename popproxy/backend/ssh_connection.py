"""One SSH connection that is kept up, with a channel for each session. Runs in the event loop of the tunnels.

The server must show a key of the known_hosts file, whatever else it can do. We log in by key or by GSSAPI, never by
password, take no configuration of OpenSSH's, and forward neither agent nor display. Of the ciphers AES-GCM is the first
choice and AES-CTR what old servers get; ChaCha20-Poly1305 and CBC are left out (Terrapin, CVE-2023-48795).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncssh

from popproxy.backend.ssh_channel import WINDOW, Pump
from popproxy.config.model_tunnels import Tunnel
from popproxy.errors import BackendError, ConnectFailed
from popproxy.observe.logs import get_logger
from popproxy.types import Address, Secret

Connection = asyncssh.SSHClientConnection
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
KEEPALIVE_QUESTIONS = 3
STEADY = 10.0
"""Seconds after which a connection that is lost has not failed at the start: the next attempt comes soon."""
_DISCONNECTED = {
    asyncssh.DISC_HOST_KEY_NOT_VERIFIABLE: "host_key",
    asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE: "login",
    asyncssh.DISC_ILLEGAL_USER_NAME: "login",
    asyncssh.DISC_KEY_EXCHANGE_FAILED: "negotiation",
    asyncssh.DISC_MAC_ERROR: "protocol",
    asyncssh.DISC_PROTOCOL_ERROR: "protocol",
    asyncssh.DISC_CONNECTION_LOST: "lost",
}

_FOR_GOOD = frozenset(("host_key", "login", "negotiation", "set_up"))
"""Somebody must mend these: the next attempt will end likewise, and nobody need wait for it."""

log = get_logger("tunnel")
asyncssh.set_log_level("CRITICAL")  # it would tell each channel; what matters we say ourselves


@dataclass(frozen=True, slots=True)
class Credentials:
    """What we log in with, beside Kerberos."""

    key: asyncssh.SSHKey | None


def read_credentials(key: Secret | None, passphrase: Secret | None) -> Credentials:
    """From what stands in the files. Raises ValueError."""
    if key is None:
        return Credentials(None)
    try:
        return Credentials(
            asyncssh.import_private_key(key.reveal() + b"\n", None if passphrase is None else passphrase.reveal())
        )
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise ValueError(str(error)) from None


async def connect(tunnel: Tunnel, credentials: Credentials, through: Connection | None = None) -> Connection:
    """An SSH connection, logged in, after `tunnel.timeout` at the latest. Raises ConnectFailed."""
    options: dict[str, Any] = {}
    if through is not None:
        options["tunnel"] = through
    if tunnel.gssapi and tunnel.keytab is not None:
        options["gss_store"] = {"client_keytab": str(tunnel.keytab), "ccache": f"MEMORY:{tunnel.host}"}
    try:
        async with asyncio.timeout(tunnel.timeout):
            return await asyncssh.connect(
                tunnel.host, tunnel.port, username=tunnel.user, known_hosts=str(tunnel.known_hosts), config=None,
                client_keys=None if credentials.key is None else [credentials.key], agent_path=None,
                x509_trusted_certs=None, x509_trusted_cert_paths=[], public_key_auth=credentials.key is not None,
                gss_auth=tunnel.gssapi, gss_kex=False, gss_host=tunnel.host if tunnel.gssapi else None,
                password_auth=False, kbdint_auth=False, host_based_auth=False, encryption_algs=CIPHERS,
                compression_algs=None, keepalive_interval=tunnel.keepalive, keepalive_count_max=KEEPALIVE_QUESTIONS,
                **options,
            )  # fmt: skip
    except TimeoutError:
        raise ConnectFailed("no answer in time", "timeout") from None
    except asyncssh.Error as error:
        raise ConnectFailed(str(error), _DISCONNECTED.get(getattr(error, "code", 0), "protocol")) from None
    except socket.gaierror as error:
        raise ConnectFailed(f"{tunnel.host} does not resolve: {error.strerror}", "dns") from None
    except ConnectionRefusedError:
        raise ConnectFailed("connection refused", "refused") from None
    except ConnectionError:
        raise ConnectFailed("the server closed the connection", "lost") from None
    except OSError as error:
        if error.filename is not None:
            raise ConnectFailed(f"{error.filename}: {error.strerror}", "set_up") from None
        raise ConnectFailed(error.strerror or str(error), "unreachable") from None
    except ValueError as error:
        raise ConnectFailed(str(error), "set_up") from None


async def connect_through(connection: Connection, address: Address) -> socket.socket:
    """A connection with `address` as the SSH server sees it. Raises BackendError."""
    ours, theirs = socket.socketpair()
    pump = Pump(lambda: None, lambda _pump: None)
    try:
        await asyncio.get_running_loop().create_connection(lambda: pump.local, sock=theirs)
        await _open_channel(connection, pump, address)
    except BaseException:
        pump.close()
        ours.close()
        raise
    return ours


async def _open_channel(connection: Connection, pump: Pump, address: Address) -> None:
    try:
        await connection.create_connection(lambda: pump.remote, address.host, address.port, window=WINDOW)
    except asyncssh.ChannelOpenError as error:
        reason = "refused" if error.code == asyncssh.OPEN_CONNECT_FAILED else "rejected"
        what = f"{address} cannot be reached through the tunnel: {error.reason.lower()}"
        raise BackendError(what, "connect", reason) from None
    except asyncssh.Error:
        raise BackendError("the tunnel was lost", "connect", "tunnel") from None
    _acknowledge(connection)


def _acknowledge(connection: Connection) -> None:
    """At once, not after 40 ms: until then Nagle's algorithm keeps sshd from sending the greeting."""
    sock = connection.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class SshConnection:
    """Keeps one tunnel up. `changed` is told ``connecting``, ``up`` and ``down``, and why it is down in one word."""

    def __init__(
        self, name: str, tunnel: Tunnel, credentials: Credentials, via: SshConnection | None,
        changed: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self.name = name
        self._tunnel = tunnel
        self._credentials = credentials
        self._via = via
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._news: asyncio.Future[None] = self._loop.create_future()  # done when the state changes
        self._pumps: set[Pump] = set()
        self._next_attempt = 0.0  # loop time
        self._why = ""  # it is down
        self._for_good = False
        self._logged = ""  # what was wrong when the log was told of it

    async def keep_up(self) -> None:
        """Connect, again and again; ends by being cancelled."""
        tunnel, wait = self._tunnel, self._tunnel.retry
        try:
            while True:
                since = self._loop.time()
                try:
                    await self._once()
                except ConnectFailed as error:
                    self._down(str(error), error.reason)
                except Exception:
                    log.exception("a tunnel has failed", tunnel=self.name)
                    self._down("a bug of ours", "internal")
                if self._loop.time() - since > max(STEADY, tunnel.timeout):
                    wait = tunnel.retry
                delay = wait * random.uniform(0.5, 1.0)  # noqa: S311 - so that many do not come at once
                wait = min(2 * wait, tunnel.retry_longest)
                self._next_attempt = self._loop.time() + delay
                await asyncio.sleep(delay)
        finally:
            for pump in tuple(self._pumps):
                pump.close()

    async def _once(self) -> None:
        """Connect, and wait for the end of the connection. Raises ConnectFailed."""
        self._next_attempt = 0.0
        self._changed("connecting", "")
        through = None
        if self._via is not None:
            try:
                async with asyncio.timeout(self._tunnel.timeout):
                    through = await self._via.connected(self._loop.time() + self._tunnel.timeout)
            except TimeoutError:
                raise ConnectFailed(f"the tunnel {self._via.name} is not up", "via") from None
        connection = await connect(self._tunnel, self._credentials, through)
        self._connection = connection
        self._changed("up", "")
        self._for_good = False
        self._logged = ""
        log.info("tunnel is up", tunnel=self.name, cipher=connection.get_extra_info("send_cipher"))
        self._tell()
        try:
            await connection.wait_closed()
        finally:
            self._connection = None
            connection.abort()
        raise ConnectFailed("the connection was lost", "lost")

    def _down(self, why: str, reason: str) -> None:
        self._why = why
        self._for_good = reason in _FOR_GOOD
        self._changed("down", reason)
        self._tell()
        if self._logged != why:  # each attempt anew would fill a log
            self._logged = why
            log.error("tunnel is down", tunnel=self.name, reason=reason, why=why)

    def _tell(self) -> None:
        news, self._news = self._news, self._loop.create_future()
        news.set_result(None)

    async def connected(self, deadline: float) -> Connection:
        """The connection; while there is none, waits for the next attempt if that comes before loop time `deadline`.

        Raises ConnectFailed.
        """
        while self._connection is None:
            if self._next_attempt >= deadline or self._for_good:
                raise ConnectFailed(f"the tunnel {self.name} is down: {self._why}", "tunnel")
            await asyncio.shield(self._news)
        return self._connection

    async def open(self, address: Address, sock: socket.socket, lost: Callable[[], None], seconds: float) -> None:
        """Connect `sock`, one end of a pair, with `address` as the SSH server sees it. It is ours from here on.

        Raises BackendError after `seconds` at the latest.
        """
        pump = Pump(lost, self._pumps.discard)
        self._pumps.add(pump)
        opening: asyncio.Task[None] | None = None
        try:
            await self._loop.create_connection(lambda: pump.local, sock=sock)
            async with asyncio.timeout(seconds):
                connection = await self.connected(self._loop.time() + seconds)
                opening = asyncio.ensure_future(_open_channel(connection, pump, address))
                await asyncio.shield(opening)
            opening = None
        except ConnectFailed as error:
            raise BackendError(str(error), "connect", "tunnel") from None
        except TimeoutError:
            raise BackendError("no answer in time", "connect", "tunnel" if opening is None else "timeout") from None
        finally:
            if opening is not None or pump.channel is None:
                pump.close()
            if opening is not None:
                opening.add_done_callback(partial(_drop, pump))


def _drop(pump: Pump, opening: asyncio.Task[None]) -> None:
    """A channel that nobody waits for any more is closed as soon as it is there."""
    if not opening.cancelled():
        opening.exception()  # seen
    pump.close()
