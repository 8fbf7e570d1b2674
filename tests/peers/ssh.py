"""SSH servers that forward connections: a real OpenSSH, and one by asyncssh that does what the test says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncssh

from tests.peers.process import REPOSITORY, PeerMissingError, Process, accepts, free_port, public_directory

_TREE = REPOSITORY / ".venv/peers/openssh"
_CONFIGURATION = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
StrictModes no
UsePAM yes
PasswordAuthentication no
KbdInteractiveAuthentication no
GSSAPIAuthentication {gssapi}
AllowTcpForwarding yes
MaxStartups 100
LogLevel VERBOSE
{extra}
"""


class Keys:
    """A host key, a client's key and a known_hosts file in `directory`, for a server at `port` of 127.0.0.1."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.host = asyncssh.generate_private_key("ssh-ed25519")
        self.client = asyncssh.generate_private_key("ssh-ed25519")
        self.client_file = directory / "client_key"
        self.known_hosts = directory / "known_hosts"
        self._write("host_key", self.host)
        self._write("client_key", self.client)
        (directory / "authorized_keys").write_bytes(self.client.export_public_key())
        self.know(self.host)

    def know(self, key: asyncssh.SSHKey, host: str = "127.0.0.1") -> None:
        """Makes `key` the one that the server must show."""
        self.known_hosts.write_bytes(f"[{host}]:{self.port} ".encode() + key.export_public_key())

    def tunnel(self, user: str = "nobody", **more: Any) -> dict[str, Any]:
        """A tunnel as it stands in a configuration, with short times."""
        return {
            "host": "127.0.0.1", "port": self.port, "user": user, "key": {"file": str(self.client_file)},
            "known_hosts": str(self.known_hosts), "retry": "100ms", "retry_longest": "400ms", **more,
        }  # fmt: skip

    def _write(self, name: str, key: asyncssh.SSHKey) -> None:
        path = self.directory / name
        path.write_bytes(key.export_private_key())
        path.chmod(0o600)


class OpenSsh:
    """A real sshd, which runs as an ordinary user and lets in nobody but that user."""

    def __init__(self, directory: Path, *, gssapi: bool = False, extra: str = "", env: dict[str, str] | None = None):
        program = _TREE / "usr/sbin/sshd"
        if not program.exists():
            raise PeerMissingError("OpenSSH's server is not unpacked; run: make setup")
        root = os.geteuid() == 0
        owner = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.geteuid())
        self.user = owner.pw_name
        self.port = free_port()
        self.keys = Keys(directory, self.port)
        self._directory = directory
        configuration = directory / "sshd_config"
        configuration.write_text(
            _CONFIGURATION.format(port=self.port, directory=directory, gssapi="yes" if gssapi else "no", extra=extra)
        )
        libraries = ":".join(str(path) for path in (_TREE / "usr/lib").glob("*-linux-gnu"))
        self._env = {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": libraries, **(env or {})}
        self._command: list[str | Path] = [program, "-D", "-e", "-f", configuration]
        if root:
            for path in (directory, *directory.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid)
            identity = [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
            self._command = [str(shutil.which("setpriv")), *identity, *self._command]
        self.start()

    def start(self) -> None:
        """Begins to listen."""
        self._process = Process("sshd", self._command, self._directory / "sshd.log", self._directory, self._env)
        self._process.wait_for(lambda: accepts(self.port), "sshd listens")

    def connections(self) -> list[int]:
        """The processes that serve one SSH connection each: the monitor's child, if there is one."""
        monitors = _children(self._process.pid)
        return [(_children(monitor) or [monitor])[0] for monitor in monitors]

    def log(self) -> str:
        """What sshd has said."""
        return (self._directory / "sshd.log").read_text(errors="replace")

    def stop(self) -> None:
        """Ends the server; the connections it has go on."""
        self._process.stop()


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(pid)
    return found


@contextlib.contextmanager
def openssh(**options: Any) -> Iterator[OpenSsh]:
    """A real sshd for the length of a with statement."""
    with public_directory("sshd") as directory:
        server = OpenSsh(directory, **options)
        try:
            yield server
        finally:
            for pid in server.connections():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            server.stop()


class ScriptedSsh(asyncssh.SSHServer):
    """An SSH server in the test's own loop. `connections` are those it has, `logins` the names that were tried."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.logins: list[str] = []
        self.opened: list[tuple[str, int]] = []
        self.deaf = False
        """Never answer to a channel's opening."""
        self.allow = True
        self._listener: asyncssh.SSHAcceptor | None = None

    async def start(self) -> None:
        """Listen."""
        self._listener = await asyncssh.listen(
            "127.0.0.1", self.keys.port, server_host_keys=[self.keys.host], server_factory=lambda: _Handler(self),
            authorized_client_keys=str(self.keys.directory / "authorized_keys"),
        )  # fmt: skip

    async def stop(self) -> None:
        """Listen no more; end all connections without a word."""
        assert self._listener is not None
        self._listener.close()
        await self._listener.wait_closed()
        self.kill()

    def kill(self) -> None:
        """End all connections without a word."""
        for connection in self.connections:
            transport = connection._transport
            if transport is not None:
                transport.abort()


class _Handler(asyncssh.SSHServer):
    def __init__(self, server: ScriptedSsh) -> None:
        self._server = server

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._server.connections.append(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.remove(self._connection)

    def begin_auth(self, username: str) -> bool:
        self._server.logins.append(username)
        return True

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        self._server.opened.append((dest_host, dest_port))
        if self._server.deaf:
            return _never(self._connection)
        if not self._server.allow:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "not from here")
        return True


async def _never(connection: asyncssh.SSHServerConnection) -> bool:
    await connection.wait_closed()
    return False


@contextlib.asynccontextmanager
async def scripted_ssh(directory: Path) -> AsyncIterator[ScriptedSsh]:
    """A scripted SSH server for the length of a with statement."""
    server = ScriptedSsh(Keys(directory, free_port()))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        while server.connections:
            await asyncio.sleep(0.005)
