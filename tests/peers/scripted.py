"""A POP3 server that does exactly what a test tells it: odd greetings, adversarial bodies and chunks, deaths."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias

from tests.peers.certs import CertificateFiles
from tests.peers.messages import multiline

Chunks: TypeAlias = Callable[[bytes], Iterable[bytes]]
"""Cuts a reply into the pieces that are sent one by one."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Sends `reply` and ends the connection: in order, or by a TCP reset."""

    reply: bytes = b""
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Slow:
    """Waits, then sends `reply`, or what it would have sent anyway."""

    seconds: float
    reply: bytes | None = None


@dataclass(frozen=True, slots=True)
class Hang:
    """Sends `reply`, and never again anything, until the other side ends the connection."""

    reply: bytes = b""


@dataclass(eq=False, slots=True)
class BackendSession:
    """One connection: what was received, and how it ended."""

    lines: list[bytes] = field(default_factory=list)
    ended: Literal["", "eof", "reset", "us"] = ""
    """Who ended it, and how; empty while it lasts."""
    ahead: int = 0
    """How many commands arrived before the reply to the one before them was sent."""
    user: str = ""
    deleted: set[int] = field(default_factory=set)
    updated: bool = False
    """QUIT was received after the login."""
    logged_in: bool = False

    @property
    def verbs(self) -> list[str]:
        """The commands, in capitals, without their arguments."""
        return [line.split(b" ")[0].decode("latin-1").upper() for line in self.lines]


Reaction: TypeAlias = bytes | Cut | Slow | Hang | Callable[[BackendSession, bytes], Awaitable[bytes]]

DEFAULT_CAPABILITIES = ("TOP", "UIDL", "USER", "PIPELINING", "RESP-CODES")


class ScriptedBackend:
    """An asynchronous context manager that listens on a free port of 127.0.0.1.

    `maildrop` are messages, any octets. `capa` None: CAPA is refused. `users` None: every password is right.
    `on_command` takes precedence over what a server would do; its keys are verbs or lines, in capitals (``RETR 3``).
    """

    def __init__(
        self,
        maildrop: Sequence[bytes] = (),
        *,
        greeting: Reaction = b"+OK ready\r\n",
        capa: Sequence[str] | None = DEFAULT_CAPABILITIES,
        chunks: Chunks | None = None,
        on_command: Mapping[str, Reaction] | None = None,
        users: Mapping[str, str] | None = None,
        tls: Literal["none", "stls", "implicit"] = "none",
        certificate: CertificateFiles | None = None,
        port: int = 0,
    ) -> None:
        self.maildrop = list(maildrop)
        self.sessions: list[BackendSession] = []
        self.greeting = greeting
        self.capa = capa
        self.chunks = chunks
        self.on_command: dict[str, Reaction] = dict(on_command or {})
        self.users = users
        self.port = port
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate.cert, certificate.key)
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """As it stands in the configuration of a pool."""
        return f"127.0.0.1:{self.port}"

    @property
    def lines(self) -> list[bytes]:
        """Every line received, of all sessions, without its CRLF."""
        return [line for session in self.sessions for line in session.lines]

    async def __aenter__(self) -> Self:
        context = self._context if self._tls == "implicit" else None
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=context)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def ended(self, index: int = -1, seconds: float = 30) -> BackendSession:
        """Waits until a session is over, the last one if none is named."""
        async with asyncio.timeout(seconds):
            while not self.sessions or not self.sessions[index].ended:
                await asyncio.sleep(0.01)
        return self.sessions[index]

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = BackendSession()
        self.sessions.append(session)
        connection = _Connection(self, session, reader, writer)
        try:
            await connection.serve()
        except (ConnectionError, ssl.SSLError):
            session.ended = session.ended or "reset"
        finally:
            session.ended = session.ended or "us"
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    def context(self) -> ssl.SSLContext | None:
        """For STLS."""
        return self._context if self._tls == "stls" else None


