"""The bounded pool of threads: limits, deadline, counts. Threads are held by events, not by sleeping."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from popproxy.errors import Unavailable
from popproxy.state.executors import BoundedExecutor


class Gate:
    """A function for the pool that stays in its thread until the test opens it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.ran: list[str] = []

    def __call__(self, label: str) -> str:
        self.ran.append(label)
        self.entered.release()
        self.open.wait()
        return label

    async def wait_entered(self) -> None:
        await asyncio.to_thread(self.entered.acquire)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


async def settle(pool: BoundedExecutor, busy: int) -> None:
    while pool.busy != busy:
        await asyncio.sleep(0.001)


async def test_result_comes_from_a_named_daemon_thread() -> None:
    pool = BoundedExecutor("hashing", threads=2, queue_limit=1, deadline=10)
    thread = await pool.run(threading.current_thread)
    assert thread is not threading.main_thread()
    assert thread.daemon
    assert thread.name == "hashing-1"
    pool.close()


async def test_no_thread_before_the_first_call_and_one_for_sequential_calls() -> None:
    before = threading.active_count()
    pool = BoundedExecutor("lazy", threads=8, queue_limit=1, deadline=10)
    assert threading.active_count() == before
    threads = {(await pool.run(threading.current_thread)).ident for _ in range(5)}
    assert len(threads) == 1
    pool.close()


async def test_exception_of_the_function_reaches_the_caller() -> None:
    pool = BoundedExecutor("pool", threads=1, queue_limit=1, deadline=10)

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(TimeoutError, match="its own"):
        await pool.run(fail, TimeoutError("its own"))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await pool.run(fail, StopIteration())
    assert await pool.run(lambda: 1) == 1
    assert (pool.busy, pool.queued, pool.abandoned) == (0, 0, 0)
    pool.close()


async def test_full_queue_is_unavailable_at_once(gate: Gate) -> None:
    pool = BoundedExecutor("pool", threads=1, queue_limit=2, deadline=60)
    calls = [asyncio.ensure_future(pool.run(gate, str(n))) for n in range(3)]
    await gate.wait_entered()
    assert (pool.busy, pool.queued) == (1, 2)
    with pytest.raises(Unavailable) as refused:
        await pool.run(gate, "too many")
    assert refused.value.reason == "queue_full"
    gate.open.set()
    assert await asyncio.gather(*calls) == ["0", "1", "2"]
    assert gate.ran == ["0", "1", "2"]
    pool.close()


async def test_threads_work_side_by_side(gate: Gate) -> None:
    pool = BoundedExecutor("pool", threads=3, queue_limit=0, deadline=60)
    calls = [asyncio.ensure_future(pool.run(gate, str(n))) for n in range(3)]
    for _ in calls:
        await gate.wait_entered()
    assert pool.busy == 3
    with pytest.raises(Unavailable):
        await pool.run(gate, "fourth")
    gate.open.set()
    await asyncio.gather(*calls)
    pool.close()


async def test_deadline_of_a_running_call_counts_as_abandoned_and_the_thread_comes_back(gate: Gate) -> None:
    pool = BoundedExecutor("pool", threads=1, queue_limit=1, deadline=0.05)
    with pytest.raises(Unavailable) as late:
        await pool.run(gate, "stuck")
    assert late.value.reason == "deadline"
    assert (pool.busy, pool.abandoned) == (1, 1)
    gate.open.set()
    await settle(pool, busy=0)
    assert await pool.run(lambda: "again") == "again"
    pool.close()


async def test_deadline_of_a_waiting_call_drops_it(gate: Gate) -> None:
    pool = BoundedExecutor("pool", threads=1, queue_limit=1, deadline=0.05)
    results = await asyncio.gather(pool.run(gate, "runs"), pool.run(gate, "waits"), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable, Unavailable]
    assert (pool.queued, pool.abandoned) == (0, 1)
    gate.open.set()
    await settle(pool, busy=0)
    assert gate.ran == ["runs"]
    pool.close()


async def test_waiting_call_whose_caller_went_away_never_runs(gate: Gate) -> None:
    pool = BoundedExecutor("pool", threads=1, queue_limit=5, deadline=60)
    first = asyncio.ensure_future(pool.run(gate, "first"))
    await gate.wait_entered()
    gone = asyncio.ensure_future(pool.run(gate, "gone"))
    last = asyncio.ensure_future(pool.run(gate, "last"))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (pool.queued, pool.abandoned) == (1, 0)
    gate.open.set()
    await asyncio.gather(first, last)
    assert gate.ran == ["first", "last"]
    pool.close()


async def test_running_call_whose_caller_went_away_is_abandoned(gate: Gate) -> None:
    pool = BoundedExecutor("pool", threads=1, queue_limit=5, deadline=60)
    gone = asyncio.ensure_future(pool.run(gate, "gone"))
    await gate.wait_entered()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (pool.busy, pool.abandoned) == (1, 1)
    gate.open.set()
    await settle(pool, busy=0)
    pool.close()


async def test_close_refuses_waiting_and_new_calls_and_ends_the_threads(gate: Gate) -> None:
    pool = BoundedExecutor("closing", threads=1, queue_limit=5, deadline=60)
    running = asyncio.ensure_future(pool.run(gate, "running"))
    await gate.wait_entered()
    waiting = asyncio.ensure_future(pool.run(gate, "waiting"))
    await asyncio.sleep(0)
    pool.close()
    with pytest.raises(Unavailable) as refused:
        await waiting
    assert refused.value.reason == "closed"
    gate.open.set()
    assert await running == "running"
    with pytest.raises(Unavailable):
        await pool.run(gate, "new")
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("closing-")]:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


def test_hanging_call_does_not_hang_the_exit() -> None:
    program = """
import asyncio, threading
from popproxy.errors import Unavailable
from popproxy.state.executors import BoundedExecutor
async def main():
    try:
        await BoundedExecutor("pool", 1, 1, 0.05).run(threading.Event().wait)
    except Unavailable as error:
        print(error.reason)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "deadline\n", "")
