"""A channel that somebody listens to. Sessions that nobody traces have a plain one, and pay nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from popproxy.net.channel import Channel
from popproxy.net.layer import Receiver


class Tap(Protocol):
    """What is told of everything that goes by, in the clear."""

    def from_client(self, data: bytes, idle: bool) -> None:
        """Octets that have come; `idle` if no reply was awaited before."""
        ...

    def to_client(self, data: bytes) -> None:
        """Octets that are being written."""
        ...


class TappedChannel:
    """Stands in for `channel`: what is written and what its receiver is given goes by `tap`."""

    def __init__(self, channel: Channel, tap: Tap, idle: Callable[[], bool]) -> None:
        self.channel = channel
        self._tap = tap
        self._idle = idle

    @classmethod
    def on(cls, channel: Channel, tap: Tap, idle: Callable[[], bool]) -> Channel:
        """A channel like any other to whoever uses it."""
        return cast("Channel", cls(channel, tap, idle))

    @property
    def receiver(self) -> Receiver:
        """Who is given what has come, the tap between."""
        return self.channel.receiver

    @receiver.setter
    def receiver(self, receiver: Receiver) -> None:
        self.channel.receiver = _Heard(receiver, self._tap, self._idle)

    def write(self, data: bytes | bytearray | memoryview) -> bool:
        """See Channel."""
        self._tap.to_client(bytes(data))
        return self.channel.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.channel, name)


class _Heard:
    """A receiver whose octets go by the tap first."""

    def __init__(self, receiver: Receiver, tap: Tap, idle: Callable[[], bool]) -> None:
        self._receiver = receiver
        self._tap = tap
        self._idle = idle
        self.eof_received = receiver.eof_received
        self.drained = receiver.drained
        self.connection_lost = receiver.connection_lost

    def data_received(self, buffer: bytearray, end: int) -> None:
        self._tap.from_client(bytes(memoryview(buffer)[:end]), self._idle())
        self._receiver.data_received(buffer, end)
