"""TLS on a channel, on memory buffers: we see what is read before TLS takes it, and what TLS makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
from collections.abc import Callable
from typing import cast

from popproxy.errors import ChannelClosed, RemoteProtocolError, TlsFailed
from popproxy.net.layer import Carrier
from popproxy.types import TlsInfo
from popproxy.wire import clienthello

ContextChooser = Callable[[clienthello.ClientHello], ssl.SSLContext | None]
"""Certificate and settings for a ClientHello; None refuses its application protocols (ALPN)."""
_RECORD = 16384  # octets of plain text in a TLS record, at most

_VERSIONS = {"TLSv1": "TLS 1.0", "TLSv1.1": "TLS 1.1", "TLSv1.2": "TLS 1.2", "TLSv1.3": "TLS 1.3"}


class TlsLayer:
    """One TLS session; a server reads the ClientHello itself first."""

    __slots__ = ("_choose", "_hello", "_incoming", "_outgoing", "_server_name", "_session", "_waiter")

    def __init__(self) -> None:
        self._waiter: asyncio.Future[TlsInfo] | None = None  # while the handshake goes on
        self._choose: ContextChooser | None = None
        self._hello = b""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._session: ssl.SSLObject | None = None
        self._server_name: str | None = None

    def accept(self, choose: ContextChooser) -> None:
        """Be the server."""
        self._choose = choose

    def connect(self, context: ssl.SSLContext, server_name: str) -> None:
        """Be the client; the context verifies the server."""
        self._wrap(context, server_side=False, server_name=server_name)

    def begin(self, carrier: Carrier, already: bytes, waiter: asyncio.Future[TlsInfo]) -> None:
        """Start the handshake that `waiter` waits for; `already` is what has been read of it."""
        self._waiter = waiter
        self._take(carrier, memoryview(already), start=True)

    @property
    def context(self) -> ssl.SSLContext | None:
        """What TLS runs with, None before the ClientHello has come."""
        return None if self._session is None else self._session.context

    @property
    def peer_certificate(self) -> bytes | None:
        """The certificate that the peer has shown, in DER, verified or not; None before, and of most clients."""
        return None if self._session is None else self._session.getpeercert(True)

    # ---- Layer ----

    @property
    def encrypted(self) -> bool:
        """See Layer."""
        return True

    @property
    def handshaking(self) -> bool:
        """See Layer."""
        return self._waiter is not None

    def encode(self, data: bytes | bytearray | memoryview) -> bytes:
        """See Layer."""
        if self._waiter is not None:
            return b""  # there is nobody yet to say anything to
        assert self._session is not None
        try:
            self._session.write(data)
        except ssl.SSLError:
            raise RemoteProtocolError("TLS takes nothing more", "tls") from None
        return self._outgoing.read()

    def received(self, carrier: Carrier, data: memoryview) -> None:
        """See Layer."""
        self._take(carrier, data)

    def farewell(self) -> bytes:
        """See Layer: close_notify."""
        if self._session is None or self._waiter is not None:
            return b""
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._session.unwrap()
        return self._outgoing.read()

    def ended(self, reason: str) -> None:
        """See Layer."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(ChannelClosed("the connection ended during the TLS handshake", reason))

    # ---- pieces ----

    def _wrap(self, context: ssl.SSLContext, *, server_side: bool, server_name: str | None) -> None:
        self._server_name = server_name
        self._session = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side,
            server_hostname=None if server_side else server_name,
        )  # fmt: skip

    def _take(self, carrier: Carrier, data: memoryview, *, start: bool = False) -> None:
        try:
            if self._waiter is not None:
                self._continue_handshake(carrier, data, start=start)
            else:
                if len(data):
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
                self._decrypt(carrier)
        except (ssl.SSLError, RemoteProtocolError) as error:
            self._failed(carrier, error)

    def _continue_handshake(self, carrier: Carrier, data: memoryview, *, start: bool) -> None:
        if not len(data) and not start:
            raise RemoteProtocolError("closed during the TLS handshake", "eof")
        if self._session is None:
            self._hello += bytes(data)
            hello = clienthello.parse(self._hello) if self._hello else None
            if hello is None:
                return
            assert self._choose is not None
            context = self._choose(hello)
            if context is None:
                carrier.send_raw(clienthello.NO_APPLICATION_PROTOCOL)
                raise RemoteProtocolError("the client asks for another application protocol", "alpn")
            self._wrap(context, server_side=True, server_name=hello.server_name)
            self._incoming.write(self._hello)
            self._hello = b""
        elif len(data):
            self._incoming.write(data)
        assert self._session is not None
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            carrier.send_raw(self._outgoing.read())
            return
        waiter, self._waiter, self._choose = self._waiter, None, None
        carrier.send_raw(self._outgoing.read())
        if waiter is not None and not waiter.done():
            waiter.set_result(self._info())
        # what came right behind the handshake is decrypted once the task that awaited it has run
        carrier.reactor.loop.call_soon(self._decrypt_early, carrier)

    @property
    def version(self) -> str:
        """As people write it: ``TLS 1.2``."""
        version = self._session.version() if self._session is not None else None
        return "none" if version is None else _VERSIONS.get(version, version)

    def _info(self) -> TlsInfo:
        assert self._session is not None
        cipher = self._session.cipher()
        return TlsInfo(self._session.version() or "unknown", cipher[0] if cipher else "unknown", self._server_name)

    def _decrypt_early(self, carrier: Carrier) -> None:
        if carrier.layer is not self:
            return
        try:
            self._decrypt(carrier)
        except ssl.SSLError as error:
            self._failed(carrier, error)
        except Exception:
            carrier.reactor.handler_failed(carrier)

    def _decrypt(self, carrier: Carrier) -> None:
        session, plain = self._session, carrier.reactor.plain
        assert session is not None
        filled = 0
        ended = False
        view = memoryview(plain)
        while True:
            try:
                count = cast("int", session.read(len(plain) - filled, view[filled:]))
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                ended = True
                break
            if not count:
                ended = True
                break
            filled += count
            if len(plain) - filled < _RECORD:
                carrier.receiver.data_received(plain, filled)
                filled = 0
                if carrier.gone:
                    return
        if self._outgoing.pending:
            carrier.send_raw(self._outgoing.read())
        if filled:
            carrier.receiver.data_received(plain, filled)
        if ended:
            carrier.received_eof()

    def _failed(self, carrier: Carrier, error: ssl.SSLError | RemoteProtocolError) -> None:
        waiter, self._waiter = self._waiter, None
        with contextlib.suppress(ssl.SSLError):
            carrier.send_raw(self._outgoing.read())  # the alert says why
        if waiter is None:
            carrier.lose(OSError(errno.ECONNRESET, "TLS"), "tls")
            return
        carrier.layer = None  # no close_notify on a session that never was
        carrier.close(linger=True)
        if not waiter.done():
            waiter.set_exception(_explain(error))


def _explain(error: ssl.SSLError | RemoteProtocolError) -> TlsFailed:
    """The library's words with one of our short reasons."""
    if isinstance(error, RemoteProtocolError):
        return TlsFailed(str(error), error.reason)
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsFailed(f"certificate refused: {error.verify_message}", "certificate")
    return TlsFailed((error.reason or "TLS failed").replace("_", " ").lower(), "tls")
