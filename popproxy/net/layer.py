"""What a channel, its receiver and the security layer between them expect of each other."""

from __future__ import annotations

from typing import Protocol

from popproxy.net.reactor import Reactor


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


class Carrier(Protocol):
    """What a layer may do with the channel that it lies on."""

    receiver: Receiver
    reactor: Reactor
    layer: Layer | None

    @property
    def gone(self) -> bool:
        """True once there is no socket any more."""
        ...

    def send_raw(self, data: bytes | bytearray | memoryview) -> bool:
        """Send octets as they are. Returns True if the socket has taken all that was ever written."""
        ...

    def received_eof(self) -> None:
        """The peer has said that it will send no more."""
        ...

    def lose(self, error: OSError, reason: str = "") -> None:
        """The connection is of no use any more."""
        ...

    def close(self, *, linger: bool = False, notify: bool = True) -> None:
        """Send what is pending, and end."""
        ...

    def ready(self, events: int) -> None:
        """See Watched."""
        ...

    def failed(self) -> None:
        """See Watched."""
        ...


class Layer(Protocol):
    """TLS, or a layer of SASL GSSAPI: everything between receiver and socket goes through it, both ways."""

    @property
    def encrypted(self) -> bool:
        """True if nobody on the way can read what goes through."""
        ...

    @property
    def handshaking(self) -> bool:
        """True while the layer is being agreed on; what is written then is dropped."""
        ...

    def encode(self, data: bytes | bytearray | memoryview) -> bytes:
        """What to send for `data`. Raises RemoteProtocolError if the layer is of no more use."""
        ...

    def received(self, carrier: Carrier, data: memoryview) -> None:
        """Octets from the socket; none at its end."""
        ...

    def farewell(self) -> bytes:
        """What tells the peer that nothing more will follow."""
        ...

    def ended(self, reason: str) -> None:
        """The connection is gone; `reason` is a short word."""
        ...
