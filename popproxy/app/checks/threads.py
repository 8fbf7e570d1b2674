"""Blocking calls that may hang for good: in a name server, in a dead network file system."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread of its own that nobody waits for once we were cancelled, not even at exit.

    asyncio.to_thread is no help here: the program would not end before the thread does.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(put: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if future.done() else put())

    def run() -> None:
        try:
            result = function()
        except Exception as error:
            failure = error
            deliver(lambda: future.set_exception(failure))
        else:
            deliver(lambda: future.set_result(result))

    threading.Thread(target=run, daemon=True).start()
    return await future
