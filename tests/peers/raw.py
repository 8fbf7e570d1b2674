"""A POP3 client that sees every octet: for what real mail clients would hide."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Self

from tests.peers.certs import CertificateFiles
from tests.peers.process import PATIENCE


class RawClient:
    """An asynchronous context manager around one connection. Nothing is read or sent unasked, not even the greeting."""

    def __init__(
        self,
        port: int,
        *,
        ca: Path | None = None,
        host: str = "127.0.0.1",
        seconds: float = PATIENCE,
        certificate: CertificateFiles | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._ca = ca
        self._certificate = certificate  # the client's own
        self._seconds = seconds
        self._received = bytearray()

    async def __aenter__(self) -> Self:
        context = None if self._ca is None else ssl.create_default_context(cafile=str(self._ca))
        if context is not None and self._certificate is not None:
            context.load_cert_chain(self._certificate.cert, self._certificate.key)
        self._reader, self.writer = await asyncio.open_connection(self._host, self._port, ssl=context)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (OSError, ssl.SSLError):
            return

    async def send(self, data: bytes) -> None:
        """Any octets."""
        self.writer.write(data)
        await self.writer.drain()

    async def line(self) -> bytes:
        """One line with its CRLF. EOFError when the connection ends first."""
        return await self._until(b"\r\n", 0)

    async def body(self) -> bytes:
        """The rest of a multi-line reply after its status line, as it came, with its termination octets."""
        while len(self._received) < 3:
            await self._more()
        if self._received.startswith(b".\r\n"):
            return self._take(3)
        return await self._until(b"\r\n.\r\n", 0)

    async def command(self, line: str | bytes) -> bytes:
        """Sends a command and returns the status line of its reply, without CRLF."""
        await self.send((line.encode() if isinstance(line, str) else line) + b"\r\n")
        return (await self.line()).removesuffix(b"\r\n")

    async def multiline(self, line: str) -> bytes:
        """Sends a command and returns the body of its reply; AssertionError if it is refused."""
        status = await self.command(line)
        assert status.startswith(b"+OK"), status
        return await self.body()

    async def login(self, user: str, password: str) -> bytes:
        """Reads the greeting, logs in with USER and PASS; returns the reply to PASS."""
        assert (await self.line()).startswith(b"+OK")
        assert (await self.command(f"USER {user}")).startswith(b"+OK")
        return await self.command(f"PASS {password}")

    async def start_tls(self, ca: Path) -> None:
        """After the reply to STLS."""
        context = ssl.create_default_context(cafile=str(ca))
        await self.writer.start_tls(context, server_hostname=self._host)

    async def rest(self) -> bytes:
        """Everything until the other side ends the connection, in whatever way."""
        try:
            while True:
                await self._more()
        except (EOFError, ConnectionError, ssl.SSLError):
            return self._take(len(self._received))

    async def _until(self, end: bytes, start: int) -> bytes:
        while (found := self._received.find(end, start)) < 0:
            start = max(0, len(self._received) - len(end) + 1)
            await self._more()
        return self._take(found + len(end))

    async def _more(self) -> None:
        async with asyncio.timeout(self._seconds):
            data = await self._reader.read(1 << 18)
        if not data:
            raise EOFError(bytes(self._received[-200:]))
        self._received += data

    def _take(self, count: int) -> bytes:
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken
