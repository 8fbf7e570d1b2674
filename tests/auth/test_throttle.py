"""Who is slowed down by wrong passwords, and who never is."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from popproxy.auth import throttle
from popproxy.auth.throttle import KNOWN, Penalty, Throttle, Throttled, leaks, lifetimes
from popproxy.auth.uniform import UniformDelay
from popproxy.config.model_abuse import Penalties
from popproxy.state.local import LocalState
from popproxy.types import Secret, ThrottleScope

ADDRESS, NETWORK = ThrottleScope.ADDRESS, ThrottleScope.NETWORK
PAIR, ACCOUNT, TOTAL = ThrottleScope.USER_ADDRESS, ThrottleScope.ACCOUNT, ThrottleScope.TOTAL

PASSWORDS = (Secret(f"canary-pw-{number}") for number in itertools.count())


class World:
    """A throttle, its clock, and how logins go."""

    def __init__(self, **config: Any) -> None:
        self.now = 1000.0
        penalties = Penalties.model_validate(config)
        self.state = LocalState(leaks(penalties), lifetimes(penalties), lambda: self.now)
        self.throttle = Throttle(penalties, self.state)

    async def login(
        self,
        user: str,
        host: str,
        password: Secret | None = None,
        right: bool = False,
        judged: asyncio.Event | None = None,
    ) -> str:
        """How one login goes: right, wrong, or the scope that it is refused for. It is judged after `judged`."""
        guess = self.throttle.guess(user, host)
        try:
            against = await guess.refused()
            if against is not None:
                return against.scope if against.behind is None else f"behind {against.scope}"
            if judged is not None:
                await judged.wait()
            if right:
                guess.right()
                return "right"
            await guess.wrong(password or next(PASSWORDS))
            return "wrong"
        finally:
            guess.close()

    async def penalties(self, everything: bool = False) -> list[Penalty]:
        return (await self.throttle.penalties(everything=everything))[0]

    async def taken(self, user: str, host: str, tries: int) -> int:
        """How many of `tries` wrong passwords are looked at."""
        return [await self.login(user, host) for _ in range(tries)].count("wrong")


# ---- one address ----


async def test_an_address_has_some_free_and_then_its_rate() -> None:
    world = World()
    users = (f"user{number}" for number in itertools.count())
    first = [await world.login(next(users), "192.0.2.1") for _ in range(200)]
    assert first == ["wrong"] * 20 + [ADDRESS] * 180
    later = 0
    for _ in range(600):  # ten minutes of hammering, a try a second
        world.now += 1
        later += await world.login(next(users), "192.0.2.1") == "wrong"
    assert 195 <= later <= 200


async def test_one_user_from_one_address_has_a_lower_rate() -> None:
    world = World()
    assert await world.taken("alice", "192.0.2.1", 50) == 10
    later = 0
    for _ in range(600):
        world.now += 1
        later += await world.taken("alice", "192.0.2.1", 1)
    assert 9 <= later <= 10


async def test_another_address_is_not_concerned() -> None:
    world = World()
    for number in range(100):
        await world.login(f"user{number}", "192.0.2.1")
    assert await world.login("alice", "192.0.2.1", right=True) == ADDRESS
    assert await world.login("alice", "192.0.2.2", right=True) == "right"


async def test_parallel_logins_cannot_overtake_the_count() -> None:
    world = World(address={"free": 5, "per_minute": 1})
    for number in range(5):
        await world.login(f"user{number}", "192.0.2.1")
    world.now += 60  # one is forgiven: one more may be looked at
    logins = await asyncio.gather(*(world.login(f"other{number}", "192.0.2.1") for number in range(16)))
    assert logins.count("wrong") == 1
    assert world.throttle._under_way == {}


async def test_parallel_logins_from_a_clean_address_cannot_either() -> None:
    world, judged = World(), asyncio.Event()
    logins = [asyncio.ensure_future(world.login("alice", "192.0.2.1", judged=judged)) for _ in range(100)]
    await asyncio.sleep(0.05)
    under_way = world.throttle._under_way[(ADDRESS, "192.0.2.1")]
    assert under_way == 14  # the ten that are free, and four that were not weighed
    judged.set()
    assert (await asyncio.gather(*logins)).count("wrong") == under_way
    assert world.throttle._under_way == world.throttle._waiting == {}
    assert await world.login("bob", "192.0.2.1", right=True) == "right"


async def test_an_office_behind_one_address_gets_in_on_monday_morning() -> None:
    world, judged = World(), asyncio.Event()
    logins = [
        asyncio.ensure_future(world.login(f"user{number}", "192.0.2.1", right=True, judged=judged))
        for number in range(500)
    ]
    await asyncio.sleep(0.05)
    assert world.throttle._under_way[(ADDRESS, "192.0.2.1")] == 20
    judged.set()
    assert set(await asyncio.gather(*logins)) == {"right"}
    assert world.throttle._under_way == world.throttle._waiting == {}


async def test_who_belongs_there_waits_for_nobody_until_something_is_wrong() -> None:
    world, judged = World(), asyncio.Event()
    assert await world.login("alice", "192.0.2.1", right=True) == "right"
    logins = [asyncio.ensure_future(world.login("alice", "192.0.2.1", judged=judged)) for _ in range(30)]
    await asyncio.sleep(0.05)
    assert world.throttle._waiting == {}
    judged.set()
    assert (await asyncio.gather(*logins)).count("wrong") == 30
    assert await world.login("alice", "192.0.2.1", right=True) == PAIR  # for all that were too many
    world.now += 20 * 60
    assert await world.taken("alice", "192.0.2.1", 50) == 0
    world.now += 2 * 60
    assert await world.taken("alice", "192.0.2.1", 50) in (1, 2)


async def test_those_who_wait_hear_of_wrong_passwords_at_once() -> None:
    world, judged = World(address={"free": 5, "per_minute": 1}), asyncio.Event()
    first = [asyncio.ensure_future(world.login(f"guess{number}", "192.0.2.1", judged=judged)) for number in range(5)]
    await asyncio.sleep(0)
    second = [asyncio.ensure_future(world.login(f"user{number}", "192.0.2.1", right=True)) for number in range(50)]
    await asyncio.sleep(0)
    judged.set()
    assert set(await asyncio.gather(*first)) == {"wrong"}
    async with asyncio.timeout(30):
        assert set(await asyncio.gather(*second)) == {ADDRESS}


async def test_waiting_for_others_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "PATIENCE", 0.05)
    world, never = World(address={"free": 5, "per_minute": 1}), asyncio.Event()
    stuck = [asyncio.ensure_future(world.login(f"user{number}", "192.0.2.1", judged=never)) for number in range(9)]
    await asyncio.sleep(0)
    assert await world.login("alice", "192.0.2.1", right=True) == f"behind {ADDRESS}"
    assert world.throttle._waiting == {}
    never.set()
    await asyncio.gather(*stuck)


async def test_who_goes_while_he_waits_takes_nobodys_turn() -> None:
    world, judged = World(address={"free": 5, "per_minute": 1}), asyncio.Event()
    first = [
        asyncio.ensure_future(world.login(f"user{number}", "192.0.2.1", right=True, judged=judged))
        for number in range(5)
    ]
    await asyncio.sleep(0)
    goes = [asyncio.ensure_future(world.login(f"gone{number}", "192.0.2.1", right=True)) for number in range(3)]
    stays = asyncio.ensure_future(world.login("alice", "192.0.2.1", right=True))
    await asyncio.sleep(0)
    goes[2].cancel()
    judged.set()
    await first[0]  # the next one has been called, and has not heard of it
    for task in goes:
        task.cancel()
    async with asyncio.timeout(30):
        assert await stays == "right"
    await asyncio.gather(*first)
    await asyncio.wait(goes)
    assert world.throttle._under_way == world.throttle._waiting == {}


async def test_what_nobody_has_judged_is_not_counted() -> None:
    world = World(address={"free": 5, "per_minute": 1})
    await world.login("alice", "192.0.2.1")
    for number in range(100):  # a server is down: closed without right or wrong
        guess = world.throttle.guess(f"user{number}", "192.0.2.1")
        assert await guess.refused() is None
        guess.close()
    assert await world.taken("bob", "192.0.2.1", 100) == 4


async def test_the_refusal_says_when_the_next_one_is_looked_at() -> None:
    world = World()
    for number in range(25):
        await world.login(f"user{number}", "192.0.2.1")
    guess = world.throttle.guess("alice", "192.0.2.1")
    against = await guess.refused()
    assert isinstance(against, Throttled)
    assert against.scope is ADDRESS
    assert against.seconds == pytest.approx(3.0)
    world.now += 3.001
    assert await guess.refused() is None
    guess.close()


# ---- IPv6 ----


async def test_ipv6_is_counted_by_64_and_by_48() -> None:
    world = World()
    one = [await world.login(f"a{number}", f"2001:db8:1:1::{number:x}") for number in range(30)]
    assert one == ["wrong"] * 20 + [ADDRESS] * 10
    assert await world.login("b", "2001:db8:1:2::1") == "wrong"
    hopping = [await world.login(f"c{number}", f"2001:db8:1:{number:x}::1") for number in range(0x100, 0x200)]
    assert hopping.count("wrong") == 100 - 21
    assert hopping[-1] == NETWORK
    assert await world.login("alice", "2001:db8:2::1", right=True) == "right"


async def test_mapped_addresses_are_ipv4_and_scopes_do_not_matter() -> None:
    world = World()
    assert world.throttle.place("::ffff:192.0.2.1").near == "192.0.2.1"
    assert world.throttle.place("fe80::1%eth0").near == "fe80::/64"


async def test_hopping_in_a_48_makes_no_newcomer() -> None:
    world = World(network={"free": 10_000, "per_minute": 1})
    tries = [await world.login("alice", f"2001:db8:1:{number:x}::1") for number in range(200)]
    assert tries.count("wrong") == 10
    assert tries[-1] == ACCOUNT


# ---- one account ----


async def test_many_addresses_at_one_account_get_a_common_rate() -> None:
    world = World()
    attackers = [f"198.51.100.{number}" for number in range(50)]
    first = sum([await world.taken("alice", attacker, 3) for attacker in attackers])
    assert first == 9 + 47  # nine of the first three, while they are free; then one of each newcomer
    minutes = []
    for _ in range(8):
        taken = 0
        for _ in range(60):
            world.now += 1
            for attacker in attackers:
                taken += await world.taken("alice", attacker, 1)
        minutes.append(taken)
    assert max(minutes) <= 10, minutes
    assert sum(minutes) <= 8 * 6, minutes


async def test_the_user_gets_in_from_a_clean_address_while_others_guess() -> None:
    world = World()
    for minute in range(10):
        for number in range(50):
            await world.taken("alice", f"198.51.100.{number}", 3)
        world.now += 60
        assert await world.login("alice", f"192.0.2.{minute}", right=True) == "right"


async def test_very_many_newcomers_are_slowed_down_but_not_where_the_user_has_been() -> None:
    world = World()
    assert await world.login("alice", "192.0.2.1", right=True) == "right"
    tries = [await world.login("alice", f"10.0.{number // 250}.{number % 250}") for number in range(1000)]
    assert tries.count("wrong") == 110
    assert await world.login("alice", "192.0.2.99", right=True) == ACCOUNT
    assert await world.login("alice", "192.0.2.1", right=True) == "right"


async def test_nobody_is_locked_out_where_he_has_logged_in() -> None:
    world = World()
    assert await world.login("alice", "192.0.2.1", right=True) == "right"
    for number in range(300):  # a neighbour behind the same address goes wild
        await world.login(f"user{number}", "192.0.2.1")
    assert await world.login("bob", "192.0.2.1", right=True) == ADDRESS
    assert await world.login("alice", "192.0.2.1", right=True) == "right"
    world.now += 8 * 86400
    for number in range(300):
        await world.login(f"user{number}", "192.0.2.1")
    assert await world.login("alice", "192.0.2.1", right=True) == ADDRESS  # that was long ago


async def test_where_the_user_has_been_guessing_at_him_is_slow_too() -> None:
    world = World()
    assert await world.login("alice", "192.0.2.1", right=True) == "right"
    assert await world.taken("alice", "192.0.2.1", 100) == 10
    world.now += 61
    assert await world.login("alice", "192.0.2.1", right=True) == "right"
    assert await world.taken("alice", "192.0.2.1", 100) == 10  # the right one has cleared him


async def test_one_address_does_not_slow_down_an_account_elsewhere() -> None:
    world = World()
    await world.taken("alice", "198.51.100.1", 1000)
    assert await world.login("alice", "192.0.2.1", right=True) == "right"


# ---- the same wrong password ----


async def test_the_same_wrong_password_counts_once_wherever_the_telephone_is() -> None:
    world = World()
    forgotten = Secret("canary-pw-of-last-year")
    tries = [await world.login("alice", f"192.0.2.{number % 3}", forgotten) for number in range(300)]
    assert set(tries) == {"wrong"}
    assert await world.login("alice", "192.0.2.1", right=True) == "right"
    assert [penalty.level for penalty in await world.penalties(True)] == [pytest.approx(1.0)] * 4


async def test_the_same_password_for_many_users_counts_each_time() -> None:
    world = World()
    spray = Secret("canary-pw-summer")
    tries = [await world.login(f"user{number}", "192.0.2.1", spray) for number in range(40)]
    assert tries.count("wrong") == 20


async def test_nothing_that_is_kept_holds_the_password() -> None:
    world = World()
    await world.login("alice", "192.0.2.1", Secret("canary-pw-kept"))
    kept = [*world.state._marks["wrong_password"]._until, *map(str, await world.penalties(True))]
    assert kept
    assert not any("canary" in text for text in kept)


async def test_challenge_responses_count_each_time() -> None:
    world = World()
    for _ in range(3):
        guess = world.throttle.guess("alice", "192.0.2.1")
        await guess.wrong(None)
        guess.close()
    assert {round(penalty.level) for penalty in await world.penalties(True)} == {3}


# ---- total, allow-lists, off ----


async def test_the_total_slows_down_only_who_was_wrong_lately() -> None:
    world = World(total={"free": 100, "per_minute": 1})
    for number in range(100):
        assert await world.login(f"user{number}", f"10.0.0.{number}") == "wrong"
    assert await world.login("alice", "10.0.0.1", right=True) == TOTAL
    assert await world.login("alice", "192.0.2.1", right=True) == "right"
    world.now += 3601
    for number in range(100):
        await world.login(f"other{number}", f"10.0.1.{number}")
    assert await world.login("alice", "10.0.0.1", right=True) == "right"


async def test_networks_that_are_allowed_are_neither_counted_nor_refused() -> None:
    world = World(allow=["192.0.2.0/24", "2001:db8::/32"])
    for host in ("192.0.2.1", "2001:db8::1"):
        assert await world.taken("alice", host, 300) == 300
        world.throttle.misbehaved(host)
    assert await world.penalties(True) == []
    assert await world.taken("alice", "198.51.100.1", 300) == 10


async def test_penalties_can_be_switched_off() -> None:
    world = World(enabled=False)
    assert await world.taken("alice", "192.0.2.1", 300) == 300
    assert await world.penalties(True) == []


async def test_forgeries_count_against_the_address_alone() -> None:
    world = World()
    for _ in range(20):
        world.throttle.misbehaved("192.0.2.1")
    assert await world.login("alice", "192.0.2.1") == ADDRESS
    assert {penalty.scope for penalty in await world.penalties(True)} == {ADDRESS, TOTAL}


# ---- for operators ----


async def test_operators_see_who_is_slowed_down_and_for_how_long() -> None:
    world = World()
    await world.taken("alice", "192.0.2.1", 50)
    await world.login("bob", "192.0.2.2")
    assert [(p.scope, p.user, p.address, p.limit) for p in await world.penalties()] == [
        (PAIR, "alice", "192.0.2.1", 10),
        (ACCOUNT, "alice", "", 10),
    ]
    assert [round(penalty.seconds) for penalty in await world.penalties()] == [60, 10]
    assert len(await world.penalties(True)) == 7


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ({"user": "alice"}, {(ADDRESS, "", "192.0.2.1"), (PAIR, "bob", "192.0.2.1"), (ACCOUNT, "bob", "")}),
        ({"network": "192.0.2.0/24"}, {(ACCOUNT, "alice", ""), (ACCOUNT, "bob", "")}),
        ({"network": "192.0.2.1"}, {(ACCOUNT, "alice", ""), (ACCOUNT, "bob", "")}),
        (
            {"user": "alice", "network": "192.0.2.1"},
            {(ADDRESS, "", "192.0.2.1"), (PAIR, "bob", "192.0.2.1"), (ACCOUNT, "bob", ""), (ACCOUNT, "alice", "")},
        ),
    ],
)
async def test_operators_forgive_a_user_an_address_or_both(
    what: dict[str, str], left: set[tuple[ThrottleScope, str, str]]
) -> None:
    world = World()
    await world.taken("alice", "192.0.2.1", 20)
    await world.login("bob", "192.0.2.1")
    assert await world.throttle.forgive(**what) > 0
    penalties = await world.penalties(True)
    assert {(p.scope, p.user, p.address) for p in penalties} == {*left, (TOTAL, "", "")}


async def test_a_flood_is_listed_in_part_and_counted_whole() -> None:
    world = World()
    for number in range(3000):
        await world.login(f"user{number}", f"10.0.{number // 250}.{number % 250}")
    await world.taken("alice", "192.0.2.1", 10)
    penalties, total = await world.throttle.penalties(everything=True, most=5)
    assert (len(penalties), total) == (5, 3 * 3000 + 4)
    assert {penalty.scope for penalty in penalties} >= {TOTAL, PAIR}


async def test_operators_forgive_everybody() -> None:
    world = World()
    await world.taken("alice", "192.0.2.1", 20)
    assert await world.throttle.forgive() == 4
    assert await world.login("alice", "192.0.2.1", right=True) == "right"


async def test_forgiving_no_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="host bits"):
        await World().throttle.forgive(network="192.0.2.1/24")


# ---- the plain path ----


async def test_a_login_that_nothing_speaks_against_leaves_only_the_mark_of_where_it_was() -> None:
    world = World()
    assert await world.login("alice", "192.0.2.1", right=True) == "right"
    assert await world.penalties(True) == []
    assert world.throttle._under_way == {}
    assert await world.state.marked(KNOWN, "alice\x00192.0.2.1")


# ---- one duration ----


def test_every_wrong_login_is_answered_after_the_least_delay() -> None:
    delay = UniformDelay(2.0)
    assert [delay.answer_at(10.0, 10.0 + took) for took in (0.0, 0.3, 1.99)] == [12.0, 12.0, 12.0]


def test_a_slow_judge_raises_the_delay_for_all() -> None:
    delay = UniformDelay(2.0)
    assert delay.answer_at(0.0, 2.04) == 2.5
    assert [delay.answer_at(100.0, 100.0 + took) for took in (0.0, 2.04, 2.4)] == [102.5] * 3


def test_the_delay_comes_down_a_while_after_it_was_last_needed() -> None:
    delay = UniformDelay(2.0)
    delay.answer_at(0.0, 2.04)
    delay.answer_at(800.0, 802.04)
    assert delay.answer_at(1600.0, 1600.0) == 1602.5
    assert delay.answer_at(1800.0, 1800.0) == 1802.0


def test_one_that_never_ends_does_not_make_everybody_wait_for_ever() -> None:
    delay = UniformDelay(2.0)
    assert delay.answer_at(0.0, 60.0) == 8.0  # past: at once
    assert delay.answer_at(100.0, 100.0) == 108.0


def test_without_a_delay_there_is_none() -> None:
    delay = UniformDelay(0.0)
    assert [delay.answer_at(5.0, 5.0 + took) for took in (0.0, 1.0)] == [5.0, 5.0]
