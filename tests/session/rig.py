"""The whole proxy in this process, between a client and a backend of bare sockets that the test moves by hand.

After each test the books must balance: one ``session_end`` for each session, all gauges at zero, no descriptor and no
task left, nothing unexpected in the log.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

from popproxy.app.service import Service
from popproxy.config.loader import Loaded, load_bytes
from popproxy.observe import logs
from tests.peers.hashes import ssha512

PATIENCE = 30.0
"""Seconds until a test gives up waiting for something that should be there at once."""
Record = dict[str, Any]


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until `condition` holds; AssertionError naming `what` if it never does."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"waited {seconds:g} s in vain: {what}"
        await asyncio.sleep(0.005)


class Peer:
    """One end of a connection: sees every octet, and how the connection ends. TLS by hand, so that it can be cut."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()
        self.ended = ""
        """eof, reset or tls (close_notify), once it has ended."""
        self.tls: ssl.SSLObject | None = None
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def send(self, data: bytes | str, seconds: float = PATIENCE) -> None:
        """Octets; under TLS encrypted."""
        octets = data.encode() if isinstance(data, str) else data
        async with asyncio.timeout(seconds):
            if self.tls is not None:
                self.tls.write(octets)
                octets = self._out.read()
            await self._loop.sock_sendall(self.sock, octets)

    async def more(self, seconds: float = PATIENCE) -> bool:
        """Read once; False at the end of the connection."""
        if self.ended:
            return False
        async with asyncio.timeout(seconds):
            try:
                data = await self._loop.sock_recv(self.sock, 1 << 18)
            except ConnectionResetError:
                self.ended = "reset"
                return False
        if self.tls is None:
            if not data:
                self.ended = "eof"
                return False
            self.received += data
            return True
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()
        return self._decrypt()

    def _decrypt(self) -> bool:
        assert self.tls is not None
        while True:
            try:
                plain = self.tls.read(1 << 18)
            except ssl.SSLWantReadError:
                return True
            except ssl.SSLError as error:  # of a cut connection, an SSLEOFError since Python 3.11.3 or so
                self.ended = "tls" if isinstance(error, ssl.SSLZeroReturnError) else "eof"
                return False
            if not plain:
                self.ended = "tls"
                return False
            self.received += plain

    async def line(self) -> bytes:
        """The next line, with its line end."""
        while b"\n" not in self.received:
            assert await self.more(), f"ended ({self.ended}) after {bytes(self.received)!r}"
        end = self.received.index(b"\n") + 1
        line = bytes(self.received[:end])
        del self.received[:end]
        return line

    async def take(self, count: int) -> bytes:
        """The next octets."""
        while len(self.received) < count:
            assert await self.more(), f"ended ({self.ended}) after {len(self.received)} of {count} octets"
        taken = bytes(self.received[:count])
        del self.received[:count]
        return taken

    async def rest(self, seconds: float = PATIENCE) -> bytes:
        """Everything until the end of the connection."""
        while await self.more(seconds):
            pass
        taken = bytes(self.received)
        self.received.clear()
        return taken

    async def silent(self, seconds: float = 0.05) -> bool:
        """Nothing comes, and the connection stays."""
        try:
            await self.more(seconds)
        except TimeoutError:
            return not self.received
        return not self.received and not self.ended

    async def expect(self, line: str | bytes) -> None:
        """The next line is exactly this."""
        octets = line.encode() if isinstance(line, str) else line
        got = await self.line()
        assert got == octets + b"\r\n", got

    async def command(self, line: str | bytes) -> bytes:
        """Send a line, return the answer without its line end."""
        await self.send((line.encode() if isinstance(line, str) else line) + b"\r\n")
        return (await self.line())[:-2]

    async def handshake(
        self, context: ssl.SSLContext, name: str | None = "localhost", *, server: bool = False, first: bytes = b""
    ) -> None:
        """TLS; `first` goes out in the clear before our ClientHello, in the same segment."""
        self.tls = context.wrap_bio(self._in, self._out, server_side=server, server_hostname=None if server else name)
        if self.received:
            self._in.write(bytes(self.received))
            self.received.clear()
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                if octets := first + self._out.read():
                    await self._loop.sock_sendall(self.sock, octets)
                first = b""
                async with asyncio.timeout(PATIENCE):
                    data = await self._loop.sock_recv(self.sock, 1 << 16)
                if data:
                    self._in.write(data)
                else:
                    self._in.write_eof()
            else:
                if octets := self._out.read():
                    await self._loop.sock_sendall(self.sock, octets)
                self._decrypt()
                return

    def hello(self, context: ssl.SSLContext, name: str = "localhost") -> bytes:
        """A ClientHello, not sent; go on with `finish`."""
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._out.read()

    async def sock_send(self, octets: bytes) -> None:
        """Octets as they are, even under TLS."""
        await self._loop.sock_sendall(self.sock, octets)

    async def finish(self, also: bytes = b"") -> None:
        """The rest of a handshake begun with `hello`; `also` goes out encrypted in the segment of our Finished."""
        assert self.tls is not None
        while True:
            self._in.write(await self._loop.sock_recv(self.sock, 1 << 16))
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                continue
            if also:
                self.tls.write(also)
            await self._loop.sock_sendall(self.sock, self._out.read())
            self._decrypt()
            return

    async def farewell(self) -> None:
        """close_notify, under TLS."""
        if self.tls is not None:
            with contextlib.suppress(ssl.SSLError):
                self.tls.unwrap()
            await self._loop.sock_sendall(self.sock, self._out.read())

    def half_close(self) -> None:
        """FIN: nothing more will be sent."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """FIN (or RST, if something is unread)."""
        self.sock.close()

    def reset(self) -> None:
        """RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Backend:
    """A listening socket; each connection is a Peer that the test answers by hand."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._sock = socket.create_server((host, 0))
        self._sock.setblocking(False)
        self.port: int = self._sock.getsockname()[1]
        self.connections: list[Peer] = []

    @property
    def address(self) -> str:
        """As it stands in a configuration."""
        return f"127.0.0.1:{self.port}"

    async def accept(self, seconds: float = PATIENCE) -> Peer:
        """The next connection of the proxy."""
        async with asyncio.timeout(seconds):
            sock, _ = await asyncio.get_running_loop().sock_accept(self._sock)
        peer = Peer(sock)
        self.connections.append(peer)
        return peer

    async def greeted(self) -> Peer:
        """The next connection, greeted."""
        peer = await self.accept()
        await peer.send("+OK ready\r\n")
        return peer

    async def logged_in(self, capa: str | None = "TOP UIDL") -> Peer:
        """The next connection, up to the open maildrop; CAPA is answered if it is asked."""
        peer = await self.greeted()
        await answer_login(peer, capa)
        return peer

    def close(self) -> None:
        """Of the listening socket and of all connections."""
        self._sock.close()
        for peer in self.connections:
            peer.close()


async def answer_login(peer: Peer, capa: str | None = "TOP UIDL", final: str = "+OK welcome") -> list[bytes]:
    """Answer CAPA (if it is asked), USER and PASS; returns the lines that came."""
    lines = []
    while True:
        line = await peer.line()
        lines.append(line)
        if line == b"CAPA\r\n":
            names = "".join(f"{name}\r\n" for name in capa.split()) if capa is not None else ""
            await peer.send(f"+OK\r\n{names}.\r\n" if capa is not None else "-ERR what?\r\n")
        elif line.startswith(b"USER "):
            await peer.send("+OK\r\n")
        else:
            await peer.send(f"{final}\r\n")
            return lines


class Rig:
    """A running proxy and its backend. Made by `running`."""

    def __init__(self, service: Service, backend: Backend, directory: Path, log: io.StringIO) -> None:
        self.service = service
        self.backend = backend
        self.directory = directory
        self.clients: list[Peer] = []
        self.expected_errors: list[str] = []
        """Patterns of log lines of level error that this test provokes."""
        self._log = log

    @property
    def parts(self) -> Any:
        """The proxy's own parts."""
        assert self.service._parts is not None
        return self.service._parts

    @property
    def metrics(self) -> Any:
        """Its metrics."""
        return self.parts.metrics

    def port(self, listener: str = "pop3") -> int:
        """Where a listener listens."""
        return self.service.addresses[listener][0].port

    async def client(self, listener: str = "pop3", *, source: str = "127.0.0.1", receive: int = 0) -> Peer:
        """A connection; nothing is read or sent. `receive` makes its receive buffer small."""
        sock = socket.socket()
        if receive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        sock.setblocking(False)
        sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port(listener)))
        peer = Peer(sock)
        self.clients.append(peer)
        return peer

    async def greeted(self, listener: str = "pop3", **options: Any) -> Peer:
        """A connection, greeting read."""
        client = await self.client(listener, **options)
        assert (await client.line()).startswith(b"+OK")
        return client

    async def logged_in(self, capa: str | None = "TOP UIDL", **options: Any) -> tuple[Peer, Peer]:
        """A client with an open maildrop, and the backend's end."""
        client = await self.greeted(**options)
        await client.send("USER alice\r\nPASS canary-pw-alice\r\n")
        backend = await self.backend.logged_in(capa)
        await client.expect("+OK send PASS")
        await client.expect("+OK Logged in")
        return client, backend

    def audit(self, action: str | None = None) -> list[Record]:
        """The audit records so far."""
        if not self.parts.audit._closed:
            self.parts.audit.flush()
        records = [json.loads(line, object_pairs_hook=_no_duplicates) for line in self._audit_lines()]
        return [record for record in records if action in (None, record["event.action"])]

    def _audit_lines(self) -> list[bytes]:
        path = self.directory / "audit.jsonl"
        return path.read_bytes().splitlines() if path.is_file() else []

    async def ends(self, *reasons: str) -> list[Record]:
        """Wait until all sessions have ended; their session_end records, whose reasons must be these."""
        await until(lambda: not self.service.sessions, "the end of all sessions")
        records = self.audit("session_end")
        assert [record["event.reason"] for record in records] == list(reasons), records
        return records

    def log(self) -> str:
        """The operational log so far."""
        return self._log.getvalue()

    def balanced(self) -> None:
        """AssertionError unless the books balance once all sessions have ended."""
        metrics = self.metrics
        assert not {key: value for key, value in metrics.sessions.items() if value}
        assert not {key: value for key, value in metrics.backend_sessions.items() if value}
        assert self.parts.admission.connections == 0
        assert self.parts.admission._by_address == {}
        assert self.parts.deadlines._members == set()
        records = self.audit()
        ended = [record["session.id"] for record in records if record["event.action"] == "session_end"]
        seen = {record["session.id"] for record in records if "session.id" in record}
        assert sorted(ended) == sorted(seen | set(ended)), "not one session_end for each session"
        counted = [family for family in metrics.families if family.kind != "histogram"]
        assert {family.name: lost for family in counted if (lost := metrics.values_of(family)[1])} == {}, "strays"


