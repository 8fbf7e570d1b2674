"""A server of bare sockets with one fault, for as long as it is broken; and who has said what to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.faults.dialogue import Maildrop, capabilities
from tests.session.rig import Peer

Then = Literal["fin", "rst", "bye", "hang", "go on", "wait"]
"""After what it says: FIN (under TLS without close_notify), RST, close_notify and FIN, silence; nothing is wrong; say
no more until the client is gone, then go on."""
Says = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Fault:
    """Instead of its reply to `at` (a line of the dialogue, or ``greeting``) the server `says` what it makes of it.

    ``connect`` has no reply: `then` tells whether connections are refused (fin) or not even answered (hang).
    `drip`: so many octets at a time, with pauses.
    """

    at: str
    says: Says
    then: Then
    drip: int = 0


@dataclass(eq=False)
class Seen:
    """One connection as the server saw it."""

    lines: list[str] = field(default_factory=list)
    user: str = ""
    ended: str = ""
    """eof, reset, tls or us."""
    quit: bool = False
    """QUIT came after the login: any server may have deleted what was marked."""
    deleted: set[int] = field(default_factory=set)


class _Over(Exception):
    pass


class Server:
    """Listens on a port of 127.0.0.1 and serves until it is closed."""

    def __init__(
        self,
        fault_for: Callable[[str], Fault | None],
        *,
        tls: ssl.SSLContext | None = None,
        early: Fault | None = None,
        messages: list[bytes] | None = None,
    ) -> None:
        """`fault_for` a user; `early`: the fault if it shows before a user is named."""
        self.seen: list[Seen] = []
        self.gone = asyncio.Event()
        """The client has done what it does: what ``wait`` waits for."""
        self._fault_for = fault_for
        self._early = early
        self._tls = tls
        self._messages = messages
        self._tasks: set[asyncio.Task[None]] = set()
        self._fill: list[socket.socket] = []
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        self._accepting: asyncio.Task[None] | None = None
        if early is None or early.at != "connect":
            self._listen()
        elif early.then == "hang":
            self._deafen()

    def _listen(self) -> None:
        self._sock.listen(4096)
        self._sock.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def _deafen(self) -> None:
        """The queue is full and nobody accepts: further SYNs are dropped, as by a firewall."""
        self._sock.listen(0)
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(("127.0.0.1", self.port))
            self._fill.append(sock)

    def mend(self, tls: ssl.SSLContext | None) -> None:
        """From now on it is in good health, and has a good certificate."""
        self.gone.set()
        self._tls = tls
        self._early = None
        self._fault_for = lambda _user: None
        if self._accepting is None:
            for sock in self._fill:
                sock.close()
            self._listen()

    async def close(self) -> None:
        """Of everything."""
        tasks = [*self._tasks, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in self._fill:
            sock.close()
        self._sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._sock)
            task = loop.create_task(self._serve(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        peer, seen = Peer(sock), Seen()
        self.seen.append(seen)
        try:
            if self._tls is not None:
                await peer.handshake(self._tls, server=True)
            await self._dialogue(peer, seen)
        except _Over:
            pass
        except (ConnectionError, ssl.SSLError):
            seen.ended = seen.ended or "reset"
        except (AssertionError, TimeoutError):
            seen.ended = seen.ended or peer.ended
        finally:
            seen.ended = seen.ended or peer.ended or "us"
            peer.close()

    async def _dialogue(self, peer: Peer, seen: Seen) -> None:
        fault = self._early
        maildrop = Maildrop(self._messages) if self._messages is not None else Maildrop()
        inside = False
        await self._reply(peer, seen, fault, "greeting", b"+OK ready\r\n")
        while True:
            while b"\n" not in peer.received:
                if not await peer.more(600):
                    return
            text = (await peer.line()).rstrip(b"\r\n").decode("latin-1")
            verb = text.split(" ")[0].upper()
            seen.lines.append(verb if verb == "PASS" else text)
            at = text if inside else {"CAPA": "CAPA before"}.get(verb, verb)
            if inside:
                reply = maildrop.answer(text)
                seen.deleted = set(maildrop.deleted)
                seen.quit = seen.quit or text == "QUIT"
            elif verb == "CAPA":
                reply = capabilities()
            elif verb == "USER":
                seen.user = text[5:]
                fault = self._early or self._fault_for(seen.user)
                reply = b"+OK\r\n"
            else:
                reply = b"+OK welcome\r\n" if verb in ("PASS", "QUIT") else b"-ERR what?\r\n"
            await self._reply(peer, seen, fault, at, reply)
            inside = inside or verb == "PASS"
            if verb == "QUIT":
                raise _Over

    async def _reply(self, peer: Peer, seen: Seen, fault: Fault | None, at: str, reply: bytes) -> None:
        if fault is None or fault.at != at:
            await peer.send(reply, 60)
            return
        octets = fault.says(reply)
        if fault.drip:
            for start in range(0, len(octets), fault.drip):
                await peer.send(octets[start : start + fault.drip])
                await asyncio.sleep(0.05)
        elif octets:
            await peer.send(octets, 60)
        match fault.then:
            case "go on":
                return
            case "fin":
                seen.ended = "us"
                peer.close()
                raise _Over
            case "rst":
                seen.ended = "us"
                peer.reset()
                raise _Over
            case "bye":
                seen.ended = "us"
                await peer.farewell()
                peer.close()
                raise _Over
            case "wait":
                await self.gone.wait()
                await peer.send(reply[len(octets) :], 60)
            case "hang":
                while await peer.more(600):
                    pass
                raise _Over
