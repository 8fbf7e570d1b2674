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

from popproxy.errors import ChannelClosed, LocalProtocolError, RemoteProtocolError
from popproxy.net.gss_layer import GssLayer
from popproxy.net.layer import Layer, Receiver
from popproxy.net.reactor import BROKEN, READABLE, WRITABLE, Reactor, Watched
from popproxy.net.tls_layer import ContextChooser, TlsLayer
from popproxy.types import Address, TlsInfo

LINGER_SECONDS = 2.0
FLUSH_SECONDS = 30.0
_CLOSE_WAIT = 8  # linux/net/tcp_states.h
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close sends RST
NOT_REACHED = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
}
"""Reasons that end a connection which has not come about; afterwards only the last three can."""
_REASONS = NOT_REACHED | dict.fromkeys((errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN), "reset")


class _Nobody:
    """Discards everything: for a channel whose session has ended."""

    def data_received(self, buffer: bytearray, end: int) -> None: ...
    def eof_received(self) -> None: ...
    def drained(self) -> None: ...
    def connection_lost(self, reason: str) -> None: ...


NOBODY = _Nobody()


class Channel:
    """One connected socket. `receiver` may be exchanged at any time."""

    __slots__ = (
        "_closing", "_eof", "_events", "_lingering", "_out", "_sock", "fd", "layer", "reactor", "reading", "receiver",
    )  # fmt: skip

    def __init__(self, reactor: Reactor, sock: socket.socket, receiver: Receiver = NOBODY) -> None:
        self.receiver = receiver
        self.reactor = reactor
        self._sock: socket.socket | None = sock
        self.fd = sock.fileno()
        self._out: bytearray | None = None  # what the socket has not taken yet
        self.layer: Layer | None = None
        self._events = READABLE
        self.reading = True
        self._eof = False
        self._closing = False  # close as soon as _out is empty
        self._lingering = False  # and wait for the peer's FIN
        reactor.watch(self.fd, self, READABLE)

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
    def left(self) -> bool:
        """True if the peer has said that it will send no more (or is gone), even if nobody reads."""
        if self._sock is None:
            return True
        try:
            return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE_WAIT
        except OSError:
            return False  # a tunnel's channel

    @property
    def unacknowledged(self) -> int:
        """Octets written that the peer's system has not confirmed: they get fewer while a slow peer reads."""
        if self._sock is None:
            return 0
        queued = array("i", [0])
        fcntl.ioctl(self.fd, termios.TIOCOUTQ, queued)
        return self.pending + queued[0]

    @property
    def connected(self) -> bool:
        """False while a connection that we have asked for has not come about."""
        if self._sock is None:
            return False
        try:
            self._sock.getpeername()
        except OSError:
            return False
        return True

    @property
    def closed(self) -> bool:
        """True once nothing can be written any more."""
        return self._sock is None or self._closing

    @property
    def gone(self) -> bool:
        """True once there is no socket any more."""
        return self._sock is None

    @property
    def local_address(self) -> Address | None:
        """Our end of the connection, while there is one."""
        if self._sock is None:
            return None
        host, port, *_ = self._sock.getsockname()
        return Address(host[7:] if host.startswith("::ffff:") else host, port)

    @property
    def encrypted(self) -> bool:
        """True under TLS and in a GSS layer with confidentiality."""
        return self.layer is not None and self.layer.encrypted

    @property
    def handshaking(self) -> bool:
        """True while TLS is being agreed on; what is written then is dropped."""
        return self.layer is not None and self.layer.handshaking

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """What TLS runs with, None without TLS."""
        return self.layer.context if isinstance(self.layer, TlsLayer) else None

    @property
    def protection(self) -> str:
        """What hides the octets on their way: ``TLS 1.3``, ``GSSAPI``, or ``none``."""
        if isinstance(self.layer, TlsLayer):
            return self.layer.version
        return "GSSAPI" if self.encrypted else "none"

    @property
    def peer_certificate(self) -> bytes | None:
        """The certificate that the peer has shown, in DER; a client's only if it was verified. None without TLS."""
        return self.layer.peer_certificate if isinstance(self.layer, TlsLayer) else None

    # ---- writing ----

    def write(self, data: bytes | bytearray | memoryview) -> bool:
        """Send `data`. Returns True if the socket has taken all that was ever written.

        False means: stop producing until `drained`. On a closed channel data is dropped.
        """
        if self._closing:
            return True
        if self.layer is not None:
            try:
                data = self.layer.encode(data)
            except RemoteProtocolError as error:
                self.lose(OSError(errno.ECONNRESET, error.reason), error.reason)
                return True
        return self.send_raw(data)

    def send_raw(self, data: bytes | bytearray | memoryview) -> bool:
        """For the layer: send octets as they are. Returns as `write` does."""
        sock = self._sock
        if self._out:
            self._out += data
            return False
        if sock is None or not data:
            return True
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lose(error)
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
            self.lose(error)
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
        sock = self._sock
        if sock is None:
            return
        if not (events & READABLE and self.reading):
            if events & BROKEN:
                self.lose(OSError(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNRESET, "hung up"))
            return
        buffer = self.reactor.buffer
        try:
            count = sock.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(error)
            return
        if self.layer is not None:
            self.layer.received(self, memoryview(buffer)[:count])
        elif count:
            self.receiver.data_received(buffer, count)
        else:
            self.received_eof()

    def hold_unsent(self, octets: int) -> None:
        """Let the kernel take so many octets beyond those on their way, instead of what it takes for all clients."""
        if self._sock is not None:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, octets)

    def divert(self, watcher: Watched | None) -> None:
        """Have the reactor tell `watcher` what it would tell this channel; None: no longer."""
        if self._sock is not None:
            self.reactor.hand_over(self.fd, self if watcher is None else watcher)

    def failed(self) -> None:
        """From the reactor: a handler has raised, so nobody knows what state this connection is in."""
        self.lose(OSError(errno.ECONNABORTED, "internal"), "internal")

    def call_soon(self, handler: Callable[[], None]) -> None:
        """Call `handler` in the loop's next turn; if it raises, this connection ends."""
        self.reactor.loop.call_soon(self._guarded, handler)

    def _guarded(self, handler: Callable[[], None]) -> None:
        try:
            handler()
        except Exception:
            self.reactor.handler_failed(self)

    def received_eof(self) -> None:
        """The peer will send no more; from the layer, or from below if there is none."""
        if self._eof or self._sock is None:
            return
        self._eof = True
        self._want(self._events & ~READABLE)
        if self._closing or self.receiver is NOBODY:
            if not self._out:  # else the peer still reads, perhaps: it gets the rest first
                self._destroy()
        else:
            self.receiver.eof_received()

    # ---- layers ----

    async def accept_tls(self, choose: ContextChooser, already: bytes = b"") -> TlsInfo:
        """Server side handshake; `already` is what has been read of it. Raises TlsFailed, ChannelClosed."""
        tls = self._begin_tls()
        tls.accept(choose)
        return await self._handshake(tls, already)

    async def connect_tls(self, context: ssl.SSLContext, server_name: str) -> TlsInfo:
        """Client side handshake; the context verifies the peer. Raises TlsFailed, ChannelClosed."""
        tls = self._begin_tls()
        tls.connect(context, server_name)
        return await self._handshake(tls, b"")

    def _begin_tls(self) -> TlsLayer:
        if self._sock is None or self._eof:
            raise ChannelClosed("the connection is gone", "eof")
        if isinstance(self.layer, GssLayer):
            raise LocalProtocolError("no TLS inside a GSS layer")
        return TlsLayer()

    async def _handshake(self, tls: TlsLayer, already: bytes) -> TlsInfo:
        self.layer = tls
        waiter: asyncio.Future[TlsInfo] = self.reactor.loop.create_future()
        tls.begin(self, already, waiter)
        self.resume()
        try:
            return await waiter
        finally:
            del waiter  # an exception's traceback holds this frame, and the future holds the exception

    def start_gss(self, layer: GssLayer, already: bytes = b"") -> bytes:
        """Every octet from here on, both ways, is in `layer`; what was written before goes out as it is.

        Call it right after the +OK of AUTH was written. The client's side of the layer begins earlier, behind its last
        response (RFC 4422 section 3.7), so `already`, what has been read behind that, belongs to the layer: its
        plaintext is returned. Raises RemoteProtocolError (reason ``gss_layer``) if it does not, for a command sent in
        the clear must not be executed inside the layer; then abort.
        """
        if self.layer is not None:
            raise LocalProtocolError("one layer is enough")
        plaintext = b"".join(layer.decode(already))
        self.layer = layer
        return plaintext

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
        layer, self.layer = self.layer, None  # nothing more is written, and what still comes is thrown away as it is
        if layer is not None:
            if notify:
                self.send_raw(layer.farewell())
            layer.ended("closed")
        self._closing = True
        self._lingering = linger
        if not self._out:
            self._finish_closing()
        else:
            self.reactor.loop.call_later(FLUSH_SECONDS, self._destroy)

    def _finish_closing(self) -> None:
        if not self._lingering or self._eof or self._sock is None:
            self._destroy()
            return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self.resume()
        self.reactor.loop.call_later(LINGER_SECONDS, self._destroy)

    def abort(self, reason: str = "aborted") -> None:
        """End it now by RST: nothing pending is sent, no close_notify, so that nobody takes what came for complete."""
        sock = self._sock
        if sock is None:
            return
        self.receiver = NOBODY
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._destroy(reason)

    def lose(self, error: OSError, reason: str = "") -> None:
        """The connection is of no use any more: `reason`, or else `error`, tells the receiver why."""
        if self._sock is None:
            return
        receiver, self.receiver = self.receiver, NOBODY
        word = reason or _REASONS.get(error.errno or 0, "other")
        self._destroy(word)
        receiver.connection_lost(word)

    def _destroy(self, reason: str = "closed") -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            layer, self.layer = self.layer, None
            if layer is not None:
                layer.ended(reason)
            self.reactor.forget(self.fd)
            sock.close()
            self._out = None
            self._closing = True

    def _want(self, events: int) -> None:
        if events != self._events and self._sock is not None:
            self._events = events
            self.reactor.change(self.fd, events)
