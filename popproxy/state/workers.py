"""The state that the workers of one host share: their supervisor keeps it, each has a Unix socket to it.

When a worker ends, however it ends, its socket closes, and what it held is free. When the supervisor is away, workers
go on by their share of the limits.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from popproxy.observe.logs import get_logger
from popproxy.state.memory_handover import store_from_json, store_to_json
from popproxy.state.memory_store import Member, MemoryStore
from popproxy.state.shared import Leak
from popproxy.state.store import Heard, Neighbours, Operation, StoreAway, Told
from popproxy.state.worker_messages import (
    EXCHANGE,
    EXECUTE,
    JOIN,
    LONGEST,
    encode,
    heard_from_json,
    heard_to_json,
    operations_from_json,
    operations_to_json,
    told_from_json,
    told_to_json,
)

DEADLINE: Final = 2.0
"""Seconds for an answer of the supervisor, which is a process on the same machine with little to do."""

log = get_logger("state")


class _Lines(asyncio.Protocol):
    """Cuts what comes into lines of JSON. What is no such line is dropped: half of one, after a supervisor's change."""

    def __init__(self, begun: bytes = b"") -> None:
        self._begun = begun
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one, but no subclass

    def data_received(self, data: bytes) -> None:
        *lines, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > LONGEST:
            self._begun = b""
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                log.warning("a line about shared state was not understood")
                continue
            self.said(message)

    def said(self, message: list[Any]) -> None:
        """A line has come."""
        raise NotImplementedError

    def say(self, message: Sequence[object]) -> None:
        """Send a line."""
        if self.transport is not None:
            self.transport.write(encode(message))


