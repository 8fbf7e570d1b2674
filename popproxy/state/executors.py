"""Bounded pools of threads for work that would block the event loop: password hashes, large files, later PAM and LDAP.

A pool never lets a login wait without end: it takes a bounded number of calls, and every call has a deadline. What it
cannot do in time is Unavailable, which the layers above never take for a refusal.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from popproxy.errors import Unavailable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(eq=False, slots=True)
class _Call:
    """One call of `run`: what to do, and the future in the caller's loop that waits for it."""

    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]


class BoundedExecutor:
    """At most `threads` calls at a time, at most `queue_limit` waiting, `deadline` seconds for waiting and running.

    All book-keeping happens in the event loop (one loop per pool), so it needs no lock; threads only take calls and
    hand back results. `concurrent.futures` is not used because it joins its threads at interpreter exit: one hanging
    call would then hang the shutdown.
    """

    def __init__(self, name: str, threads: int, queue_limit: int, deadline: float) -> None:
        self.name = name  # of the pool: label of the metrics, beginning of the threads' names
        self._limit = threads
        self._queue_limit = queue_limit
        self._deadline = deadline
        self._busy = 0  # calls that a thread has, whether or not somebody still waits for them
        self._waiting: deque[_Call] = deque()
        self._abandoned = 0
        self._started = 0  # threads; they are made on first use, since an idle proxy should stay small
        self._inbox: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._closed = False

    @property
    def limit(self) -> int:
        """Threads that there may be."""
        return self._limit

    @property
    def queue_limit(self) -> int:
        """Calls that may wait for one."""
        return self._queue_limit

    @property
    def busy(self) -> int:
        """Threads at work."""
        return self._busy

    @property
    def queued(self) -> int:
        """Calls that wait for a thread."""
        return len(self._waiting)

    @property
    def abandoned(self) -> int:
        """Calls ever left running because the deadline passed or the caller went away. Only grows."""
        return self._abandoned

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return ``function(*args)``, computed in a thread; an exception of it is raised here.

        Raises Unavailable with reason ``queue_full``, ``deadline``, ``closed`` or ``no_thread``. A thread cannot be
        cancelled: past the deadline, or when the caller is cancelled, a running call goes on unheard (`abandoned`),
        while one that still waits is dropped and never runs.
        """
        if self._closed:
            raise Unavailable(f"the {self.name} pool is closed", reason="closed")
        if self._busy >= self._limit and len(self._waiting) >= self._queue_limit:
            raise Unavailable(f"the {self.name} pool has {len(self._waiting)} calls waiting", reason="queue_full")
        loop = asyncio.get_running_loop()
        call = _Call(partial(function, *args), loop, loop.create_future())
        if self._busy < self._limit:
            self._start(call)
        else:
            self._waiting.append(call)
        # Not asyncio.timeout: a TimeoutError raised by the function itself must stay what it is.
        expiry = loop.call_later(self._deadline, self._expire, call)
        try:
            result: T = await call.answer
        except asyncio.CancelledError:
            if call.answer.cancelled():
                self._leave(call)
            else:
                call.answer.exception()  # it came too late for a caller that has gone away: nobody need be told
            raise
        finally:
            expiry.cancel()
        return result

    def close(self) -> None:
        """Take no more calls, refuse those that wait, let the threads end after what they are doing. Does not block."""
        self._closed = True
        while self._waiting:
            call = self._waiting.popleft()
            if not call.answer.done():
                call.answer.set_exception(Unavailable(f"the {self.name} pool is closed", reason="closed"))
        for _ in range(self._started):
            self._inbox.put(None)

    def _start(self, call: _Call) -> None:
        if self._busy == self._started:
            name = f"{self.name}-{self._started + 1}"
            try:
                threading.Thread(target=_serve, args=(self._inbox, self._finished), name=name, daemon=True).start()
            except RuntimeError as error:
                raise Unavailable(f"the {self.name} pool cannot start a thread: {error}", reason="no_thread") from None
            self._started += 1
        self._busy += 1
        self._inbox.put(call)

    def _expire(self, call: _Call) -> None:
        if not call.answer.done():
            self._leave(call)
            what = f"the {self.name} pool did not answer within {self._deadline:g} s"
            call.answer.set_exception(Unavailable(what, reason="deadline"))

    def _leave(self, call: _Call) -> None:
        if call in self._waiting:
            self._waiting.remove(call)
        else:
            self._abandoned += 1

    def _finished(self, call: _Call, result: Any, error: BaseException | None) -> None:
        self._busy -= 1
        if self._waiting:
            self._start(self._waiting.popleft())
        if call.answer.done():
            return
        if error is None:
            call.answer.set_result(result)
        else:
            call.answer.set_exception(error)


def _serve(
    inbox: queue.SimpleQueue[_Call | None], finished: Callable[[_Call, Any, BaseException | None], None]
) -> None:
    """Body of a thread. Keeps nothing between two calls: arguments may be passwords."""
    while (call := inbox.get()) is not None:
        result: Any = None
        failure: BaseException | None = None
        try:
            result = call.function()
        except StopIteration:
            failure = RuntimeError("the function raised StopIteration, which a future cannot carry")
        except BaseException as error:
            failure = error
        try:
            call.loop.call_soon_threadsafe(finished, call, result, failure)
        except RuntimeError:
            return  # the loop is closed: nobody is left to hear, and no further call will come
        finally:
            del call, result, failure
