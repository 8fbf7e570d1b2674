"""What supervisor and workers say to each other: frames of JSON over a Unix socket pair, and descriptors.

The frames are those of the control socket (admin/frames). A message is one of

    {"ask": 7, "do": "command", "with": {...}}      wants an answer
    {"answer": 7, "result": ...}                    or "failed": {"reason": ..., "text": ...}
    {"tell": "status", "with": {...}}               wants none

Names and fields are understood by other versions too, for a supervisor outlives an upgrade of its workers: who does not
know a name answers that, or says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from popproxy.admin.frames import HEADER, MAX_ANSWER, CommandFailed, Reason, decode, encode, length
from popproxy.errors import RemoteProtocolError
from popproxy.observe.logs import get_logger

_RECEIVE = 1 << 18  # octets at a time
_DESCRIPTORS = 250  # in one message; SCM_MAX_FD is 253
_ANSWERED_AT_ONCE = 256  # questions of the other end; it has few to ask

Handler = Callable[..., Awaitable[object]]
"""Answers one kind of question; takes its fields by name. Raises CommandFailed."""
Hearer = Callable[..., None]
"""Takes what needs no answer."""

log = get_logger("supervisor")


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What goes on at one end when another program takes it over: octets of messages, and how many were asked."""

    unread: bytes = b""
    unsent: bytes = b""
    asked: int = 0


_NOTHING = UnderWay()


