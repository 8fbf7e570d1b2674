"""POP3 servers with faults, on real sockets, for ``popproxy check`` to find."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from popproxy.demo.certificates import Issued

CAPA = ("TOP", "UIDL", "PIPELINING")


def tls_context(directory: Path, issued: Issued, chain: tuple[Issued, ...] = ()) -> ssl.SSLContext:
    """A server's context for the certificate `issued`."""
    pem = directory / f"backend-{id(issued)}.pem"
    pem.write_bytes(issued.key_pem() + b"".join(one.certificate_pem() for one in (issued, *chain)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


@contextlib.asynccontextmanager
async def backend(
    *,
    greeting: bytes = b"+OK ready\r\n",
    capa: tuple[str, ...] | None = CAPA,
    stls: ssl.SSLContext | None = None,
    implicit: ssl.SSLContext | None = None,
    silent: bool = False,
) -> AsyncIterator[str]:
    """A server that answers CAPA (-ERR if `capa` is None), STLS (given a context) and QUIT; yields ``host:port``."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if silent:
            return
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
            writer.write(greeting)
            while line := (await reader.readline()).strip().upper():
                if line == b"CAPA" and capa is not None:
                    writer.write("".join(f"{text}\r\n" for text in ("+OK", *capa, ".")).encode())
                elif line == b"STLS" and stls is not None:
                    writer.write(b"+OK\r\n")
                    await writer.drain()
                    await writer.start_tls(stls)
                elif line == b"QUIT":
                    writer.write(b"+OK\r\n")
                    break
                else:
                    writer.write(b"-ERR what?\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=implicit)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