@contextlib.contextmanager
def in_thread(backend: ScriptedBackend) -> Iterator[ScriptedBackend]:
    """Serves `backend` from an event loop in a thread, for tests whose client blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="scripted backend", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(backend.__aenter__(), loop).result(60)
        yield backend
        asyncio.run_coroutine_threadsafe(backend.__aexit__(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


class _EndedError(Exception):
    """This connection is over."""


class _Connection:
    def __init__(
        self,
        backend: ScriptedBackend,
        session: BackendSession,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._backend = backend
        self._session = session
        self._reader = reader
        self._writer = writer
        self._received = b""

    async def serve(self) -> None:
        with contextlib.suppress(_EndedError):
            await self._react(self._backend.greeting, b"")
            while (line := await self._line()) is not None:
                self._session.lines.append(line)
                self._session.ahead += b"\n" in self._received
                text = line.decode("latin-1")
                verb = text.split(" ")[0].upper()
                reaction = self._backend.on_command.get(text.upper(), self._backend.on_command.get(verb))
                await self._react(self._answer(verb, text) if reaction is None else reaction, line)
                if verb == "STLS" and reaction is None and self._backend.context():
                    await self._writer.start_tls(self._backend.context())  # type: ignore[arg-type]
                if verb == "QUIT":
                    return

    async def _line(self) -> bytes | None:
        while b"\r\n" not in self._received:
            data = await self._reader.read(65536)
            if not data:
                self._session.ended = "eof"
                return None
            self._received += data
        line, self._received = self._received.split(b"\r\n", 1)
        return line

    async def _react(self, reaction: Reaction, line: bytes) -> None:
        match reaction:
            case bytes():
                await self._send(reaction)
            case Cut(reply, reset):
                await self._send(reply)
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self._writer.transport.abort()
                raise _EndedError
            case Slow(seconds, reply):
                await asyncio.sleep(seconds)
                text = line.decode("latin-1")
                await self._send(self._answer(text.split(" ")[0].upper(), text) if reply is None else reply)
            case Hang(reply):
                await self._send(reply)
                while await self._reader.read(65536):
                    pass
                self._session.ended = "eof"
                raise _EndedError
            case _:
                await self._send(await reaction(self._session, line))

    async def _send(self, data: bytes) -> None:
        pieces = (data,) if self._backend.chunks is None else self._backend.chunks(data)
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            if self._backend.chunks is not None:
                await asyncio.sleep(0)

    def _answer(self, verb: str, text: str) -> bytes:
        """What a server does that nobody has told otherwise."""
        argument = text[len(verb) + 1 :]
        if self._session.logged_in:
            return self._in_transaction(verb, argument)
        match verb:
            case "CAPA":
                return self._capabilities()
            case "STLS" if self._backend.context():
                return b"+OK begin\r\n"
            case "USER":
                self._session.user = argument
                return b"+OK\r\n"
            case "PASS":
                users = self._backend.users
                if users is not None and users.get(self._session.user) != argument:
                    return b"-ERR [AUTH] no\r\n"
                self._session.logged_in = True
                return b"+OK welcome\r\n"
            case "QUIT":
                return b"+OK bye\r\n"
        return b"-ERR what?\r\n"

    def _in_transaction(self, verb: str, argument: str) -> bytes:
        session = self._session
        present = {
            number: message for number, message in enumerate(self._backend.maildrop, 1) if number not in session.deleted
        }
        words = argument.split()
        number = int(words[0]) if words and words[0].isdigit() else 0
        match verb:
            case "CAPA":
                return self._capabilities()
            case "NOOP":
                return b"+OK\r\n"
            case "STAT":
                return b"+OK %d %d\r\n" % (len(present), sum(map(len, present.values())))
            case "RSET":
                session.deleted.clear()
                return b"+OK\r\n"
            case "QUIT":
                session.updated = True
                return b"+OK bye\r\n"
            case "LIST" if not words:
                return _listing(b"%d %d\r\n" % (index, len(message)) for index, message in present.items())
            case "UIDL" if not words:
                return _listing(b"%d uid-%d\r\n" % (index, index) for index in present)
        if number not in present:
            return b"-ERR no such message\r\n"
        match verb:
            case "LIST":
                return b"+OK %d %d\r\n" % (number, len(present[number]))
            case "UIDL":
                return b"+OK %d uid-%d\r\n" % (number, number)
            case "RETR":
                return b"+OK %d octets\r\n" % len(present[number]) + multiline(present[number])
            case "TOP":
                return b"+OK\r\n" + multiline(_top(present[number], int(words[1])))
            case "DELE":
                session.deleted.add(number)
                return b"+OK\r\n"
        return b"-ERR what?\r\n"

    def _capabilities(self) -> bytes:
        if self._backend.capa is None:
            return b"-ERR what?\r\n"
        extra = ("STLS",) if self._backend.context() and self._writer.get_extra_info("ssl_object") is None else ()
        return _listing(name.encode() + b"\r\n" for name in (*self._backend.capa, *extra))


def _listing(lines: Iterable[bytes]) -> bytes:
    return b"+OK\r\n" + b"".join(lines) + b".\r\n"


def _top(message: bytes, lines: int) -> bytes:
    header, separator, body = message.partition(b"\r\n\r\n")
    return header + separator + b"".join(line + b"\r\n" for line in body.split(b"\r\n")[:lines])
