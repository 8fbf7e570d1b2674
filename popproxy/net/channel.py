"""The one transport that sessions see: octets to and from a peer, in the clear, under TLS or in a GSS layer.

A channel calls its receiver from the reactor and never starts a task. It owns its buffers: what has been read and not
been handed on is visible, so that STLS, a PROXY header and a ClientHello in one segment can be told apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import socket
import ssl
import struct
import termios
from array import array
from collections.abc import Callable
from typing import Protocol, cast

from popproxy.errors import ChannelClosed, LocalProtocolError, RemoteProtocolError, TlsFailed
from popproxy.net.gss_layer import GssLayer
from popproxy.net.reactor import BROKEN, READABLE, WRITABLE, Reactor
from popproxy.types import TlsInfo
from popproxy.wire import clienthello

LINGER_SECONDS = 2.0
FLUSH_SECONDS = 30.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close sends RST
_GONE = frozenset(
    {
        errno.ECONNRESET,
        errno.EPIPE,
        errno.ETIMEDOUT,
        errno.ECONNABORTED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENOTCONN,
    }
)


class Receiver(Protocol):
    """What a channel calls. After `connection_lost` it calls nothing any more.

    Whatever a receiver raises is a bug of ours: the connection ends, and it is told so by
    `connection_lost("internal")`.
    """

    def data_received(self, buffer: bytearray, end: int) -> None:
        """``buffer[:end]`` has arrived; the buffer is reused when this returns."""
        ...

    def eof_received(self) -> None:
        """The peer will send no more. The channel still writes."""
        ...

    def drained(self) -> None:
        """All that was written is in the socket, after a time when it was not."""
        ...

    def connection_lost(self, reason: str) -> None:
        """The connection is gone without our doing. `reason`: a short word."""
        ...


class _Nobody:
    """Discards everything: for a channel whose session has ended."""

    def data_received(self, buffer: bytearray, end: int) -> None: ...
    def eof_received(self) -> None: ...
    def drained(self) -> None: ...
    def connection_lost(self, reason: str) -> None: ...


NOBODY = _Nobody()
ContextChooser = Callable[[clienthello.ClientHello], ssl.SSLContext | None]
"""Certificate and settings for a ClientHello; None refuses its application protocols (ALPN)."""


class _Tls:
    """TLS on memory buffers. During the handshake `waiter` is set; a server reads the ClientHello itself first."""

    __slots__ = ("choose", "hello", "incoming", "outgoing", "server_name", "session", "waiter")

    def __init__(self, waiter: asyncio.Future[TlsInfo]) -> None:
        self.waiter: asyncio.Future[TlsInfo] | None = waiter
        self.choose: ContextChooser | None = None
        self.hello = b""
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.session: ssl.SSLObject | None = None
        self.server_name: str | None = None

    def wrap(self, context: ssl.SSLContext, *, server_side: bool, server_name: str | None) -> None:
        self.server_name = server_name
        self.session = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_side, server_hostname=None if server_side else server_name
        )

    def info(self) -> TlsInfo:
        assert self.session is not None
        cipher = self.session.cipher()
        return TlsInfo(self.session.version() or "unknown", cipher[0] if cipher else "unknown", self.server_name)


class Channel:
    """One connected socket. `receiver` may be exchanged at any time."""

    __slots__ = (
        "_closing",
        "_eof",
        "_events",
        "_fd",
        "_gss",
        "_lingering",
        "_out",
        "_reactor",
        "_sock",
        "_tls",
        "reading",
        "receiver",
    )

    def __init__(self, reactor: Reactor, sock: socket.socket, receiver: Receiver = NOBODY) -> None:
        self.receiver = receiver
        self._reactor = reactor
        self._sock: socket.socket | None = sock
        self._fd = sock.fileno()
        self._out: bytearray | None = None  # what the socket has not taken yet
        self._tls: _Tls | None = None
        self._gss: GssLayer | None = None  # never together with TLS
        self._events = READABLE
        self.reading = True
        self._eof = False
        self._closing = False  # close as soon as _out is empty
        self._lingering = False  # and wait for the peer's FIN
        reactor.watch(self._fd, self, READABLE)

    # ---- state ----

    @property
    def pending(self) -> int:
        """Octets written and not yet taken by the socket."""
        return len(self._out) if self._out else 0

    @property
    def has_unread(self) -> bool:
        """True if the peer has sent something that nobody has read."""
        if self._sock is None:
            return False
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    @property
    def unacknowledged(self) -> int:
        """Octets written that the peer's system has not confirmed: they get fewer while a slow peer reads."""
        if self._sock is None:
            return 0
        queued = array("i", [0])
        fcntl.ioctl(self._fd, termios.TIOCOUTQ, queued)
        return self.pending + queued[0]

    @property
    def closed(self) -> bool:
        """True once nothing can be written any more."""
        return self._sock is None or self._closing

    @property
    def encrypted(self) -> bool:
        """True under TLS and in a GSS layer with confidentiality."""
        return self._tls is not None or (self._gss is not None and self._gss.conf)

    @property
    def handshaking(self) -> bool:
        """True while TLS is being agreed on; what is written then is dropped."""
        return self._tls is not None and self._tls.waiter is not None

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """What TLS runs with, None without TLS."""
        return None if self._tls is None or self._tls.session is None else self._tls.session.context

    # ---- writing ----

    def write(self, data: bytes | bytearray | memoryview) -> bool:
        """Send `data`. Returns True if the socket has taken all that was ever written.

        False means: stop producing until `drained`. On a closed channel data is dropped.
        """
        sock = self._sock
        if sock is None or self._closing:
            return True
        tls = self._tls
        if tls is not None:
            if tls.waiter is not None:
                return True  # during the handshake there is nobody yet to say anything to
            assert tls.session is not None
            try:
                tls.session.write(data)
            except ssl.SSLError:
                self._lose(OSError(errno.ECONNRESET, "TLS"), "tls")
                return True
            data = tls.outgoing.read()
        elif self._gss is not None:
            try:
                data = self._gss.encode(data)
            except RemoteProtocolError as error:
                self._lose(OSError(errno.ECONNRESET, "GSS"), error.reason)
                return True
        return self._send(sock, data)

    def _send(self, sock: socket.socket, data: bytes | bytearray | memoryview) -> bool:
        if self._out:
            self._out += data
            return False
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(error)
            return True
        if sent == len(data):
            return True
        self._out = bytearray(memoryview(data)[sent:])
        self._want(self._events | WRITABLE)
        return False

    def _flush(self) -> None:
        sock, out = self._sock, self._out
        if sock is None or not out:
            return
        try:
            sent = sock.send(out)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
            return
        if sent < len(out):
            del out[:sent]
            return
        self._out = None
        self._want(self._events & ~WRITABLE)
        if self._closing:
            self._finish_closing()
        else:
            self.receiver.drained()

    # ---- reading ----

    def pause(self) -> None:
        """Read no more: TCP's own flow control reaches the peer."""
        if self.reading:
            self.reading = False
            self._want(self._events & ~READABLE)

    def resume(self) -> None:
        """Read again."""
        if not self.reading:
            self.reading = True
            if not self._eof:
                self._want(self._events | READABLE)

    def ready(self, events: int) -> None:
        """From the reactor."""
        if events & WRITABLE and self._out:
            self._flush()
        if events & READABLE and self.reading and self._sock is not None:
            self._read()
        elif events & BROKEN and self._sock is not None:
            self._lose(
                OSError(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNRESET, "hung up")
            )

    def failed(self) -> None:
        """From the reactor: a handler has raised, so nobody knows what state this connection is in."""
        self._lose(OSError(errno.ECONNABORTED, "internal"), "internal")

    def call_soon(self, handler: Callable[[], None]) -> None:
        """Call `handler` in the loop's next turn; if it raises, this connection ends."""
        self._reactor.loop.call_soon(self._guarded, handler)

    def _guarded(self, handler: Callable[[], None]) -> None:
        try:
            handler()
        except Exception:
            self._reactor.handler_failed(self)

    def _read(self) -> None:
        assert self._sock is not None
        buffer = self._reactor.buffer
        try:
            count = self._sock.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
            return
        if self._tls is not None:
            self._tls_received(self._tls, memoryview(buffer)[:count])
        elif self._gss is not None and count:
            self._gss_received(self._gss, memoryview(buffer)[:count])
        elif count:
            self.receiver.data_received(buffer, count)
        else:
            self._received_eof()

    def _received_eof(self) -> None:
        if self._eof or self._sock is None:
            return
        self._eof = True
        self._want(self._events & ~READABLE)
        if self._closing or self.receiver is NOBODY:
            if not self._out:  # else the peer still reads, perhaps: it gets the rest first
                self._destroy()
        else:
            self.receiver.eof_received()

    # ---- TLS ----

    async def accept_tls(self, choose: ContextChooser, already: bytes = b"") -> TlsInfo:
        """Server side handshake; `already` is what has been read of it. Raises TlsFailed, ChannelClosed."""
        tls = self._begin_tls()
        tls.choose = choose
        return await self._handshake(tls, already)

    async def connect_tls(self, context: ssl.SSLContext, server_name: str) -> TlsInfo:
        """Client side handshake; the context verifies the peer. Raises TlsFailed, ChannelClosed."""
        tls = self._begin_tls()
        tls.wrap(context, server_side=False, server_name=server_name)
        return await self._handshake(tls, b"")

    def _begin_tls(self) -> _Tls:
        if self._sock is None or self._eof:
            raise ChannelClosed("the connection is gone", "eof")
        if self._gss is not None:
            raise LocalProtocolError("no TLS inside a GSS layer")
        return _Tls(self._reactor.loop.create_future())

    async def _handshake(self, tls: _Tls, already: bytes) -> TlsInfo:
        waiter = tls.waiter
        assert waiter is not None
        self._tls = tls
        self._tls_received(tls, memoryview(already), start=True)
        self.resume()
        try:
            return await waiter
        finally:
            del waiter  # an exception's traceback holds this frame, and the future holds the exception

    def _tls_received(self, tls: _Tls, data: memoryview, *, start: bool = False) -> None:
        try:
            if tls.waiter is not None:
                self._continue_handshake(tls, data, start=start)
            else:
                if len(data):
                    tls.incoming.write(data)
                else:
                    tls.incoming.write_eof()
                self._decrypt(tls)
        except (ssl.SSLError, RemoteProtocolError) as error:
            self._tls_failed(tls, error)

    def _continue_handshake(self, tls: _Tls, data: memoryview, *, start: bool) -> None:
        if not len(data) and not start:
            raise RemoteProtocolError("closed during the TLS handshake", "eof")
        if tls.session is None:
            tls.hello += bytes(data)
            hello = clienthello.parse(tls.hello) if tls.hello else None
            if hello is None:
                return
            assert tls.choose is not None
            context = tls.choose(hello)
            if context is None:
                self._raw_send(clienthello.NO_APPLICATION_PROTOCOL)
                raise RemoteProtocolError("the client asks for another application protocol", "alpn")
            tls.wrap(context, server_side=True, server_name=hello.server_name)
            tls.incoming.write(tls.hello)
            tls.hello = b""
        elif len(data):
            tls.incoming.write(data)
        assert tls.session is not None
        try:
            tls.session.do_handshake()
        except ssl.SSLWantReadError:
            self._raw_send(tls.outgoing.read())
            return
        waiter, tls.waiter, tls.choose = tls.waiter, None, None
        self._raw_send(tls.outgoing.read())
        if waiter is not None and not waiter.done():
            waiter.set_result(tls.info())
        # what came right behind the handshake is decrypted once the task that awaited it has run
        self._reactor.loop.call_soon(self._decrypt_early, tls)

    def _decrypt_early(self, tls: _Tls) -> None:
        if self._tls is tls:
            try:
                self._decrypt(tls)
            except ssl.SSLError as error:
                self._tls_failed(tls, error)
            except Exception:
                self._reactor.handler_failed(self)

    def _decrypt(self, tls: _Tls) -> None:
        session, plain = tls.session, self._reactor.plain
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
            if len(plain) - filled < 16384:
                self.receiver.data_received(plain, filled)
                filled = 0
                if self._sock is None:
                    return
        if tls.outgoing.pending:
            self._raw_send(tls.outgoing.read())
        if filled:
            self.receiver.data_received(plain, filled)
        if ended:
            self._received_eof()

    def _tls_failed(self, tls: _Tls, error: ssl.SSLError | RemoteProtocolError) -> None:
        waiter, tls.waiter = tls.waiter, None
        with contextlib.suppress(ssl.SSLError):
            self._raw_send(tls.outgoing.read())  # the alert says why
        if waiter is None:
            self._lose(OSError(errno.ECONNRESET, "TLS"), "tls")
            return
        self._tls = None  # no close_notify on a session that never was
        self.close(linger=True)
        if not waiter.done():
            waiter.set_exception(_explain(error))

    def _raw_send(self, data: bytes) -> None:
        if data and self._sock is not None:
            self._send(self._sock, data)

    # ---- GSS layers ----

    def start_gss(self, layer: GssLayer, already: bytes = b"") -> bytes:
        """Every octet from here on, both ways, is in `layer`; what was written before goes out as it is.

        Call it right after the +OK of AUTH was written. The client's side of the layer begins earlier, behind its last
        response (RFC 4422 section 3.7), so `already`, what has been read behind that, belongs to the layer: its
        plaintext is returned. Raises RemoteProtocolError (reason ``gss_layer``) if it does not, for a command sent in
        the clear must not be executed inside the layer; then abort.
        """
        if self._tls is not None or self._gss is not None:
            raise LocalProtocolError("one layer is enough")
        plaintext = b"".join(layer.decode(already))
        self._gss = layer
        return plaintext

    def _gss_received(self, layer: GssLayer, data: memoryview) -> None:
        try:
            plaintexts = layer.decode(data)
        except RemoteProtocolError as error:
            self._lose(OSError(errno.ECONNRESET, "GSS"), error.reason)
            return
        if plaintexts:
            plain = bytearray().join(plaintexts)
            self.receiver.data_received(plain, len(plain))

    # ---- ending ----

    def close(self, *, linger: bool = False, notify: bool = True) -> None:
        """Send what is pending, say good-bye (FIN; close_notify under TLS), close. The receiver hears no more.

        `notify` False leaves the close_notify out, so that a TLS client takes the end for what it is: a cut.
        `linger`: the peer may still be sending; wait for its end a little, so that our last words are not lost to a
        RST.
        """
        if self._sock is None or self._closing:
            return
        self.receiver = NOBODY
        if notify and self._tls is not None and self._tls.session is not None and self._tls.waiter is None:
            with contextlib.suppress(ssl.SSLError, ValueError):
                self._tls.session.unwrap()
            self._raw_send(self._tls.outgoing.read())
        self._gss = None  # nothing more is written, and what still comes is thrown away as it is
        self._closing = True
        self._lingering = linger
        if not self._out:
            self._finish_closing()
        else:
            self._reactor.loop.call_later(FLUSH_SECONDS, self._destroy)

    def _finish_closing(self) -> None:
        if not self._lingering or self._eof or self._sock is None:
            self._destroy()
            return
        self._tls = None  # what still comes is thrown away undecrypted
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self.resume()
        self._reactor.loop.call_later(LINGER_SECONDS, self._destroy)

    def abort(self, reason: str = "aborted") -> None:
        """End it now by RST: nothing pending is sent, no close_notify, so that nobody takes what came for complete."""
        sock = self._sock
        if sock is None:
            return
        self.receiver = NOBODY
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._fail_handshake(reason)
        self._destroy()

    def _fail_handshake(self, reason: str) -> None:
        tls = self._tls
        if tls is not None and tls.waiter is not None:
            waiter, tls.waiter = tls.waiter, None
            if not waiter.done():
                waiter.set_exception(ChannelClosed("the connection ended during the TLS handshake", reason))

    def _lose(self, error: OSError, reason: str = "") -> None:
        if self._sock is None:
            return
        receiver, self.receiver = self.receiver, NOBODY
        word = reason or ("reset" if error.errno in _GONE else "other")
        self._fail_handshake(word)
        self._destroy()
        receiver.connection_lost(word)

    def _destroy(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._reactor.forget(self._fd)
            sock.close()
            self._out = self._tls = self._gss = None
            self._closing = True

    def _want(self, events: int) -> None:
        if events != self._events and self._sock is not None:
            self._events = events
            self._reactor.change(self._fd, events)


def _explain(error: ssl.SSLError | RemoteProtocolError) -> TlsFailed:
    """The library's words with one of our short reasons."""
    if isinstance(error, RemoteProtocolError):
        return TlsFailed(str(error), error.reason)
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsFailed(f"certificate refused: {error.verify_message}", "certificate")
    return TlsFailed((error.reason or "TLS failed").replace("_", " ").lower(), "tls")
