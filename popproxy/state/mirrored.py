"""A SharedState over a store elsewhere: what must be known at once is kept here too, the rest is asked for.

Two things go on in the background. Operations (leases, marks, claims) are collected while the last ones are under way,
so that a busy process needs no more round trips than a calm one. And several times a second it tells what it has
counted, and hears what others have.

A store that does not answer is never waited for twice: until it is back everything is decided here, leases by this
process's share of the limits, and afterwards the store is told all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Literal

from popproxy.observe.logs import get_logger
from popproxy.observe.metrics import Metrics
from popproxy.state.bounded import ExpiringClaims, ExpiringMarks, LeakyCounters
from popproxy.state.local import CLAIMS, COUNTERS, MARKS
from popproxy.state.outbox import Outbox
from popproxy.state.shared import Claim, Leak, Lease, Level, SharingStatus, Want
from popproxy.state.store import (
    GRANTED,
    Counted,
    Heard,
    Hold,
    Make,
    Mark,
    Marked,
    Operation,
    Store,
    StoreAway,
    Take,
    Unmake,
)

INTERVAL: Final = 0.25
"""Seconds between two exchanges; twice that is how late what others count can be known."""
RENEWAL: Final = 900.0
"""Seconds in which each lease is told again: a store drops those that it has not heard of for an hour."""
_PATIENCE: Final = 2.0
"""Seconds between two attempts to reach a store that is away, at most."""
_CHUNK: Final = 500
"""Operations in one batch, so that none takes long."""
_RELEASES: Final = 0.02
"""Seconds that a lease given back waits for more of its like."""
_GATHER: Final = 0.004
"""Seconds between two batches: who comes meanwhile waits, so that a busy process asks for several logins together."""

log = get_logger("state")

Settle = Callable[[int | None], None]
"""Takes the answer to an operation; None if the store is away."""


class MirroredState:
    """See SharedState. `leaks` are the kinds of counters, `lifetimes` those of marks, in seconds."""

    def __init__(
        self, store: Store, leaks: Mapping[str, Leak], lifetimes: Mapping[str, float], metrics: Metrics,
        *, kind: Literal["workers", "redis"], clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._store = store
        self._kind = kind
        self._leaks = leaks
        self._lifetimes = lifetimes
        self._metrics = metrics
        self._clock = clock
        self._counters = {name: LeakyCounters(leak, COUNTERS, clock) for name, leak in leaks.items()}
        self._marks = {name: ExpiringMarks(seconds, MARKS, clock) for name, seconds in lifetimes.items()}
        self._claims = ExpiringClaims(CLAIMS, clock)
        self._notes: dict[str, dict[str, str]] = {}
        self._outbox = Outbox(clock)
        self._held: dict[str, int] = {}  # leases, by owner and what
        self._asked: dict[str, int] = {}  # those that the store is being asked for
        self._dirty: dict[str, None] = {}  # leases whose number the store does not know
        self._pending: list[tuple[Operation, Settle | None]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._soon: asyncio.TimerHandle | None = None  # when the next batch is due
        self._due = 0.0
        self._carried_out = 0.0  # when the latest was sent, in loop time
        self._touch: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._up = False
        self._alone = False
        self._members = 1
        self._cursor = ""
        self._away_since = clock()
        self._own_secret = secrets.token_bytes(32)
        self._renewal: Iterator[str] = iter(())
        store.neighbours.alone = self._set_alone

    # ---- life ----

    async def start(self) -> None:
        """Reach the store, or begin without it; then keep in touch."""
        with contextlib.suppress(StoreAway):
            await self._reach()
        self._touch = asyncio.get_running_loop().create_task(self._keep_in_touch())

    async def stop(self) -> None:
        """Tell the last, leave."""
        self._ending.set()  # to cancel it would not do: redis-py may take a cancellation for a failure of its own
        if self._touch is not None:
            await asyncio.wait((self._touch,))
        if self._soon is not None:
            self._soon.cancel()
        if self._flushing is not None:
            await asyncio.wait((self._flushing,), timeout=1.0)
        if self._up:
            with contextlib.suppress(StoreAway):
                await self._exchange()
        self._up = False
        await self._store.close()

    # ---- counters ----

    @property
    def secret(self) -> bytes:
        """See SharedState. While the store has not said, one of this process's own."""
        return self._store.secret or self._own_secret

    def level(self, kind: str, key: str) -> Level | None:
        """See SharedState."""
        return self._counters[kind].level(key)

    def add(self, kind: str, key: str) -> None:
        """See SharedState."""
        self._counters[kind].add(key)
        self._outbox.add(kind, key)

    def clear(self, kind: str, key: str) -> bool:
        """See SharedState."""
        there = self._counters[kind].clear(key)
        if there:
            self._outbox.clear(kind, key)
        return there

    def levels(self, kind: str) -> list[tuple[str, Level]]:
        """See SharedState."""
        return list(self._counters[kind].levels())

    def tracked(self, kind: str) -> int:
        """See SharedState."""
        return len(self._counters[kind])

    # ---- marks, claims, notes ----

    def mark(self, kind: str, key: str) -> None:
        """See SharedState."""
        if self._marks[kind].set(key):
            operation = Mark(f"{kind}\0{key}", self._lifetimes[kind])
            if self._up:
                self._submit(operation, None)
            else:
                self._outbox.later(operation)

    async def marked(self, kind: str, key: str) -> bool:
        """See SharedState."""
        return key in self._marks[kind] or await self._ask(Marked(f"{kind}\0{key}")) == 1

    async def claim(self, kind: str, key: str, seconds: float) -> Claim:
        """See SharedState."""
        name = f"{kind}\0{key}"
        if not self._claims.claim(name, seconds):
            return Claim.REPEATED
        operation = Make(name, seconds)
        answer = await self._ask(operation)
        if answer is None:
            self._outbox.later(operation)
            return Claim.FIRST_HERE
        return Claim.FIRST if answer else Claim.REPEATED

    def unclaim(self, kind: str, key: str) -> None:
        """See SharedState."""
        name = f"{kind}\0{key}"
        self._claims.unclaim(name)
        self._outbox.not_later(name)
        if self._up:
            self._submit(Unmake(name), None)

    def note(self, kind: str, key: str, text: str | None) -> None:
        """See SharedState."""
        self._outbox.note(kind, key, text)
        self._outbox.put_notes(self._notes)

    def notes(self, kind: str) -> Mapping[str, str]:
        """See SharedState."""
        return self._notes.get(kind, {})

    def status(self) -> SharingStatus:
        """See SharedState."""
        away = 0.0 if self._up else self._clock() - self._away_since
        return SharingStatus(self._kind, self._up, self._members, away)

    # ---- leases ----

    async def acquire(self, owner: str, wanted: Sequence[Want]) -> Lease | str:
        """See SharedState."""
        if not self._up or self._alone:
            return self._acquire_here(owner, wanted)
        taking = []
        for what, limit in wanted:
            key = f"{owner}\0{what}"
            have = self._held.get(key, 0)
            if have >= limit:
                return what
            taking.append((what, limit, have + self._asked.get(key, 0)))
        for what, _ in wanted:
            key = f"{owner}\0{what}"
            self._asked[key] = self._asked.get(key, 0) + 1
        future: asyncio.Future[Lease | str] = asyncio.get_running_loop().create_future()
        self._submit(Take(owner, tuple(taking)), partial(self._acquired, owner, wanted, future))
        return await future

    def _acquired(
        self, owner: str, wanted: Sequence[Want], future: asyncio.Future[Lease | str], answer: int | None
    ) -> None:
        for what, _ in wanted:
            key = f"{owner}\0{what}"
            self._asked[key] -= 1
            if not self._asked[key]:
                del self._asked[key]
            if answer != GRANTED:
                self._dirty[key] = None  # another that was asked for meanwhile may have been told with this one
        if answer is None:
            taken = self._acquire_here(owner, wanted)
        elif answer == GRANTED:
            taken = self._grant(owner, wanted)
        else:
            taken = wanted[answer][0]
            self._flush_soon()
        if not future.cancelled():
            future.set_result(taken)
        elif not isinstance(taken, str):
            taken.release()

    def _acquire_here(self, owner: str, wanted: Sequence[Want]) -> Lease | str:
        """Decide without the store. While it is away, by this process's share of the limit: one at least."""
        if not self._up:
            self._metrics.shared_state_local_decisions += 1
        parts = 1 if self._up else self._members
        for what, limit in wanted:
            if self._held.get(f"{owner}\0{what}", 0) >= math.ceil(limit / parts):
                return what
        lease = self._grant(owner, wanted)
        for what, _ in wanted:
            self._dirty[f"{owner}\0{what}"] = None
        self._flush_soon()
        return lease

    def _grant(self, owner: str, wanted: Sequence[Want]) -> _Lease:
        keys = [f"{owner}\0{what}" for what, _ in wanted]
        for key in keys:
            self._held[key] = self._held.get(key, 0) + 1
        return _Lease(self, keys)

    def give_back(self, keys: list[str]) -> None:
        """Called by a lease."""
        for key in keys:
            count = self._held[key] - 1
            if count:
                self._held[key] = count
            else:
                del self._held[key]
            self._dirty[key] = None
        self._flush_soon()

    def _set_alone(self, alone: bool) -> None:
        self._alone = alone
        if not alone:
            self._flush()

    # ---- operations ----

    async def _ask(self, operation: Operation) -> int | None:
        if not self._up:
            return None
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

        def settle(answer: int | None) -> None:
            if not future.done():
                future.set_result(answer)

        self._submit(operation, settle)
        return await future

    def _submit(self, operation: Operation, settle: Settle | None) -> None:
        self._pending.append((operation, settle))
        self._flush()

    def _flush_soon(self) -> None:
        if self._soon is None:
            self._flush_in(_RELEASES)

    def _flush(self) -> None:
        self._flush_in(max(0.0, self._carried_out + _GATHER - asyncio.get_running_loop().time()))

    def _flush_in(self, seconds: float) -> None:
        """Send a batch then, or when the one under way is through, unless one is due earlier."""
        if self._flushing is not None or not self._up:
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
        if self._flushing is None and self._up and (self._pending or self._dirty):
            self._flushing = asyncio.get_running_loop().create_task(self._operate())

    async def _operate(self) -> None:
        """Carry out what is pending; what comes meanwhile is for the next batch."""
        self._carried_out = asyncio.get_running_loop().time()
        try:
            await self._carry_out(self._next_batch())
        finally:
            self._flushing = None
            if not self._up:
                pending, self._pending = self._pending, []
                for _, settle in pending:
                    if settle is not None:
                        settle(None)
            elif self._pending:
                self._flush()
            elif self._dirty:
                self._flush_soon()

    def _next_batch(self) -> list[tuple[Operation, Settle | None]]:
        keys = list(self._dirty)[:_CHUNK]
        batch: list[tuple[Operation, Settle | None]] = []
        for key in keys:
            del self._dirty[key]
            owner, _, what = key.partition("\0")
            batch.append((Hold(owner, what, self._held.get(key, 0)), None))
        batch += self._pending[:_CHUNK]
        del self._pending[:_CHUNK]
        return batch

    async def _carry_out(self, batch: list[tuple[Operation, Settle | None]]) -> None:
        started = self._clock()
        answers: Sequence[int | None] = [None] * len(batch)
        try:
            answers = await self._store.execute([operation for operation, _ in batch])
        except StoreAway as error:
            self._lose(error)
        else:
            self._metrics.shared_state_duration.observe(self._clock() - started)
        finally:
            for (_, settle), answer in zip(batch, answers, strict=True):
                if settle is not None:
                    settle(answer)

    # ---- keeping in touch ----

    async def _keep_in_touch(self) -> None:
        patience = INTERVAL
        while not self._ending.is_set():
            try:
                if not self._up:
                    await self._reach()
                patience = INTERVAL
                while await self._exchange():
                    pass
            except StoreAway as error:
                self._lose(error)
                patience = min(patience * 2, _PATIENCE)
            except Exception:  # a bug, which must not end all sharing
                log.exception("sharing state failed")
                self._lose(StoreAway("internal error", "other"))
                patience = _PATIENCE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience * random.uniform(0.75, 1.0)):  # noqa: S311 - so that not all come at once
                    await self._ending.wait()

    async def _reach(self) -> None:
        try:
            await self._store.open(self._leaks)
        except StoreAway as error:
            self._metrics.shared_state_failures[error.reason] += 1
            raise
        self._up = True
        self._metrics.shared_state_up = 1
        away = self._clock() - self._away_since
        if self._cursor:
            log.info("the shared state is back", seconds=round(away, 1))
        self._tell_leases()
        for operation in self._outbox.take_later():
            self._pending.append((operation, None))
        await self._exchange()
        self._flush()

    def _lose(self, error: StoreAway) -> None:
        self._metrics.shared_state_failures[error.reason] += 1
        if self._up:
            self._up = self._alone = False
            self._away_since = self._clock()
            self._metrics.shared_state_up = 0
            log.warning(
                "the shared state is away: limits hold for this process alone, by its share", why=str(error),
                share=f"1/{self._members}",
            )  # fmt: skip

    def _tell_leases(self) -> None:
        self._dirty.update(dict.fromkeys(self._held))

    async def _exchange(self) -> bool:
        """Tell and hear once; is there more to be heard at once?"""
        told = self._outbox.told(self._cursor)
        heard = await self._store.exchange(told)
        self._outbox.has_told(told)
        self._apply(heard)
        self._renew()
        return heard.more or self._outbox.crowded

    def _apply(self, heard: Heard) -> None:
        for age, change in heard.changes:
            counters = self._counters.get(change.kind)
            if counters is None:
                continue  # of a member with another configuration
            if not isinstance(change, Counted):
                counters.raise_to(change.key, Level(change.value, change.age + age))
            elif change.amount:
                counters.add(change.key, change.amount, age)
            else:
                counters.clear(change.key)
        self._cursor = heard.cursor
        self._members = self._metrics.shared_state_members = heard.members
        if heard.forgotten:
            self._tell_leases()
            self._flush()
        if heard.wanted:
            self._outbox.know(self._counters, self._notes)
        elif heard.notes is not None:
            self._notes = {kind: dict(notes) for kind, notes in heard.notes.items()}
            self._outbox.put_notes(self._notes)

    def _renew(self) -> None:
        """Tell some of the leases again, so that each has its turn in time."""
        for _ in range(math.ceil(len(self._held) * INTERVAL / RENEWAL)):
            key = next(self._renewal, None)
            if key is None:
                self._renewal = iter(list(self._held))
                break
            if key in self._held:
                self._dirty[key] = None
        if self._dirty:
            self._flush()


class _Lease:
    __slots__ = ("_keys", "_state")

    def __init__(self, state: MirroredState, keys: list[str]) -> None:
        self._state = state
        self._keys = keys

    def release(self) -> None:
        keys, self._keys = self._keys, []
        if keys:
            self._state.give_back(keys)
