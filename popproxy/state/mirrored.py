"""A SharedState over a store elsewhere: what must be known at once is kept here too, the rest is asked for.

Two things go on in the background. Operations (leases, marks, claims) go to the store in batches. And several times a
second it tells what it has counted, and hears what others have.

A store that does not answer is never waited for twice: until it is back everything is decided here, leases by this
process's share of the limits, and afterwards the store is told all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Literal

from popproxy.observe.logs import get_logger
from popproxy.observe.metrics import Metrics
from popproxy.state.batches import Batches
from popproxy.state.bounded import ExpiringClaims, ExpiringMarks, LeakyCounters
from popproxy.state.leases import Leases
from popproxy.state.local import CLAIMS, COUNTERS, MARKS
from popproxy.state.outbox import Outbox
from popproxy.state.shared import Claim, Leak, Lease, Level, SharingStatus, Want
from popproxy.state.store import (
    GRANTED,
    Counted,
    Heard,
    Make,
    Mark,
    Marked,
    Store,
    StoreAway,
    Unmake,
)

INTERVAL: Final = 0.25
"""Seconds between two exchanges; twice that is how late what others count can be known."""
_PATIENCE: Final = 2.0
"""Seconds between two attempts to reach a store that is away, at most."""
log = get_logger("state")


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
        self._leases = Leases(self._leases_changed)
        self._batches = Batches(store, self._leases, metrics, clock, self._lose)
        self._touch: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._alone = False
        self._members = 1
        self._cursor = ""
        self._away_since = clock()
        self._own_secret = secrets.token_bytes(32)
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
        await self._batches.stop()
        if self._batches.up:
            with contextlib.suppress(StoreAway):
                await self._exchange()
        self._batches.up = False
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
            if self._batches.up:
                self._batches.submit(operation, None)
            else:
                self._outbox.later(operation)

    async def marked(self, kind: str, key: str) -> bool:
        """See SharedState."""
        return key in self._marks[kind] or await self._batches.ask(Marked(f"{kind}\0{key}")) == 1

    async def claim(self, kind: str, key: str, seconds: float) -> Claim:
        """See SharedState."""
        name = f"{kind}\0{key}"
        if not self._claims.claim(name, seconds):
            return Claim.REPEATED
        operation = Make(name, seconds)
        answer = await self._batches.ask(operation)
        if answer is None:
            self._outbox.later(operation)
            return Claim.FIRST_HERE
        return Claim.FIRST if answer else Claim.REPEATED

    def unclaim(self, kind: str, key: str) -> None:
        """See SharedState."""
        name = f"{kind}\0{key}"
        self._claims.unclaim(name)
        self._outbox.not_later(name)
        if self._batches.up:
            self._batches.submit(Unmake(name), None)

    def note(self, kind: str, key: str, text: str | None) -> None:
        """See SharedState."""
        self._outbox.note(kind, key, text)
        self._outbox.put_notes(self._notes)

    def notes(self, kind: str) -> Mapping[str, str]:
        """See SharedState."""
        return self._notes.get(kind, {})

    def status(self) -> SharingStatus:
        """See SharedState."""
        away = 0.0 if self._batches.up else self._clock() - self._away_since
        return SharingStatus(self._kind, self._batches.up, self._members, away)

    # ---- leases ----

    async def acquire(self, owner: str, wanted: Sequence[Want]) -> Lease | str:
        """See SharedState."""
        if not self._batches.up or self._alone:
            return self._acquire_here(owner, wanted)
        take = self._leases.ask(owner, wanted)
        if isinstance(take, str):
            return take
        future: asyncio.Future[Lease | str] = asyncio.get_running_loop().create_future()
        self._batches.submit(take, partial(self._acquired, owner, wanted, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not isinstance(taken := future.result(), str):
                taken.release()  # granted in the very moment in which who asked gave up
            raise

    def _acquired(
        self, owner: str, wanted: Sequence[Want], future: asyncio.Future[Lease | str], answer: int | None
    ) -> None:
        self._leases.answered(owner, wanted, granted=answer == GRANTED)
        if answer is None:
            taken = self._acquire_here(owner, wanted)
        elif answer == GRANTED:
            taken = self._leases.grant(owner, wanted)
        else:
            taken = wanted[answer][0]
            self._batches.flush_soon()
        if not future.cancelled():
            future.set_result(taken)
        elif not isinstance(taken, str):
            taken.release()

    def _acquire_here(self, owner: str, wanted: Sequence[Want]) -> Lease | str:
        """Decide without the store. While it is away, by this process's share of the limit: one at least."""
        if self._batches.up:
            return self._leases.decide(owner, wanted, 1)
        self._metrics.shared_state_local_decisions += 1
        return self._leases.decide(owner, wanted, self._members)

    def _leases_changed(self) -> None:
        self._batches.flush_soon()

    def _set_alone(self, alone: bool) -> None:
        self._alone = alone
        if not alone:
            self._batches.flush()

    # ---- keeping in touch ----

    async def _keep_in_touch(self) -> None:
        patience = INTERVAL
        while not self._ending.is_set():
            try:
                if not self._batches.up:
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
        self._batches.up = True
        self._metrics.shared_state_up = 1
        away = self._clock() - self._away_since
        if self._cursor:
            log.info("the shared state is back", seconds=round(away, 1))
        self._leases.forgotten()
        self._batches.put_off(self._outbox.take_later())
        await self._exchange()
        self._batches.flush()

    def _lose(self, error: StoreAway) -> None:
        self._metrics.shared_state_failures[error.reason] += 1
        if self._batches.up:
            self._batches.up = self._alone = False
            self._away_since = self._clock()
            self._metrics.shared_state_up = 0
            log.warning(
                "the shared state is away: limits hold for this process alone, by its share", why=str(error),
                share=f"1/{self._members}",
            )  # fmt: skip

    async def _exchange(self) -> bool:
        """Tell and hear once; is there more to be heard at once?"""
        told = self._outbox.told(self._cursor)
        heard = await self._store.exchange(told)
        self._outbox.has_told(told)
        self._apply(heard)
        self._leases.renew(INTERVAL)
        if self._leases.untold:
            self._batches.flush()
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
            self._leases.forgotten()
            self._batches.flush()
        if heard.wanted:
            self._outbox.know(self._counters, self._notes)
        elif heard.notes is not None:
            self._notes = {kind: dict(notes) for kind, notes in heard.notes.items()}
            self._outbox.put_notes(self._notes)
