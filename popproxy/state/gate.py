"""Bounded work in the event loop: questions to a database or a web service, never too many and never without end.

What BoundedExecutor is for threads and Helper for processes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from popproxy.errors import Unavailable

T = TypeVar("T")


class Gate:
    """At most `limit` at a time, at most `queue_limit` waiting, `deadline` seconds for waiting and work together.

    `name` is the label of the metrics.
    """

    def __init__(self, name: str, limit: int, queue_limit: int, deadline: float) -> None:
        self.name = name
        self._free = limit
        self._queue_limit = queue_limit
        self._deadline = deadline
        self._tasks: set[asyncio.Task[Any]] = set()  # those that are late are in it until they have really ended
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._abandoned = 0

    @property
    def busy(self) -> int:
        """Under way, whether or not somebody still waits for it."""
        return len(self._tasks)

    @property
    def queued(self) -> int:
        """Not begun."""
        return len(self._waiting)

    @property
    def abandoned(self) -> int:
        """Ever given up because the deadline passed or the caller went away. Only grows."""
        return self._abandoned

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns or raises. Raises Unavailable with reason ``queue_full`` or ``deadline``.

        Nobody waits for the clearing up of what is late: a driver may need a silent server for that.
        """
        started = asyncio.get_running_loop().time()
        await self._enter()
        task = asyncio.ensure_future(work())
        self._tasks.add(task)
        task.add_done_callback(self._left)
        try:
            left = started + self._deadline - asyncio.get_running_loop().time()
            await asyncio.wait((task,), timeout=max(0.0, left))
        finally:
            if not task.done():
                self._abandoned += 1
                task.cancel()
        if not task.done() or task.cancelled():
            raise self._late()
        return task.result()

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    async def _enter(self) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= self._queue_limit:
            raise Unavailable(f"{self.name}: {len(self._waiting)} questions are waiting already", "queue_full")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait((turn,), timeout=self._deadline)
        except asyncio.CancelledError:
            if turn.done():
                self._release()
            raise
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
        if not turn.done():
            raise self._late()

    def _left(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # has been told to whoever still waited
        self._release()

    def _release(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1

    def _late(self) -> Unavailable:
        return Unavailable(f"{self.name}: no answer within {self._deadline:g} s", "deadline")
