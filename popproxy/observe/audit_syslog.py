"""The audit log to a syslog server: RFC 5424 over TLS (RFC 5425) or TCP (RFC 6587), octet counting.

Syslog over TCP has no acknowledgement: what the kernel has taken may be lost with the connection. What the peer's
kernel has not confirmed by then is therefore sent again on the next one, so that a record may arrive twice, and
``popproxy audit verify --copy`` knows that.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import ssl
import struct
from collections import deque

from popproxy.observe.audit_copy import Copy
from popproxy.observe.metrics import Metrics
from popproxy.types import Address

_PRIORITY = 13 * 8 + 6  # facility "log audit", severity informational
_AHEAD = 256 * 1024  # octets that may wait in the transport
_WINDOW = 1024 * 1024  # octets that are sent again at most
_CONNECT = 10.0  # seconds for a connection, handshake included
_PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)  # between attempts, in seconds
_LOOK = 1.0  # seconds between looks whether the peer has it
_SIOCOUTQ = 0x5411


class SyslogCopy(Copy, asyncio.Protocol):
    """One connection to the server, made anew whenever it breaks. `tls` None: TCP in clear."""

    name = "syslog"

    def __init__(self, metrics: Metrics, server: Address, tls: ssl.SSLContext | None, server_name: str = "") -> None:
        super().__init__(metrics)
        self._server = server
        self._tls = tls
        self._server_name = server_name or server.host
        self._host = socket.gethostname() or "-"
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._attempt = 0
        self._again_at = 0.0  # loop time of the next attempt
        self._window: deque[bytes] = deque()  # sent, not confirmed by the peer's kernel
        self._window_octets = 0

    def push(self) -> None:
        """See Copy."""
        transport = self._transport
        if transport is None or transport.is_closing():
            if self.lines or self._window:
                self._connect()
                raise BlockingIOError
            return
        if self._confirmed():
            self._forget()
        while self.lines:
            if transport.get_write_buffer_size() > _AHEAD or (self._window_octets > _WINDOW and not self._confirmed()):
                raise BlockingIOError  # what could not be sent again is not sent on
            frame = self._frame(self.lines[0])
            self._remember(frame)
            transport.write(frame)
            self.sent()
        if self._window:
            self._push_in(_LOOK)

    @property
    def settled(self) -> bool:
        """See Copy; all that was sent is confirmed. Nobody waits for a server that is away."""
        if self._transport is None:
            return not self._works or not self.lines
        return not self.lines and self._confirmed()

    def close(self) -> None:
        """See Copy."""
        if self._connecting is not None:
            self._connecting.cancel()
        super().close()
        self._forget()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send again what may have been lost with the last connection."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self._attempt = 0
        assert self._transport is not None
        self._transport.write(b"".join(self._window))
        self.works()

    def connection_lost(self, exc: Exception | None) -> None:
        """By the server, or by the network."""
        if self._transport is not None:
            self._transport = None
            self.failed(str(exc) if exc else "the server has closed the connection")
            self._push_in(1.0)

    # ---- pieces ----

    def _frame(self, line: bytes) -> bytes:
        record = line.removesuffix(b"\n")
        when = record[15:42].decode()  # {"@timestamp":"2026-11-23T08:07:09.971327Z"
        message = f"<{_PRIORITY}>1 {when} {self._host} popproxy - audit - ".encode() + record
        return b"%d %b" % (len(message), message)

    def _remember(self, frame: bytes) -> None:
        if self._confirmed():
            self._forget()
        self._window.append(frame)
        self._window_octets += len(frame)

    def _forget(self) -> None:
        self._window.clear()
        self._window_octets = 0

    def _confirmed(self) -> bool:
        """The peer's kernel has all that was written."""
        transport = self._transport
        if transport is None or transport.get_write_buffer_size():
            return False
        try:
            queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), _SIOCOUTQ, b"\0\0\0\0")
        except OSError:
            return False
        return struct.unpack("i", queued) == (0,)

    def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._connecting is None and loop.time() >= self._again_at:
            self._connecting = loop.create_task(self._dial())

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT):
                await loop.create_connection(
                    lambda: self, self._server.host, self._server.port, ssl=self._tls,
                    server_hostname=self._server_name if self._tls is not None else None,
                )  # fmt: skip
        except (OSError, TimeoutError) as error:
            self._again_at = loop.time() + _PAUSES[min(self._attempt, len(_PAUSES) - 1)]
            self._attempt += 1
            self.failed(str(error) or "no answer in time")
        finally:
            self._connecting = None
