"""The operators' console: an SSH server that knows popproxy's commands and nothing else.

Operators prove themselves by key or by Kerberos ticket, never by password. There is no shell, no forwarding of ports,
agents or displays, and no transfer of files. Every command goes to the desk, like those of the control socket, with the
operator's name and where he comes from.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncssh

from popproxy.admin.commands import Role
from popproxy.admin.console_session import ConsoleSession
from popproxy.admin.desk import Desk, Operator, Recorder
from popproxy.admin.failed_logins import ACTION, FailedLogins
from popproxy.admin.places import Places
from popproxy.config.model_console import Console
from popproxy.observe.logs import get_logger
from popproxy.state.shared import Lease, SharedState
from popproxy.types import Outcome, Secret

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
KEY_EXCHANGES = (
    "mlkem768x25519-sha256", "sntrup761x25519-sha512@openssh.com", "curve25519-sha256", "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256", "ecdh-sha2-nistp384",
)  # fmt: skip
"""Those that cost a server little: the groups of old clients take up to 30 ms in which no session gets on, and a
stranger may ask for them again and again."""
LOGIN_SECONDS = 30
"""Until when a client must have proven who it is, as sshd's LoginGraceTime."""
STRANGERS = 32
"""Clients at a time that have not proven it yet, whatever number of operators there may be."""
CHANNELS = 8
"""Commands that one operator may have running at a time."""
FAREWELL = 2.0
"""Seconds that clients have to hear that popproxy ends."""
KEEPALIVE = 30.0
"""Seconds of silence after which the client is asked whether it is there."""

log = get_logger("console")
_KEY_EXCHANGES = [name for name in KEY_EXCHANGES if name.encode() in asyncssh.kex.get_kex_algs()]
asyncssh.set_log_level("CRITICAL")  # it would tell each channel; what matters we say ourselves


@dataclass(frozen=True, slots=True)
class HostKey:
    """What the console proves itself with."""

    key: asyncssh.SSHKey


def read_host_key(secret: Secret) -> HostKey:
    """From what stands in the file. Raises ValueError."""
    try:
        return HostKey(asyncssh.import_private_key(secret.reveal() + b"\n"))
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise ValueError(str(error)) from None


def read_authorized_keys(path: os.PathLike[str]) -> asyncssh.SSHAuthorizedKeys:
    """The keys of one operator. Raises ValueError if the file is of no use, or others could write into it."""
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o022:
                raise ValueError(f"{path}: others can write into it (mode {stat.S_IMODE(mode):04o})")
            return asyncssh.import_authorized_keys(file.read())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text") from None


_TOLD = 1.0  # seconds for whoever is one too many to be told so
_TOO_MANY = "too many operators"
_OPERATORS = "\1operators"  # who has the leases: no user has such a name


class ConsoleServer:
    """Listens for operators, in the running loop."""

    def __init__(
        self, config: Console, host_key: HostKey, sockets: Sequence[socket.socket], desk: Desk, recorder: Recorder,
        state: SharedState,
    ) -> None:  # fmt: skip
        self._config = config
        self._host_key = host_key
        self._sockets = sockets
        self._desk = desk
        self._recorder = recorder
        self._failed = FailedLogins(recorder)
        self._strangers = Places(STRANGERS)
        self._state = state
        self._operators: dict[_Connection, Lease] = {}
        self._connections: set[_Connection] = set()
        self._acceptors: list[asyncssh.SSHAcceptor] = []
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self) -> None:
        """Take operators from now on."""
        config = self._config
        kerberos: dict[str, Any] = {"gss_host": None, "gss_auth": False}
        if config.keytab is not None:
            kerberos = {
                "gss_host": config.host or socket.getfqdn(), "gss_auth": True,
                "gss_store": {"keytab": str(config.keytab)},
            }  # fmt: skip
        for sock in self._sockets:
            self._acceptors.append(await self._listen(sock, kerberos))

    async def _listen(self, sock: socket.socket, kerberos: dict[str, Any]) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            sock=sock, server_factory=lambda: _Connection(self), server_host_keys=[self._host_key.key],
            config=[], options=None, gss_kex=False, password_auth=False, kbdint_auth=False, host_based_auth=False,
            public_key_auth=True, process_factory=self._serve, allow_pty=True, line_editor=True, line_history=500,
            max_line_length=4096, sftp_factory=None, allow_scp=False, agent_forwarding=False, x11_forwarding=False,
            x509_trusted_certs=None, x509_trusted_cert_paths=[], encryption_algs=CIPHERS, compression_algs=None,
            kex_algs=_KEY_EXCHANGES,
            server_version="popproxy", login_timeout=LOGIN_SECONDS, keepalive_interval=KEEPALIVE, errors="replace",
            **kerberos,
        )  # fmt: skip

    async def stop(self) -> None:
        """Listen no more, and send all operators away."""
        for acceptor in self._acceptors:
            acceptor.close()
        for connection in tuple(self._connections):
            connection.send_away("popproxy ends")
        try:
            async with asyncio.timeout(FAREWELL):
                await self._empty.wait()
        except TimeoutError:  # whoever does not read
            for connection in tuple(self._connections):
                connection.cut()
            await self._empty.wait()
        self._failed.close()
        for sock in self._sockets:
            sock.close()

    # ---- from connections ----

    def enter(self, connection: _Connection, address: str) -> None:
        """One more has come, from `address`. Counted until `leave`."""
        self._connections.add(connection)
        self._empty.clear()
        self._strangers.enter(connection, address)

    async def admit(self, connection: _Connection, operator: Operator) -> bool:
        """It is an operator's. False if there are too many, here and wherever the state is shared, or it has gone."""
        self._strangers.leave(connection)
        taken = await self._state.acquire(_OPERATORS, (("", self._config.connections),))
        if isinstance(taken, str):
            return False
        if connection not in self._connections:
            taken.release()
            return False
        self._operators[connection] = taken
        self._recorder.event(ACTION, Outcome.SUCCESS, **{"event.category": ["authentication"]}, **operator.record)
        return True

    def refuse(self, name: str, address: str) -> None:
        """Somebody who said to be `name` has gone without proof."""
        log.warning("an operator could not log in", operator=name[:64], client=address)
        self._failed.add(address, name if name in self._config.operators else None)

    def leave(self, connection: _Connection) -> None:
        """It has gone."""
        self._strangers.leave(connection)
        if (lease := self._operators.pop(connection, None)) is not None:
            lease.release()
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    @property
    def config(self) -> Console:
        """Who may come, and for how long."""
        return self._config

    async def _serve(self, process: asyncssh.SSHServerProcess[str]) -> None:
        connection = process.get_extra_info("connection").get_owner()
        assert isinstance(connection, _Connection)
        await connection.serve(process, self._desk)


