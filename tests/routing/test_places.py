"""Where directories say that mail is: remembered, and older answers while they are down."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from popproxy.directories.entry import Answer, Entry, Refused
from popproxy.errors import Unavailable
from popproxy.routing import places
from popproxy.routing.places import PATIENCE, Places
from popproxy.types import AuthFailure, Location, Secret

NORTH, SOUTH = Location("north"), Location("south")
STRANGER = Refused(stranger=True)


@dataclass
class Finder:
    """A directory with a table."""

    users: dict[str, Answer]
    down: bool = False
    asked: list[str] = field(default_factory=list)
    name: str = "corp"
    kind: str = "ldap"

    async def find(self, user: str) -> Answer:
        self.asked.append(user)
        if self.down:
            raise Unavailable("corp: down")
        return self.users.get(user, STRANGER)


class Clock:
    time = 1000.0

    def __call__(self) -> float:
        return self.time


async def test_the_first_that_knows_the_user_decides() -> None:
    first = Finder({"alice": Entry(location=NORTH), "carol": Refused(AuthFailure.DISABLED), "dave": Entry()})
    second = Finder({user: Entry(location=SOUTH) for user in ("alice", "bob", "carol", "dave")})
    found = Places([first, second], 60, 600)
    assert await found.find("alice") == NORTH
    assert await found.find("bob") == SOUTH
    assert await found.find("carol") == Refused(AuthFailure.DISABLED)
    assert await found.find("dave") is None
    assert await found.find("nobody") is None
    assert second.asked == ["bob", "nobody"]


async def test_a_password_that_comes_with_a_place_lets_nobody_in() -> None:
    found = Places([Finder({"alice": Entry(location=Location("north", password=Secret("x")))})], 60, 600)
    for _ in range(2):
        assert await found.find("alice") == NORTH


async def test_one_that_is_down_is_not_passed_over() -> None:
    found = Places([Finder({}, down=True), Finder({"alice": Entry(location=SOUTH)})], 60, 600)
    with pytest.raises(Unavailable):
        await found.find("alice")


async def test_answers_count_for_a_while_and_longer_while_the_directory_is_down() -> None:
    clock, finder = Clock(), Finder({"alice": Entry(location=NORTH)})
    found = Places([finder], 60, 600, clock)
    assert await found.find("alice") == NORTH
    finder.users["alice"] = Entry(location=SOUTH)
    clock.time += 59
    assert await found.find("alice") == NORTH
    assert len(finder.asked) == 1
    finder.down = True
    clock.time += 1
    assert await found.find("alice") == NORTH
    clock.time += 600
    with pytest.raises(Unavailable):
        await found.find("alice")
    finder.down = False
    assert await found.find("alice") == SOUTH


async def test_what_was_said_before_the_mail_was_moved_does_not_count_even_if_the_directory_is_down() -> None:
    clock, finder = Clock(), Finder({"alice": Entry(location=NORTH)})
    found = Places([finder], 60, 600, clock)
    assert await found.find("alice") == NORTH
    clock.time += 5
    assert await found.find("alice", age=6) == NORTH
    finder.down = True
    with pytest.raises(Unavailable):
        await found.find("alice", age=5)
    finder.users["alice"], finder.down = Entry(location=SOUTH), False
    assert await found.find("alice", age=5) == SOUTH
    clock.time += 1
    assert await found.find("alice", age=6) == SOUTH
    assert len(finder.asked) == 3


async def test_a_directory_that_is_down_is_left_alone_for_a_moment_by_those_who_need_not_wait() -> None:
    clock, finder = Clock(), Finder({"alice": Entry(location=NORTH), "bob": Entry(location=NORTH)})
    found = Places([finder], 0, 600, clock)
    await found.find("alice")
    finder.down = True
    for _ in range(3):
        assert await found.find("alice") == NORTH
    assert len(finder.asked) == 2
    with pytest.raises(Unavailable):
        await found.find("bob")  # nothing serves instead, so it is tried
    clock.time += PATIENCE
    finder.down = False
    await found.find("alice")
    assert finder.asked == ["alice", "alice", "bob", "alice"]


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "CAPACITY", 10)
    finder = Finder({f"user{number}": Entry(location=NORTH) for number in range(30)})
    found = Places([finder], 60, 600)
    for number in range(30):
        await found.find(f"user{number}")
    for number in (29, 20, 19):
        await found.find(f"user{number}")
    assert finder.asked[30:] == ["user19"]


async def test_made_up_names_push_out_nothing_that_is_needed_when_the_directory_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "CAPACITY", 10)
    monkeypatch.setattr(places, "STRANGERS", 10)
    finder = Finder({"alice": Entry(location=NORTH), "dora": Refused(AuthFailure.DISABLED), "erik": Entry()})
    clock = Clock()
    found = Places([finder], 60, 600, clock)
    expected = {"alice": NORTH, "dora": Refused(AuthFailure.DISABLED), "erik": None, "ticket": None, "byrule": None}
    for user in expected:
        await found.find(user, proven=user == "ticket")
    found.confirm("byrule")  # a server that a rule names has let him in
    for number in range(50):
        await found.find(f"madeup{number}", proven=False)
    clock.time += 61
    finder.down = True
    assert {user: await found.find(user, proven=False) for user in expected} == expected
    assert len(found._strangers) == 10
    with pytest.raises(Unavailable):
        await found.find("madeup0", proven=False)
