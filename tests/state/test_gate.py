"""Bounded work in the event loop: limits, turns, deadlines that nobody waits beyond."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

import pytest

from popproxy.errors import Unavailable
from popproxy.state.gate import Gate


async def answer(value: int = 1) -> int:
    return value


async def refused(gate: Gate) -> str:
    with pytest.raises(Unavailable) as caught:
        await gate.run(answer)
    return caught.value.reason


async def test_results_and_exceptions_are_those_of_the_work() -> None:
    gate = Gate("test", 1, 1, 10)
    assert await gate.run(answer) == 1

    async def fail() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await gate.run(fail)
    assert (gate.busy, gate.queued, gate.abandoned) == (0, 0, 0)


async def test_never_more_than_allowed_and_the_rest_in_turn() -> None:
    gate, most, order = Gate("test", 2, 10, 10), 0, []

    async def work(number: int) -> None:
        nonlocal most
        most = max(most, gate.busy)
        order.append(number)
        await asyncio.sleep(0)

    await asyncio.gather(*(gate.run(partial(work, number)) for number in range(8)))
    assert most == 2
    assert order == list(range(8))


async def test_a_full_queue_and_a_wait_beyond_the_deadline() -> None:
    gate = Gate("test", 1, 1, 0.2)
    held = asyncio.Event()

    async def hold() -> None:
        while not held.is_set():  # does not let itself be cancelled
            with contextlib.suppress(asyncio.CancelledError):
                await held.wait()

    first = asyncio.ensure_future(gate.run(hold))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(gate.run(answer))
    await asyncio.sleep(0)
    assert await refused(gate) == "queue_full"
    for late in (first, second):
        with pytest.raises(Unavailable) as caught:
            await late
        assert caught.value.reason == "deadline"
    assert (gate.busy, gate.abandoned) == (1, 1)  # what does not end keeps its place
    held.set()
    async with asyncio.timeout(30):
        while gate.busy:
            await asyncio.sleep(0)
    assert await gate.run(answer) == 1


async def test_a_caller_that_goes_away_takes_its_work_along() -> None:
    gate = Gate("test", 1, 1, 10)
    never = asyncio.Event()
    first = asyncio.ensure_future(gate.run(never.wait))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(gate.run(answer))
    await asyncio.sleep(0)
    waiting.cancel()
    first.cancel()
    await asyncio.wait({first, waiting})
    assert await gate.run(answer) == 1
    assert gate.abandoned == 1


async def test_closing_ends_what_is_under_way() -> None:
    gate = Gate("test", 1, 1, 10)
    first = asyncio.ensure_future(gate.run(asyncio.Event().wait))
    await asyncio.sleep(0)
    await gate.close()
    with pytest.raises(Unavailable):
        await first
