"""Between one session and its channel in an SSH connection: what comes in on one side goes out on the other.

The session has one end of a socket pair, and sees a connection like any other. Neither side is read faster than the
other takes it, so what is under way is bounded by the socket's buffers and the channel's window.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

import asyncssh

WINDOW = 256 * 1024
"""Octets that the server may have sent and we not passed on: as much as a session may queue anyhow."""


class Pump:
    """One channel and one socket. `lost` is called if the channel ends because the SSH connection does, `ended` last.

    An orderly end of the channel becomes the end of what the socket gives. The socket itself stays open until the
    session closes it: what it has not read yet is not taken away from it.
    """

    def __init__(self, lost: Callable[[], None], ended: Callable[[Pump], None]) -> None:
        self.lost = lost
        self.ended = ended
        self.local = _Local(self)
        self.remote = _Remote(self)
        self.socket: asyncio.Transport | None = None
        self.channel: asyncssh.SSHTCPChannel[bytes] | None = None

    def close(self) -> None:
        """Nobody wants it any more: what has not been sent is dropped."""
        if self.channel is not None:
            self.channel.abort()
        if self.socket is not None:
            self.socket.abort()


class _Local(asyncio.Protocol):
    """The socket."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pump.socket = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        channel = self._pump.channel
        if channel is not None and not channel.is_closing():
            channel.write(data)

    def eof_received(self) -> None:
        """The session has ended; it never closes one direction alone."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._pump.socket = None
        self._pump.ended(self._pump)
        if self._pump.channel is not None:
            self._pump.channel.abort()

    def pause_writing(self) -> None:
        if self._pump.channel is not None:
            self._pump.channel.pause_reading()

    def resume_writing(self) -> None:
        if self._pump.channel is not None:
            self._pump.channel.resume_reading()


class _Remote(asyncssh.SSHTCPSession[bytes]):
    """The channel."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._pump.channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._pump.socket is not None:
            self._pump.socket.write(data)

    def eof_received(self) -> bool:
        self._end_of_data()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._pump.channel = None
        if exc is None:
            self._end_of_data()
        else:
            self._pump.lost()

    def pause_writing(self) -> None:
        if self._pump.socket is not None:
            self._pump.socket.pause_reading()

    def resume_writing(self) -> None:
        if self._pump.socket is not None:
            self._pump.socket.resume_reading()

    def _end_of_data(self) -> None:
        if self._pump.socket is not None:
            with contextlib.suppress(OSError):
                self._pump.socket.write_eof()
