"""Questions for a process of its own (helper_process): libraries that would stop the event loop, or need more rights.

Like a BoundedExecutor, whose numbers it shares, but what is late here is really ended: its process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from popproxy.errors import Unavailable
from popproxy.observe.logs import get_logger
from popproxy.state.helper_process import MAX_PACKET
from popproxy.state.slots import Slots

_START_SECONDS: Final = 30.0
_GRACE: Final = 2.0
"""Seconds that the dispatcher may take to say that it has killed a worker; longer, and it is dead itself."""
_END_SECONDS: Final = 2.0

log = get_logger("helper")


@dataclass(frozen=True, slots=True)
class Started:
    """A helper that is ready, but that nobody listens to yet."""

    sock: socket.socket
    process: subprocess.Popen[bytes]

    def close(self) -> None:
        """End it. Waits for it a moment."""
        self.sock.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)


def start_helper(
    module: str, settings: Mapping[str, Any], *, workers: int, user: str | None = None, group: str | None = None
) -> Started:
    """Start ``module.prepare(settings)`` in a process that may have `workers` children; blocks until it is ready.

    Settings go through the socket, so they may be secret. It keeps the rights of this process unless `user` is named.
    Raises Unavailable with what its preparation said.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # -P: with -m, Python would look for modules in the working directory first
    command = [sys.executable, "-P", "-m", "popproxy.state.helper_process", module]
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    environment |= {name: os.environ[name] for name in ("PYTHONPATH", "PYTHONHOME") if name in os.environ}
    with theirs:
        process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, cwd="/", env=environment, start_new_session=True
        )
    started = Started(ours, process)
    ours.settimeout(_START_SECONDS)
    try:
        ours.send(json.dumps({"settings": settings, "workers": workers, "user": user, "group": group}).encode())
        answer = json.loads(ours.recv(MAX_PACKET) or b'{"failed": "it ended at once"}')
    except OSError as error:
        answer = {"failed": str(error)}
    if "failed" in answer:
        started.close()
        raise Unavailable(answer["failed"], "start")
    ours.setblocking(False)
    return started


class Helper:
    """The asking end. `name` is the label of the metrics.

    At most `workers` questions are under way, at most `queue_limit` wait; `deadline` seconds for waiting and answer.
    """

    def __init__(
        self, name: str, started: Started, loop: asyncio.AbstractEventLoop, *, workers: int, queue_limit: int,
        deadline: float,
    ) -> None:  # fmt: skip
        self.name = name
        self._started = started
        self._loop = loop
        self._slots = Slots(name, workers, queue_limit)
        self._deadline = deadline
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._abandoned = 0
        self._gone = False
        loop.add_reader(started.sock.fileno(), self._hear)

    @property
    def limit(self) -> int:
        """Questions that may be under way."""
        return self._slots.limit

    @property
    def queue_limit(self) -> int:
        """Questions that may wait."""
        return self._slots.queue_limit

    @property
    def busy(self) -> int:
        """Questions under way, whether or not somebody still waits for the answer."""
        return len(self._asked)

    @property
    def queued(self) -> int:
        """Questions that wait for a worker."""
        return self._slots.waiting

    @property
    def abandoned(self) -> int:
        """Questions ever left unanswered because the deadline passed or the caller went away. Only grows."""
        return self._abandoned

    async def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of a worker.

        Raises Unavailable with reason ``queue_full``, ``deadline``, ``died`` (the worker crashed), ``error`` or
        ``closed``.
        """
        started = self._loop.time()
        await self._slots.take(self._deadline)
        self._number += 1
        number = self._number
        left = max(0.0, started + self._deadline - self._loop.time())
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        packet = json.dumps({"id": number, "ask": question, "seconds": left}).encode()
        try:
            if len(packet) > MAX_PACKET:
                raise Unavailable(f"{self.name}: the question is too long", "error")
            self._started.sock.send(packet)
        except Unavailable:
            self._slots.give()
            raise
        except OSError as error:
            self._slots.give()
            raise self._unavailable("queue_full" if isinstance(error, BlockingIOError) else "closed") from None
        self._asked[number] = answer
        give_up = self._loop.call_later(left + _GRACE, self._answered, number, {"failed": "deadline"})
        try:
            result = await asyncio.shield(answer)
        except asyncio.CancelledError:
            self._abandoned += 1
            raise
        finally:
            if answer.done():
                give_up.cancel()
        if "failed" in result:
            self._abandoned += result["failed"] == "deadline"
            raise self._unavailable(str(result["failed"]))
        return dict(result["answer"])

    def close(self) -> None:
        """End the helper; questions under way are Unavailable."""
        if not self._gone:
            self._lose("closed")
        self._started.close()

    def _hear(self) -> None:
        try:
            packet = self._started.sock.recv(MAX_PACKET + 1024)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if packet:
            answer = json.loads(packet)
            self._answered(answer["id"], answer)
        else:
            self._lose("closed")
            log.error("a helper process is gone", helper=self.name, cure="restart popproxy")

    def _answered(self, number: int, result: dict[str, Any]) -> None:
        answer = self._asked.pop(number, None)
        if answer is None:
            return
        if not answer.done():
            answer.set_result(result)
        self._slots.give()

    def _lose(self, reason: str) -> None:
        self._gone = True
        self._loop.remove_reader(self._started.sock.fileno())
        self._slots.close(str(self._unavailable(reason)), reason)
        for number in list(self._asked):
            self._answered(number, {"failed": reason})

    def _unavailable(self, reason: str) -> Unavailable:
        text = {
            "queue_full": "it takes no more questions",
            "deadline": f"no answer within {self._deadline:g} s",
            "died": "the worker died over the question",
            "closed": "the helper process is gone",
        }.get(reason, f"failed with {reason}")
        known = reason if reason in ("queue_full", "deadline", "died", "closed") else "error"
        return Unavailable(f"{self.name}: {text}", known)
