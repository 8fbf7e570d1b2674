"""A small, honest POP3 server over a Maildir: the backend of ``popproxy demo`` and of tests.

It does what RFC 1939 asks (exclusive lock, unique-ids that never change, deletions only in UPDATE) and announces TOP,
UIDL, USER, PIPELINING, RESP-CODES and AUTH-RESP-CODE (RFC 2449, RFC 3206). Plain text only: loopback is its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from popproxy.types import Address, Secret

LINE_LIMIT = 255
"""Longest command line in octets, CRLF included (RFC 2449 section 4)."""
IDLE_SECONDS = 600.0
"""The inactivity timer (RFC 1939 section 3)."""
CAPABILITIES = ("TOP", "UIDL", "USER", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE", "IMPLEMENTATION popproxy-demo")


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the backend: the password and the Maildir (with ``new`` and ``cur``) that is the maildrop."""

    password: Secret
    maildir: Path


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a maildrop. `content` has CRLF line ends, as it counts for LIST; `uid` is the unique-id."""

    path: Path
    uid: str
    content: bytes


def canonical(content: bytes) -> bytes:
    """`content` as POP3 counts and sends it: every line ends in CRLF, the last one too."""
    lines = content.replace(b"\r\n", b"\n").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return b"".join(line + b"\r\n" for line in lines)


def read_maildrop(maildir: Path) -> list[Message]:
    """The messages of a Maildir in order of their file names. Raises OSError if one cannot be read."""
    paths = sorted((path for part in ("new", "cur") for path in (maildir / part).iterdir()), key=lambda path: path.name)
    return [Message(path, _unique_id(path), canonical(path.read_bytes())) for path in paths]


def _unique_id(path: Path) -> str:
    return hashlib.sha256(path.name.encode()).hexdigest()[:16]


def _lines(content: bytes) -> list[bytes]:
    """Lines with their CRLF; a bare CR or LF is no line end."""
    return [line + b"\r\n" for line in content.split(b"\r\n")[:-1]]


def _stuffed(lines: Iterable[bytes]) -> bytes:
    body = b"".join(b"." + line if line.startswith(b".") else line for line in lines)
    return body + b".\r\n"


class MaildirServer:
    """Serves `accounts` (by user name) until `stop`. One session at a time per maildrop."""

    def __init__(self, accounts: Mapping[str, Account], capabilities: Iterable[str] = CAPABILITIES) -> None:
        self.accounts = dict(accounts)
        self.capabilities = tuple(capabilities)
        self.locked: set[str] = set()  # users whose maildrop is open
        self.sessions = 0  # connections accepted so far
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> Address:
        """Listen; port 0 takes a free one. Returns the bound address. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=LINE_LIMIT + 1)
        bound = self._server.sockets[0].getsockname()
        return Address(bound[0], bound[1])

    async def stop(self) -> None:
        """Stop listening and abandon every session; nothing is deleted by that."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.sessions += 1
        try:
            await _Session(self, reader, writer).run()
        except (OSError, asyncio.CancelledError):
            pass  # a lost connection is a session without UPDATE; cancellation comes from stop() alone
        finally:
            self._tasks.discard(task)
            writer.close()


class _RefusedError(Exception):
    """The command is answered ``-ERR`` with this text."""


class _Session:
    """One connection: AUTHORIZATION until `messages` is set, then TRANSACTION; `run` ends it."""

    def __init__(self, server: MaildirServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer
        self.claimed: str | None = None  # argument of USER, until PASS
        self.user: str | None = None  # logged in, maildrop locked
        self.messages: list[Message] = []
        self.deleted: set[int] = set()  # indexes into messages
        self.open = True
        self._authorization: dict[str, Callable[[str], Awaitable[None]]] = {
            "USER": self._user, "PASS": self._pass, "CAPA": self._capa, "QUIT": self._quit,
        }  # fmt: skip
        self._transaction: dict[str, Callable[[str], Awaitable[None]]] = {
            "STAT": self._stat, "LIST": self._list, "UIDL": self._uidl, "RETR": self._retr, "TOP": self._top,
            "DELE": self._dele, "RSET": self._rset, "NOOP": self._noop, "CAPA": self._capa, "QUIT": self._quit,
        }  # fmt: skip

    async def run(self) -> None:
        """Serve the client until QUIT, the end of the connection or a silence of `IDLE_SECONDS`."""
        try:
            await self._say("+OK popproxy demo backend ready")
            while self.open and (line := await self._next_line()):
                await self._obey(line)
        finally:
            if self.user is not None:
                self.server.locked.discard(self.user)

    async def _next_line(self) -> bytes:
        """The next command line, or nothing if there will be none: only a line with its end is a command."""
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                line = await self.reader.readuntil(b"\n")
        except (TimeoutError, asyncio.IncompleteReadError):
            return b""
        except asyncio.LimitOverrunError:
            await self._say("-ERR line too long")
            return b""
        return line

    async def _obey(self, line: bytes) -> None:
        verb, _, argument = line.rstrip(b"\r\n").decode("utf-8", "replace").partition(" ")
        table = self._authorization if self.user is None else self._transaction
        command = table.get(verb.upper())
        try:
            if command is None:
                raise _RefusedError(
                    "not here" if verb.upper() in self._authorization | self._transaction else "unknown command"
                )
            await command(argument)
        except _RefusedError as refusal:
            await self._say(f"-ERR {refusal}")

    async def _say(self, line: str) -> None:
        await self._send(line.encode() + b"\r\n")

    async def _send(self, octets: bytes) -> None:
        self.writer.write(octets)
        await self.writer.drain()

    async def _user(self, name: str) -> None:
        if not name:
            raise _RefusedError("whose maildrop?")
        self.claimed = name
        await self._say("+OK password?")  # the same for every name: who exists is nobody's business

    async def _pass(self, password: str) -> None:
        name, self.claimed = self.claimed, None
        if name is None:
            raise _RefusedError("USER first")
        account = self.server.accounts.get(name)
        if account is None or account.password != Secret(password):
            raise _RefusedError("[AUTH] wrong user name or password")
        if name in self.server.locked:
            raise _RefusedError("[IN-USE] another session has this maildrop")
        self.messages = read_maildrop(account.maildir)
        self.server.locked.add(name)
        self.user = name
        await self._say(f"+OK {len(self.messages)} messages")

    async def _capa(self, _argument: str) -> None:
        lines = ("+OK capabilities", *self.server.capabilities, ".")
        await self._send("".join(f"{line}\r\n" for line in lines).encode())

    async def _quit(self, _argument: str) -> None:
        self.open = False
        failed = sum(not _removed(self.messages[index].path) for index in self.deleted)
        if failed:
            raise _RefusedError(f"[SYS/TEMP] {failed} deleted messages not removed")
        await self._say(f"+OK {len(self.deleted)} messages deleted")

    def _remaining(self) -> list[tuple[int, Message]]:
        return [(index + 1, message) for index, message in enumerate(self.messages) if index not in self.deleted]

    def _message(self, argument: str) -> tuple[int, Message]:
        if not (argument.isascii() and argument.isdigit()):
            raise _RefusedError("which message?")
        index = int(argument) - 1
        if not 0 <= index < len(self.messages):
            raise _RefusedError("no such message")
        if index in self.deleted:
            raise _RefusedError("message is deleted")
        return index + 1, self.messages[index]

    async def _stat(self, _argument: str) -> None:
        left = [message for _, message in self._remaining()]
        await self._say(f"+OK {len(left)} {sum(len(message.content) for message in left)}")

    async def _list(self, argument: str) -> None:
        await self._listing(argument, lambda message: str(len(message.content)))

    async def _uidl(self, argument: str) -> None:
        await self._listing(argument, lambda message: message.uid)

    async def _listing(self, argument: str, value: Callable[[Message], str]) -> None:
        if argument:
            number, message = self._message(argument)
            await self._say(f"+OK {number} {value(message)}")
            return
        lines = [f"{number} {value(message)}" for number, message in self._remaining()]
        await self._send("".join(f"{line}\r\n" for line in ("+OK", *lines, ".")).encode())

    async def _retr(self, argument: str) -> None:
        _, message = self._message(argument)
        await self._say(f"+OK {len(message.content)} octets")
        await self._send(_stuffed(_lines(message.content)))

    async def _top(self, argument: str) -> None:
        which, _, count = argument.partition(" ")
        _, message = self._message(which)
        if not (count.isascii() and count.isdigit()):
            raise _RefusedError("how many lines?")
        header, separator, body = message.content.partition(b"\r\n\r\n")
        lines = _lines(body)[: int(count)]
        await self._say("+OK")
        await self._send(_stuffed([*_lines(header + separator), *lines]))

    async def _dele(self, argument: str) -> None:
        number, _ = self._message(argument)
        self.deleted.add(number - 1)
        await self._say(f"+OK message {number} deleted")

    async def _rset(self, _argument: str) -> None:
        self.deleted.clear()
        await self._say(f"+OK {len(self.messages)} messages")

    async def _noop(self, _argument: str) -> None:
        await self._say("+OK")


def _removed(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.unlink()
        return True
    return False