class Link:
    """One end of the pair, in an event loop.

    `questions` and `tidings` are what this end understands, by their names.

    `lost` is called once, when the other end is gone, or takes nothing, or says what is no message.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        questions: Mapping[str, Handler],
        tidings: Mapping[str, Hearer],
        lost: Callable[[], None],
        under_way: UnderWay = _NOTHING,
    ) -> None:
        self._sock = sock
        self._questions = questions
        self._tidings = tidings
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray(under_way.unread)
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()  # with descriptors of our own
        if under_way.unsent:
            self._unsent.append((memoryview(under_way.unsent), []))
        self._asked: dict[int, asyncio.Future[object]] = {}
        self._number = under_way.asked  # a late answer must not be taken for another
        self._answering: set[asyncio.Task[None]] = set()
        self._open = True
        self._paused = False
        sock.setblocking(False)
        self._begin()

    @property
    def sock(self) -> socket.socket:
        """The socket, for who hands it on."""
        return self._sock

    @property
    def busy(self) -> bool:
        """Has a question no answer yet, of ours or of the other end, or have descriptors to wait?"""
        return bool(self._asked or self._answering or any(descriptors for _, descriptors in self._unsent))

    async def ask(self, what: str, seconds: float, **fields: object) -> object:
        """The other end's answer. Raises CommandFailed; also if it is gone, or takes longer than `seconds`."""
        if not self._open:
            raise CommandFailed(Reason.REFUSED, "the process is gone")
        self._number += 1
        number = self._number
        answer = self._asked[number] = self._loop.create_future()
        try:
            self._send({"ask": number, "do": what, "with": fields})
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise CommandFailed(Reason.INTERNAL, f"no answer within {seconds:g} s") from None
        finally:
            self._asked.pop(number, None)

    def tell(self, what: str, descriptors: Sequence[int] = (), **fields: object) -> None:
        """Send what needs no answer, and copies of `descriptors`; nothing happens if the other end is gone.

        Raises OSError if there is no room for the copies.
        """
        for first in range(0, len(descriptors) - _DESCRIPTORS, _DESCRIPTORS):
            self._send({"tell": "descriptors"}, descriptors[first : first + _DESCRIPTORS])
            descriptors = descriptors[first + _DESCRIPTORS :]
        self._send({"tell": what, "with": fields}, descriptors)

    @property
    def under_way(self) -> UnderWay:
        """What another Link needs to go on with the socket."""
        unsent = b"".join(octets for octets, _ in self._unsent)
        return UnderWay(bytes(self._unread), unsent, self._number)

    def pause(self) -> None:
        """Leave the socket alone, until `resume` or for good."""
        self._paused = self._open
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())

    def resume(self) -> None:
        """Go on."""
        if self._paused:
            self._open, self._paused = True, False
            self._begin()

    def _begin(self) -> None:
        self._loop.add_reader(self._sock.fileno(), self._readable)
        if self._unread:
            self._loop.call_soon(self._take)
        if self._unsent:
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def finish(self) -> None:
        """Stop once all is sent, for the end of this process."""
        self._open = False
        self._loop.remove_reader(self._sock.fileno())
        if self._unsent:
            self._loop.remove_writer(self._sock.fileno())
            self._sock.settimeout(5)
            with contextlib.suppress(OSError):
                for octets, descriptors in self._unsent:
                    self._sock.sendall(octets[self._send_some(octets, descriptors) :])
            self._forget_unsent()

    def close(self) -> None:
        """End it from this side; `lost` is not called."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._give_up()
        self._sock.close()

    # ---- pieces ----

    def _send(self, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        self._send_octets(encode(message), descriptors)

    def _send_octets(self, encoded: bytes, descriptors: Sequence[int] = ()) -> None:
        if not self._open:
            return
        octets = memoryview(encoded)
        if sum(len(waiting) for waiting, _ in self._unsent) > MAX_ANSWER:
            log.error("the other process takes nothing, and is given up")
            self._loop.call_soon(self._end)  # whoever sends is in the middle of something
            return
        if not self._unsent:
            try:
                octets = octets[self._send_some(octets, descriptors) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # the reader hears of the end
            else:
                descriptors = ()
        if octets:
            # they may be closed by the time there is room
            self._unsent.append((octets, _copies(descriptors)))
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _send_some(self, octets: memoryview, descriptors: Sequence[int]) -> int:
        """How many octets have gone; all descriptors have gone with the first."""
        return socket.send_fds(self._sock, [octets], list(descriptors)) if descriptors else self._sock.send(octets)

    def _writable(self) -> None:
        octets, descriptors = self._unsent[0]
        try:
            octets = octets[self._send_some(octets, descriptors) :]
        except BlockingIOError:
            return
        except OSError:
            self._forget_unsent()
        else:
            _close(descriptors)
            if octets:
                self._unsent[0] = octets, []
            else:
                self._unsent.popleft()
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _forget_unsent(self) -> None:
        while self._unsent:
            _close(self._unsent.popleft()[1])

    def _readable(self) -> None:
        try:
            octets = self._sock.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            self._end()
            return
        self._unread += octets
        self._take()

    def _take(self) -> None:
        try:
            while self._open and len(self._unread) >= HEADER:
                size = HEADER + length(bytes(self._unread[:HEADER]), MAX_ANSWER)
                if len(self._unread) < size:
                    return
                message = decode(bytes(self._unread[HEADER:size]))
                del self._unread[:size]
                self._understand(message)
        except (RemoteProtocolError, TypeError, ValueError, OverflowError) as error:
            log.error("not a message between supervisor and worker", why=str(error))
            self._end()

    def _understand(self, message: dict[str, Any]) -> None:
        fields = message.get("with") or {}
        if "answer" in message:
            waiting = self._asked.get(message["answer"])
            if waiting is not None and not waiting.done():
                try:
                    waiting.set_result(_result(message))
                except CommandFailed as failed:
                    waiting.set_exception(failed)
        elif "ask" in message:
            number = int(message["ask"])
            if len(self._answering) + len(self._unsent) >= _ANSWERED_AT_ONCE:
                return  # who asks so much, or takes no answers, does without
            task = self._loop.create_task(self._answer(number, str(message.get("do")), fields))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif (hear := self._tidings.get(str(message.get("tell")))) is not None:
            try:
                hear(**fields)
            except Exception as error:  # of another version, or a worker that says what others want
                log.error("a message was not understood", what=str(message["tell"]), why=repr(error))

    async def _answer(self, number: int, what: str, fields: dict[str, Any]) -> None:
        handler = self._questions.get(what)
        try:
            if handler is None:
                raise CommandFailed(Reason.UNKNOWN_COMMAND, f"{what} is not known here")
            answer: dict[str, object] = {"result": await handler(**fields)}
        except CommandFailed as failed:
            answer = {"failed": {"reason": failed.reason, "text": str(failed)}}
        except Exception:
            log.exception("a question could not be answered", what=what)
            answer = {"failed": {"reason": Reason.INTERNAL, "text": "internal error; popproxy's log says more"}}
        octets = encode({"answer": number, **answer})
        if len(octets) > HEADER + MAX_ANSWER:  # the other end would hang up, and all that we are asked would be lost
            text = f"an answer of {len(octets)} octets, and {MAX_ANSWER} are taken; ask for less"
            octets = encode({"answer": number, "failed": {"reason": Reason.REFUSED, "text": text}})
        self._send_octets(octets)

    def _end(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._give_up()
            self._lost()

    def _give_up(self) -> None:
        self._forget_unsent()
        for task in tuple(self._answering):
            task.cancel()
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(CommandFailed(Reason.REFUSED, "the process has ended over the question"))
                waiting.exception()  # nobody may be left to take it


def _copies(descriptors: Sequence[int]) -> list[int]:
    """Raises OSError if there is no room for all."""
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))
    except OSError:
        _close(copies)
        raise
    return copies


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _result(message: Mapping[str, Any]) -> object:
    """Of an answer. Raises CommandFailed."""
    failed = message.get("failed")
    if failed is not None:
        reason = failed.get("reason") if isinstance(failed, dict) else None
        known = Reason(reason) if reason in set(Reason) else Reason.INTERNAL  # other versions may know more of them
        raise CommandFailed(known, str(failed.get("text") if isinstance(failed, dict) else failed))
    return message.get("result")


def send_now(sock: socket.socket, what: str, **fields: object) -> None:
    """Send a message where no loop runs yet."""
    sock.sendall(encode({"tell": what, "with": fields}))


def receive_now(sock: socket.socket) -> tuple[str, dict[str, Any], list[int]]:
    """Wait for a message, where no loop runs yet: its name, its fields, its descriptors. Raises EOFError at the end."""
    descriptors: list[int] = []
    while True:
        header = _exactly(sock, HEADER, descriptors)
        message = decode(_exactly(sock, length(header, MAX_ANSWER), descriptors))
        if message.get("tell") != "descriptors":
            return str(message.get("tell")), message.get("with") or {}, descriptors


def _exactly(sock: socket.socket, count: int, descriptors: list[int]) -> bytes:
    octets = b""
    while len(octets) < count:
        part, given, _, _ = socket.recv_fds(sock, count - len(octets), _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        descriptors += given
        if not part:
            raise EOFError("the supervisor is gone")
        octets += part
    return octets