class _Connection(asyncssh.SSHServer):
    """One operator's connection."""

    def __init__(self, server: ConsoleServer) -> None:
        self._server = server
        self._connection: asyncssh.SSHServerConnection | None = None
        self._peer = ("", 0)
        self._name = ""
        self._by = ""
        self._operator: Operator | None = None
        self._admitted: asyncio.Task[bool] | None = None
        self._running = 0
        self._gone = False
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._peer = (conn.get_extra_info("peername") or ("", 0))[:2]  # none if the client has gone again
        self._server.enter(self, self._peer[0])
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._server.leave(self)
        if self._idle is not None:
            self._idle.cancel()
        if self._operator is None and self._name:
            self._server.refuse(self._name, self._peer[0])

    def begin_auth(self, username: str) -> bool:
        if self._name:  # RFC 4252 section 5: nothing of what the first one has shown may count for another
            self.send_away("another name")
            return True
        self._name = username
        config = self._server.config.operators.get(username)
        if config is not None and config.authorized_keys is not None and self._connection is not None:
            try:
                self._connection.set_authorized_keys(read_authorized_keys(config.authorized_keys))
                self._by = "key"
            except ValueError as error:
                log.error("the keys of an operator are of no use", operator=username, why=str(error))
        return True

    def public_key_auth_supported(self) -> bool:
        return True  # also for names that do not exist, or they could be told from those that do

    def validate_gss_principal(self, username: str, user_principal: str, host_principal: str) -> bool:
        config = self._server.config.operators.get(username)
        if config is None or user_principal not in config.principals:
            return False
        self._by = user_principal
        return True

    def auth_completed(self) -> None:
        config = self._server.config.operators[self._name]
        host, port = self._peer
        who = {
            "user.name": self._name, "source.ip": host, "source.port": port, "popproxy.operator_via": "ssh",
            "popproxy.operator_by": self._by,
        }  # fmt: skip
        self._operator = Operator(self._name, Role(config.role), who)
        self._admitted = asyncio.get_running_loop().create_task(self._admit(self._operator))

    async def _admit(self, operator: Operator) -> bool:
        if not await self._server.admit(self, operator):
            asyncio.get_running_loop().call_later(_TOLD, self.send_away, _TOO_MANY)
            return False
        role = self._server.config.operators[self._name].role
        log.info("an operator has logged in", operator=self._name, role=role, client=self._peer[0], by=self._by)
        return True

    async def serve(self, process: asyncssh.SSHServerProcess[str], desk: Desk) -> None:
        """One command, or a console."""
        assert self._operator is not None
        assert self._admitted is not None
        if not await asyncio.shield(self._admitted):
            process.stderr.write(f"popproxy: {_TOO_MANY}\n")
            process.exit(os.EX_UNAVAILABLE)
            return
        if process.subsystem is not None or self._running >= CHANNELS:
            process.stderr.write("popproxy: that is not to be had here\n")
            process.exit(os.EX_UNAVAILABLE)
            return
        self._running += 1
        try:
            await ConsoleSession(process, desk, self._operator, self._server.config.idle).run()
        finally:
            self._running -= 1
            self._wait()

    def send_away(self, why: str) -> None:
        """End the connection."""
        if self._connection is not None and not self._gone:
            self._connection.disconnect(asyncssh.DISC_BY_APPLICATION, why)

    def cut(self) -> None:
        """End it at once."""
        if self._connection is not None:
            self._connection.abort()

    def _wait(self) -> None:
        """A connection in which nothing runs may stay as long as a console in which nobody types."""
        if self._idle is not None:
            self._idle.cancel()
        if self._gone:
            return
        self._idle = asyncio.get_running_loop().call_later(self._server.config.idle, self._waited)

    def _waited(self) -> None:
        if not self._running:
            self.send_away("idle")
