"""A MemoryStore in words of JSON, for the program that goes on with it in the same process.

Times are those of its clock, which must be one that both programs share, as CLOCK_MONOTONIC is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from popproxy.state.bounded import LeakyCounters
from popproxy.state.local import COUNTERS
from popproxy.state.memory_store import Member, MemoryStore
from popproxy.state.shared import Leak, Level
from popproxy.state.worker_messages import change_from_json, change_to_json


def store_to_json(store: MemoryStore) -> dict[str, Any]:
    """All that it knows; its members by their place in the list. The secret is in it."""
    places = {member: place for place, member in enumerate(store.members)}
    return {
        "secret": store.secret.hex(),
        "members": [
            {"told": member.told, "backlog": [[age, change_to_json(change)] for age, change in member.backlog]}
            for member in store.members
        ],
        "leases": {
            key: [[places[member], count] for member, count in holders.items()] for key, holders in store.leases.items()
        },
        "counters": {
            kind: {
                "per_second": counters.leak.per_second, "keep": counters.leak.keep,
                "levels": [[key, level.value, level.age] for key, level in counters.levels()],
            }
            for kind, counters in store.counters.items()
        },
        "history": [[when, places.get(member, -1), change_to_json(change)] for when, member, change in store.history],
        "length": store.length,
        "marks": store.marks.left(),
        "claims": store.claims.left(),
        "notes": store.notes,
        "edition": store.edition,
        "blank": store.blank,
    }  # fmt: skip


def store_from_json(told: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> MemoryStore:
    """What `store_to_json` was given: with as many members, in the same order."""
    store = MemoryStore(clock)
    store.secret = bytes.fromhex(told["secret"])
    for one in told["members"]:
        member = Member(store)
        member.told = one["told"]
        member.backlog = [(age, change_from_json(change)) for age, change in one["backlog"]]
        store.members.append(member)
    for key, holders in told["leases"].items():
        store.leases[key] = {store.members[place]: count for place, count in holders}
        for member in store.leases[key]:
            member.held.add(key)
    for kind, known in told["counters"].items():
        counters = store.counters[kind] = LeakyCounters(Leak(known["per_second"], known["keep"]), COUNTERS, clock)
        for key, value, age in known["levels"]:
            counters.raise_to(key, Level(value, age))
    gone = Member(store)  # whoever has told it
    for when, place, change in told["history"]:
        store.history.append((when, gone if place < 0 else store.members[place], change_from_json(change)))
    store.length = told["length"]
    for key, seconds in told["marks"]:
        store.marks.claim(key, seconds)
    for key, seconds in told["claims"]:
        store.claims.claim(key, seconds)
    store.notes = told["notes"]
    store.edition = told["edition"]
    store.blank = told["blank"]
    return store
