"""Operations on their way to a store: collected while the last ones are under way, and answered together.

So a busy process needs no more round trips than a calm one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from popproxy.observe.metrics import Metrics
from popproxy.state.leases import Leases
from popproxy.state.store import Operation, Store, StoreAway

_CHUNK: Final = 500
"""Operations in one batch, so that none takes long."""
_RELEASES: Final = 0.02
"""Seconds that a lease given back waits for more of its like."""
_GATHER: Final = 0.004
"""Seconds between two batches: who comes meanwhile waits, so that a busy process asks for several logins together."""

Settle = Callable[[int | None], None]
"""Takes the answer to an operation; None if the store is away."""


class Batches:
    """Carries out what is submitted, and tells what `leases` have to tell.

    Nothing is sent unless `up` is set, which is for its owner to do. It calls `lost` when the store does not answer:
    unless `up` is still set after that, all that waits gets None for an answer.
    """

    def __init__(
        self, store: Store, leases: Leases, metrics: Metrics, clock: Callable[[], float],
        lost: Callable[[StoreAway], None],
    ) -> None:  # fmt: skip
        self.up = False
        self._store = store
        self._leases = leases
        self._metrics = metrics
        self._clock = clock
        self._lost = lost
        self._pending: list[tuple[Operation, Settle | None]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._soon: asyncio.TimerHandle | None = None  # when the next batch is due
        self._due = 0.0
        self._carried_out = 0.0  # when the latest was sent, in loop time

    async def stop(self) -> None:
        """Wait a little for the one under way; begin no other."""
        if self._soon is not None:
            self._soon.cancel()
        if self._flushing is not None:
            await asyncio.wait((self._flushing,), timeout=1.0)

    async def ask(self, operation: Operation) -> int | None:
        """The answer to an operation; None if the store is away."""
        if not self.up:
            return None
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

        def settle(answer: int | None) -> None:
            if not future.done():
                future.set_result(answer)

        self.submit(operation, settle)
        return await future

    def submit(self, operation: Operation, settle: Settle | None) -> None:
        """Have it carried out with the next batch. `settle` hears of it, whatever comes."""
        self._pending.append((operation, settle))
        self.flush()

    def put_off(self, operations: Sequence[Operation]) -> None:
        """Have these carried out once there is another reason for a batch. Nobody hears of them."""
        self._pending += [(operation, None) for operation in operations]

    def flush_soon(self) -> None:
        """There is something to be told, for which a batch may wait a little."""
        if self._soon is None:
            self._flush_in(_RELEASES)

    def flush(self) -> None:
        """There is something to be told or done."""
        self._flush_in(max(0.0, self._carried_out + _GATHER - asyncio.get_running_loop().time()))

    def _flush_in(self, seconds: float) -> None:
        """Send a batch then, or when the one under way is through, unless one is due earlier."""
        if self._flushing is not None or not self.up:
            return
        loop = asyncio.get_running_loop()
        if self._soon is not None:
            if seconds and self._due <= loop.time() + seconds:
                return
            self._soon.cancel()
            self._soon = None
        if seconds:
            self._due = loop.time() + seconds
            self._soon = loop.call_later(seconds, self._flush_now)
        else:
            self._flush_now()

    def _flush_now(self) -> None:
        self._soon = None
        if self._flushing is None and self.up and (self._pending or self._leases.untold):
            self._flushing = asyncio.get_running_loop().create_task(self._operate())

    async def _operate(self) -> None:
        """Carry out what is pending; what comes meanwhile is for the next batch."""
        self._carried_out = asyncio.get_running_loop().time()
        try:
            await self._carry_out(self._next())
        finally:
            self._flushing = None
            if not self.up:
                pending, self._pending = self._pending, []
                for _, settle in pending:
                    if settle is not None:
                        settle(None)
            elif self._pending:
                self.flush()
            elif self._leases.untold:
                self.flush_soon()

    def _next(self) -> list[tuple[Operation, Settle | None]]:
        batch: list[tuple[Operation, Settle | None]] = [(hold, None) for hold in self._leases.tell(_CHUNK)]
        batch += self._pending[:_CHUNK]
        del self._pending[:_CHUNK]
        return batch

    async def _carry_out(self, batch: list[tuple[Operation, Settle | None]]) -> None:
        started = self._clock()
        answers: Sequence[int | None] = [None] * len(batch)
        try:
            answers = await self._store.execute([operation for operation, _ in batch])
        except StoreAway as error:
            self._lost(error)
        else:
            self._metrics.shared_state_duration.observe(self._clock() - started)
        finally:
            for (_, settle), answer in zip(batch, answers, strict=True):
                if settle is not None:
                    settle(answer)
