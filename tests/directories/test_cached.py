"""A directory that is asked less: what it says counts for a while, and never what it refuses."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from popproxy.directories.cached import CachedDirectory, Kept
from popproxy.directories.entry import Answer, Entry, Refused
from popproxy.errors import Unavailable
from popproxy.state.remembered import Remembered
from popproxy.types import Address, AuthFailure, Location, Secret, Visit

PLACE = Location(pool="main")
HERE, THERE = (Visit(Address(host, 1), True, 1) for host in ("192.0.2.1", "192.0.2.2"))


@dataclass
class Directory:
    """Lets in by a table of passwords, or is down."""

    passwords: dict[str, str]
    entry: Entry = field(default_factory=lambda: Entry("alice@example.com", PLACE, "{PLAIN}hash"))
    down: bool = False
    asked: int = 0
    name: str = "corp"
    kind: str = "ldap"
    clock: float = 100.0
    counted: dict[tuple[str, str], float] = field(default_factory=lambda: {("corp", "hit"): 0, ("corp", "miss"): 0})

    async def verify(self, user: str, password: Secret, visit: Visit | None = None) -> Answer:
        self.asked += 1
        if self.down:
            raise Unavailable("corp: down")
        right = self.passwords.get(user) == password.reveal().decode()
        return self.entry if right else Refused(AuthFailure.BAD_CREDENTIALS)

    async def find(self, user: str) -> Answer:
        self.asked += 1
        return self.entry

    def cached(self, *, whence: bool = False, moved: dict[str, float] | None = None) -> CachedDirectory:
        remembered = Remembered[Kept](30, clock=lambda: self.clock)

        def since(user: str) -> float:
            return (moved or {}).get(user, 0.0)

        return CachedDirectory(self, remembered, self.counted, whence=whence, since=since)


async def test_what_was_said_before_the_users_mail_was_moved_does_not_count() -> None:
    """By either of his names: the one that he types, and that of his mailbox."""
    for name in ("alice", "alice@example.com"):
        directory, moved = Directory({"alice": "a"}), {"nobody": 1.0}
        cached = directory.cached(moved=moved)
        await cached.verify("alice", Secret("a"))
        moved[name] = time.time()
        for _ in range(2):
            await cached.verify("alice", Secret("a"))
        assert directory.asked == 2


async def test_a_right_password_is_asked_about_once_and_a_wrong_one_each_time() -> None:
    directory = Directory({"alice": "a"})
    cached = directory.cached()
    known = Entry("alice@example.com", PLACE)
    assert await cached.verify("alice", Secret("a")) == directory.entry
    assert await cached.verify("alice", Secret("a")) == known  # without the hash
    for _ in range(3):
        assert isinstance(await cached.verify("alice", Secret("b")), Refused)
        assert isinstance(await cached.verify("bob", Secret("a")), Refused)
    assert await cached.verify("alice", Secret("a")) == known
    assert directory.asked == 7
    assert directory.counted == {("corp", "hit"): 2, ("corp", "miss"): 7}


async def test_down_for_a_moment_turns_nobody_away_and_is_no_refusal() -> None:
    directory = Directory({"alice": "a", "bob": "b"})
    cached = directory.cached()
    await cached.verify("alice", Secret("a"))
    directory.down = True
    assert isinstance(await cached.verify("alice", Secret("a")), Entry)
    for user, password in (("bob", "b"), ("alice", "wrong")):
        with pytest.raises(Unavailable):
            await cached.verify(user, Secret(password))
    directory.clock += 30
    with pytest.raises(Unavailable):
        await cached.verify("alice", Secret("a"))
    directory.down = False
    assert isinstance(await cached.verify("alice", Secret("a")), Entry)


async def test_a_changed_password_takes_effect_in_time_and_the_new_one_at_once() -> None:
    directory = Directory({"alice": "old"})
    cached = directory.cached()
    await cached.verify("alice", Secret("old"))
    assert isinstance(await cached.verify("alice", Secret("new")), Refused)
    directory.passwords["alice"] = "new"
    assert isinstance(await cached.verify("alice", Secret("new")), Entry)
    directory.clock += 29.9
    assert isinstance(await cached.verify("alice", Secret("old")), Entry)
    directory.clock += 0.1
    assert isinstance(await cached.verify("alice", Secret("old")), Refused)


async def test_where_the_place_matters_an_answer_holds_for_there_alone() -> None:
    for whence, asked in ((True, 3), (False, 1)):
        directory = Directory({"alice": "a"})
        cached = directory.cached(whence=whence)
        for visit in (HERE, THERE, HERE, Visit(HERE.client, False, 2)):
            await cached.verify("alice", Secret("a"), visit)
        assert directory.asked == asked


async def test_an_answer_with_a_password_is_not_kept() -> None:
    directory = Directory({"alice": "a"}, Entry(None, Location(password=Secret("there"))))
    cached = directory.cached()
    for _ in range(2):
        await cached.verify("alice", Secret("a"))
    assert directory.asked == 2


async def test_places_are_always_asked_for() -> None:
    directory = Directory({})
    cached = directory.cached()
    for _ in range(2):
        assert await cached.find("alice") == directory.entry
    assert directory.asked == 2
