"""The state that replicas share, in Redis: one node, one behind Sentinel, or a cluster.

A replica is alive while it shows itself; leases count while their replica is alive. So nothing need be renewed for each
session, and what a replica held is free some seconds after it has died.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from popproxy.observe.logs import get_logger
from popproxy.observe.metrics import Metrics
from popproxy.state.redis_client import Client, RedisPlace
from popproxy.state.redis_scripts import BEAT, EXCHANGE, LEAVE, OPERATIONS
from popproxy.state.redis_values import Values
from popproxy.state.shared import Leak
from popproxy.state.store import Change, Heard, Hold, Make, Mark, Marked, Neighbours, Operation, StoreAway, Take, Told
from popproxy.types import Secret

SHARDS: Final = 16
"""Hash tags over which leases, marks and claims are spread in a cluster; a single node has one, so that one call does
all that is pending."""
AT_ONCE: Final = 1000
"""Changes that are heard in one exchange."""
_COMPLAINTS: Final = 60.0
"""Seconds between two log lines about values that are not ours."""

log = get_logger("state")


class RedisStore:
    """See Store. `lifetime` is how long after its last sign of life a replica counts as dead, in seconds."""

    def __init__(self, place: RedisPlace, key: Secret, metrics: Metrics, *, prefix: str, lifetime: float) -> None:
        self.neighbours = Neighbours()
        self._client = Client(place)
        self._values = Values(key)
        self._metrics = metrics
        self._lifetime = lifetime
        self._member = secrets.token_hex(8)
        self._tags = [f"{{{prefix}:{number}}}:" for number in range(SHARDS if place.kind == "cluster" else 1)]
        self._edition = ""
        self._beaten = 0.0
        self._complain_again = 0.0
        self.secret: bytes | None = self._values.shared_secret

    async def open(self, leaks: Mapping[str, Leak]) -> None:
        """See Store."""
        await self._client.open()
        self._beaten = 0.0

    async def close(self) -> None:
        """See Store."""
        try:
            for tag in self._tags:
                await self._client.run(LEAVE, [tag + "alive"], [self._member])
        except StoreAway:
            pass
        await self._client.close()

    # ---- leases, marks, claims ----

    async def execute(self, operations: Sequence[Operation]) -> list[int]:
        """See Store."""
        if len(self._tags) == 1:
            return await self._execute_in(0, operations)
        by_shard: dict[int, list[int]] = {}
        for number, operation in enumerate(operations):
            by_shard.setdefault(self._shard(operation), []).append(number)
        answers = [0] * len(operations)

        async def one(shard: int, numbers: list[int]) -> None:
            found = await self._execute_in(shard, [operations[number] for number in numbers])
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer

        await _all(one(shard, numbers) for shard, numbers in by_shard.items())
        return answers

    def _shard(self, operation: Operation) -> int:
        name = self._values.name(operation.owner if isinstance(operation, Take | Hold) else operation.key)
        return sum(name[:4].encode()) % len(self._tags)

    async def _execute_in(self, shard: int, operations: Sequence[Operation]) -> list[int]:
        tag, name = self._tags[shard], self._values.name
        keys = [tag + "alive"]

        def place(kind: str, text: str) -> int:
            keys.append(f"{tag}{kind}:{name(text)}")
            return len(keys)

        said: list[object] = []
        for one in operations:
            if isinstance(one, Take):
                wants = [(place("l", f"{one.owner}\0{what}"), limit, mine) for what, limit, mine in one.wanted]
                said.append(("t", 1, wants))
            elif isinstance(one, Hold):
                said.append(("h", place("l", f"{one.owner}\0{one.what}"), one.count))
            elif isinstance(one, Mark):
                said.append(("m", place("m", one.key), _milliseconds(one.seconds)))
            elif isinstance(one, Marked):
                said.append(("q", place("m", one.key)))
            elif isinstance(one, Make):
                said.append(("c", place("c", one.key), _milliseconds(one.seconds)))
            else:
                said.append(("u", place("c", one.key)))
        answer = await self._client.run(OPERATIONS, keys, [self._member, json.dumps(said, separators=(",", ":"))])
        try:
            *answers, dropped = map(int, answer.split())
        except (AttributeError, ValueError):
            raise _strange() from None
        self._rejected(dropped)
        for one, number in zip(operations, answers, strict=False):
            if not -1 <= number < (len(one.wanted) if isinstance(one, Take) else 2):
                raise _strange()
        if len(answers) != len(operations):
            raise _strange()
        return answers

    # ---- telling and hearing ----

    async def exchange(self, told: Told) -> Heard:
        """See Store."""
        other_shards_forgot = await self._beat()
        tag, values = self._tags[0], self._values
        epoch, _, cursor = told.cursor.partition("|")
        keys = [tag + name for name in ("alive", "history", "notes", "about", f"n:{self._member}", "asked")]
        arguments: list[str | int | bytes] = [
            self._member, _milliseconds(self._lifetime), told.number, epoch, cursor or "0-0", self._edition, AT_ONCE,
            secrets.token_hex(8), len(told.changes), *(values.seal_change(change) for change in told.changes),
        ]  # fmt: skip
        for note in told.notes:
            arguments += values.seal_note(*note)
        answer = await self._client.run(EXCHANGE, keys, arguments)
        try:
            about, entries, notes = answer
            now_epoch, now_cursor, members, forgotten, wanted, now, edition, count = about.decode("ascii").split()
            changes = self._changes(entries.decode("ascii").split(), int(now))
            found = None
            if edition != "-":
                self._edition, found = edition, self._notes(notes)
            return Heard(
                cursor=f"{now_epoch}|{now_cursor}", members=max(1, int(members)), changes=changes, notes=found,
                more=int(count) == AT_ONCE, forgotten=int(forgotten) == 1 or other_shards_forgot,
                wanted=int(wanted) == 1,
            )  # fmt: skip
        except (AttributeError, TypeError, ValueError):
            raise _strange() from None

    def _changes(self, entries: list[str], now: int) -> list[tuple[float, Change]]:
        found: list[tuple[float, Change]] = []
        strange = 0
        for when, member, sealed in zip(entries[::3], entries[1::3], entries[2::3], strict=True):
            if member == self._member:
                continue
            change = self._values.open_change(sealed)
            if change is None:
                strange += 1
            else:
                found.append((max(0.0, (now - int(when)) / 1000), change))
        self._rejected(strange)
        return found

    def _notes(self, said: list[Any]) -> dict[str, dict[str, str]]:
        notes: dict[str, dict[str, str]] = {}
        strange = 0
        for field, sealed in zip(said[::2], said[1::2], strict=False):
            note = self._values.open_note(field, sealed)
            if note is None:
                strange += 1
            else:
                kind, key, text = note
                notes.setdefault(kind, {})[key] = text
        self._rejected(strange)
        return notes

    async def _beat(self) -> bool:
        """The other shards are shown less often that this replica lives. Had one forgotten it?"""
        now = time.monotonic()
        if len(self._tags) == 1 or now - self._beaten < self._lifetime / 4:
            return False
        arguments: list[str | int | bytes] = [self._member, _milliseconds(self._lifetime)]
        answers = await _all(self._client.run(BEAT, [tag + "alive"], arguments) for tag in self._tags[1:])
        self._beaten = now
        return any(answers)

    def _rejected(self, count: int) -> None:
        if not count:
            return
        self._metrics.shared_state_rejected += count
        now = time.monotonic()
        if now >= self._complain_again:
            self._complain_again = now + _COMPLAINTS
            log.warning(
                "values in Redis were not written by popproxy, or with another key", count=count,
                cure="let nobody else write there, and give all replicas the same shared_state.key",
            )  # fmt: skip


async def _all(work: Iterable[Coroutine[Any, Any, object]]) -> list[object]:
    """Each is waited for, whatever becomes of the others; then the first failure is raised."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _strange() -> StoreAway:
    return StoreAway("Redis has answered what popproxy's script does not", "protocol")


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