class StateServer:
    """The supervisor's side."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self._workers: set[_Worker] = set()

    async def attach(self, sock: socket.socket) -> None:
        """Serve the worker that has the other end. The socket is closed when the worker closes its own."""
        await self._serve(_Worker(self), sock)

    @property
    def busy(self) -> bool:
        """Has anything been said that a worker has not taken yet?"""
        return any(worker.transport is None or worker.transport.get_write_buffer_size() for worker in self._workers)

    def hand_over(self, keep: Callable[[int], int]) -> dict[str, Any]:
        """All that another program in this process needs to go on, good for JSON; `keep` numbers a descriptor."""
        return {
            "store": store_to_json(self.store),
            "workers": [worker.hand_over(keep, self.store.members) for worker in self._workers],
        }

    def pause(self) -> None:
        """Do not hear the workers, until `resume` or for good."""
        for worker in self._workers:
            if worker.transport is not None:
                worker.transport.pause_reading()

    def resume(self) -> None:
        """Hear the workers again."""
        for worker in self._workers:
            if worker.transport is not None:
                worker.transport.resume_reading()

    async def take_over(self, told: Mapping[str, Any], adopt: Callable[[int], socket.socket]) -> None:
        """Go on with what `hand_over` has told."""
        self.store = store_from_json(told["store"])
        members = list(self.store.members)
        for one in told["workers"]:
            worker = _Worker(self, bytes.fromhex(one["begun"]))
            if one["member"] is not None:
                worker.belongs_to(members[one["member"]], one["alone"])
            await self._serve(worker, adopt(one["sock"]))
        joined = {one["member"] for one in told["workers"]}
        for place, member in enumerate(members):
            if place not in joined:
                member.leave()

    async def _serve(self, worker: _Worker, sock: socket.socket) -> None:
        sock.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: worker, sock)

    def close(self) -> None:
        """Leave all workers to themselves."""
        for worker in list(self._workers):
            if worker.transport is not None:
                worker.transport.close()

    def came(self, worker: _Worker) -> None:
        """A worker is connected."""
        self._workers.add(worker)

    def went(self, worker: _Worker) -> None:
        """It is not any more."""
        self._workers.discard(worker)
        self.tell_who_is_there()

    def tell_who_is_there(self) -> None:
        """Members have come or gone."""
        alone = len(self.store.members) == 1
        for worker in self._workers:
            worker.tell(alone=alone)


class _Worker(_Lines):
    """The supervisor's end of one worker's socket."""

    def __init__(self, server: StateServer, begun: bytes = b"") -> None:
        super().__init__(begun)
        self._server = server
        self._member: Member | None = None
        self._knows_alone: bool | None = None

    def belongs_to(self, member: Member, alone: bool | None) -> None:
        """It has joined as that one, and knows whether it is alone."""
        self._member, self._knows_alone = member, alone

    def hand_over(self, keep: Callable[[int], int], members: Sequence[Member]) -> dict[str, Any]:
        """See StateServer."""
        assert self.transport is not None
        return {
            "sock": keep(self.transport.get_extra_info("socket").fileno()),
            "begun": self._begun.hex(),
            "member": None if self._member is None else members.index(self._member),
            "alone": self._knows_alone,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.came(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._member is not None:
            self._member.leave()
        self._server.went(self)

    def tell(self, *, alone: bool) -> None:
        """Are there other members?"""
        if self._member is not None and self._knows_alone is not alone:
            self._knows_alone = alone
            self.say([0, alone])

    def said(self, message: list[Any]) -> None:
        number, what, *rest = message
        store = self._server.store
        assert self.transport is not None
        if self.transport.get_write_buffer_size() > LONGEST:
            log.error("a worker asks about shared state, and takes no answers")
            self.transport.abort()
            return
        if what == JOIN:
            if self._member is not None:
                self._member.leave()
            self._member = store.join({kind: Leak(*leak) for kind, leak in rest[0].items()})
            self._knows_alone = None
            self._server.tell_who_is_there()
            self.say([number, store.secret.hex()])
        elif self._member is None:
            self.say([number, None])
        elif what == EXECUTE:
            self.say([number, self._member.execute(operations_from_json(rest[0]))])
        elif what == EXCHANGE:
            self.say([number, heard_to_json(self._member.exchange(told_from_json(rest[0])))])


class SupervisorStore(_Lines):
    """See Store: a worker's side. `sock` is connected to the supervisor."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.neighbours = Neighbours()
        self.secret: bytes | None = None
        self._sock: socket.socket | None = sock
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def open(self, leaks: Mapping[str, Leak]) -> None:
        """See Store."""
        if self._sock is not None:
            sock, self._sock = self._sock, None
            sock.setblocking(False)
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)
        answer = await self._ask(JOIN, {kind: (leak.per_second, leak.keep) for kind, leak in leaks.items()})
        self.secret = bytes.fromhex(answer)

    async def execute(self, operations: Sequence[Operation]) -> list[int]:
        """See Store."""
        answers: list[int] = await self._ask(EXECUTE, operations_to_json(operations))
        return answers

    async def exchange(self, told: Told) -> Heard:
        """See Store."""
        return heard_from_json(await self._ask(EXCHANGE, told_to_json(told)))

    async def close(self) -> None:
        """See Store."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self.transport is not None:
            self.transport.close()

    def said(self, message: list[Any]) -> None:
        number, answer = message
        if number == 0:
            self.neighbours.alone(answer)
            return
        future = self._waiting.pop(number, None)
        if future is not None and not future.done():
            future.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(StoreAway("the supervisor is gone", "lost"))

    async def _ask(self, what: str, content: object) -> Any:
        if self.transport is None:
            raise StoreAway("the supervisor is gone", "lost")
        loop = asyncio.get_running_loop()
        self._number += 1
        number, future = self._number, loop.create_future()
        self._waiting[number] = future
        timer = loop.call_later(DEADLINE, self._too_late, number)
        try:
            self.say([number, what, content])
            answer = await future
        finally:
            timer.cancel()
            self._waiting.pop(number, None)
        if answer is None:
            raise StoreAway("the supervisor has begun anew", "lost")
        return answer

    def _too_late(self, number: int) -> None:
        future = self._waiting.pop(number, None)
        if future is not None and not future.done():
            future.set_exception(StoreAway(f"the supervisor has not answered within {DEADLINE:g} s", "timeout"))