async def log_in(rig: Rig, user: str = "alice") -> bytes:
    """A session with a good password that ends without QUIT; the answer to PASS."""
    client = await rig.greeted()
    await client.command(f"USER {user}")
    answer = await client.command("PASS canary-pw-right")
    client.close()
    return answer


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Record:
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), f"a name stands twice in {pairs}"
    return dict(pairs)


def configuration(directory: Path, backend: str, **sections: Any) -> dict[str, Any]:
    """One plain listener, one plain backend, short times; `listener`, `pool` add to those, `sections` replace sections.

    Mappings in `sections` are merged into what stands there.
    """
    listener = {
        "name": "pop3",
        "listen": ["127.0.0.1:0"],
        "tls": "none",
        "cleartext_networks": ["127.0.0.0/8", "::1/128", "0.0.0.0/0", "::/0"],
        **sections.pop("listener", {}),
    }
    pool = {"servers": [backend], "tls": "none", "allow_cleartext": True, **sections.pop("pool", {})}
    base: dict[str, Any] = {
        "listeners": [listener, *sections.pop("more_listeners", [])],
        "pools": {"main": pool, **sections.pop("more_pools", {})},
        "authentication": {"failure_delay": "10ms"},
        "audit": {"file": str(directory / "audit.jsonl")},
        "http": {"listen": None},
        "control": {"socket": None},
        "limits": {
            "connections_per_address": 5000,
            "sessions_per_user": 5000,
            "sessions_per_user_and_address": 5000,
        },
        "timeouts": {"drain": "1s"},
        "logging": {"level": "debug", "format": "json"},
    }
    for name, value in sections.items():
        merge = isinstance(value, dict) and isinstance(base.get(name), dict)
        base[name] = {**base[name], **value} if merge else value
    return base


