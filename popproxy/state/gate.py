"""Bounded work in the event loop: questions to a database or a web service, never too many and never without end.

What BoundedExecutor is for threads and Helper for processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from popproxy.state.slots import Slots, late

T = TypeVar("T")


class Gate:
    """At most `limit` at a time, at most `queue_limit` waiting, `deadline` seconds for waiting and work together.

    `name` is the label of the metrics.
    """

    def __init__(self, name: str, limit: int, queue_limit: int, deadline: float) -> None:
        self.name = name
        self._slots = Slots(name, limit, queue_limit)
        self._deadline = deadline
        self._tasks: set[asyncio.Task[Any]] = set()  # those that are late are in it until they have really ended
        self._abandoned = 0

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
        """Under way, whether or not somebody still waits for it."""
        return len(self._tasks)

    @property
    def queued(self) -> int:
        """Not begun."""
        return self._slots.waiting

    @property
    def abandoned(self) -> int:
        """Ever given up because the deadline passed or the caller went away. Only grows."""
        return self._abandoned

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns or raises. Raises Unavailable with reason ``queue_full`` or ``deadline``.

        Nobody waits for the clearing up of what is late: a driver may need a silent server for that.
        """
        started = asyncio.get_running_loop().time()
        await self._slots.take(self._deadline)
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
            raise late(self.name, self._deadline)
        return task.result()

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    def _left(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # has been told to whoever still waited
        self._slots.give()