def loaded(directory: Path, sections: dict[str, Any]) -> Loaded:
    """A configuration as the loader makes it; JSON is YAML."""
    return load_bytes(json.dumps(sections).encode(), directory / "popproxy.yaml")


def descriptors() -> set[str]:
    """What this process has open, by kind and number; reading it needs one of its own, which is left out."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return {entry for entry in found if "/proc/" not in entry}


@contextlib.asynccontextmanager
async def running(directory: Path, **sections: Any) -> AsyncIterator[Rig]:
    """A proxy in this process. On leaving, the clients end, and the books must balance."""
    log = io.StringIO()
    backend = sections.pop("backend", None) or Backend()
    config = loaded(directory, configuration(directory, backend.address, **sections))
    logs.configure("debug", "json", log)
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    loop.set_exception_handler(lambda _loop, context: complaints.append(repr(context)))
    before, tasks = descriptors(), asyncio.all_tasks()
    service = Service(config)
    await service.start()
    rig = Rig(service, backend, directory, log)
    try:
        yield rig
        for client in rig.clients:
            client.close()
        await until(lambda: not service.sessions, "the end of all sessions after that of their clients")
        await rig.parts.dialer.close()  # attempts that nobody waits for any more
        # checks of servers, of which the next one may have begun, have deadlines too
        await until(lambda: not rig.parts.deadlines._members, "the end of all deadlines")
        rig.balanced()
    finally:
        backend.close()
        for client in rig.clients:
            client.close()
        await service.stop()
    rig.balanced()
    await until(lambda: asyncio.all_tasks() <= tasks, "the end of all tasks")
    # what lingers for a peer's last octets is given two seconds
    await until(lambda: _opened(before) == set(), f"the end of all descriptors: {_opened(before)}")
    errors = [line for line in log.getvalue().splitlines() if '"level": "error"' in line or '"exception"' in line]
    unexpected = [line for line in errors if not any(re.search(word, line) for word in rig.expected_errors)]
    assert not unexpected, "\n".join(unexpected)
    assert not complaints, complaints
    assert "canary-pw-" not in log.getvalue()


def _opened(before: set[str]) -> set[str]:
    return {entry for entry in descriptors() - before if "socket" in entry or "eventpoll" in entry or "audit" in entry}


def client_context(ca: Path | None = None, *, alpn: list[str] | None = None) -> ssl.SSLContext:
    """For clients: verifies against `ca`, or not at all."""
    context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    if ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if alpn is not None:
        context.set_alpn_protocols(alpn)
    # Python asks OpenSSL 3 to overlook a missing close_notify; these tests must see it (it has no name in 3.11.2)
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 1 << 7)
    return context


def plain(user: bytes | str, password: bytes | str, authzid: bytes | str = b"") -> bytes:
    """The initial response of AUTH PLAIN in base64."""
    parts = [part.encode() if isinstance(part, str) else part for part in (authzid, user, password)]
    return base64.b64encode(b"\0".join(parts))


def users_file(directory: Path, **passwords: str) -> dict[str, str]:
    """A users file with fast hashes; returns the section of the configuration."""
    path = directory / "users"
    path.write_text("".join(f"{user}:{ssha512(password)}\n" for user, password in passwords.items()))
    return {"file": str(path)}


class Transcript:
    """Plays lines between a client (``C:`` sends, ``S:`` receives) and a backend (``B:`` receives, ``R:`` sends).

    A line without its letter is a comment. ``S:`` and ``B:`` are exact.
    """

    def __init__(self, client: Peer, backend: Peer) -> None:
        self._client = client
        self._backend = backend

    async def play(self, text: str) -> Self:
        """Line by line, in this order."""
        for raw in text.splitlines():
            who, colon, line = raw.strip().partition(":")
            line = line.removeprefix(" ")
            match who if colon else "":
                case "C":
                    await self._client.send(line + "\r\n")
                case "S":
                    await self._client.expect(line)
                case "B":
                    await self._backend.expect(line)
                case "R":
                    await self._backend.send(line + "\r\n")
        return self
