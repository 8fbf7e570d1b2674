"""Slows down guessing, and nobody else.

A wrong password counts against the address it came from, the user it was for, both together, and the total. Each has
some free, and a rate at which they are forgiven; what is beyond is refused without a look at the password:

* an address guesses at that rate, at all users together, and at a lower one at a single user;
* a user who is guessed at from many addresses loses only addresses that were wrong about him lately, and newcomers only
  once there are very many of them. An address from which he has logged in is never refused for what others do, so
  nobody can lock him out;
* the same wrong password of a user counts once: a telephone that was not told of the new one harms nobody;
* what fails because of us is never counted, and neither is a password that nobody got to look at;
* logins under way could each be wrong, but need not: those that come while there are so many wait for them, so that an
  office behind one address gets in on Monday morning, and many connections are no way round the count.

A login that nothing speaks against costs a look-up for its address and one for its user.
"""

from __future__ import annotations

import asyncio
import heapq
import hmac
import ipaddress
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from popproxy.config.model_abuse import Penalties
from popproxy.state.shared import Leak, Level, SharedState
from popproxy.types import Secret, ThrottleScope

KNOWN: Final = "known"
"""Kind of mark: this user has logged in from this address."""
SEEN: Final = "wrong_password"
"""Kind of mark: this password of this user has been wrong before."""
SEEN_SECONDS: Final = 86_400.0
_AT_ONCE: Final = 4
"""Logins from one address that may be under way without being weighed."""
PATIENCE: Final = 10.0
"""Seconds that a login waits for those before it."""
_EVERYBODY: Final = "*"  # the key of the total
_PLACES = 8192  # client addresses of which is remembered what they belong to


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client is: `near` is the address, or an IPv6 /64; `wide` an IPv6 /48, or nothing."""

    near: str
    wide: str | None
    allowed: bool


@dataclass(frozen=True, slots=True)
class Throttled:
    """A login that is refused: for what, and after how many seconds it would be looked at if nothing else happens.

    `behind` is set if nothing speaks against it but others that are under way, which it has waited for in vain.
    """

    scope: ThrottleScope
    seconds: float
    behind: tuple[ThrottleScope, str] | None = None


@dataclass(frozen=True, slots=True)
class Penalty:
    """What is counted against somebody, for operators. `user` and `address` are empty where the scope has none.

    `level` is the number of wrong passwords not forgiven yet, `limit` how many are free, `age` the seconds since the
    latest, `seconds` how long logins are refused if nothing else happens (0: they are not).
    """

    scope: ThrottleScope
    user: str
    address: str
    level: float
    limit: int
    age: float
    seconds: float


def leaks(config: Penalties) -> dict[str, Leak]:
    """The kinds of counters that a throttle needs of the shared state."""
    per_minute = {scope: _allowance(config, scope)[1] for scope in ThrottleScope}
    longest = max(_allowance(config, scope)[0] * 60 / rate for scope, rate in per_minute.items())
    return {scope: Leak(rate / 60, config.memory + longest) for scope, rate in per_minute.items()}


def lifetimes(config: Penalties) -> dict[str, float]:
    """The kinds of marks that a throttle needs of the shared state."""
    return {KNOWN: config.known, SEEN: SEEN_SECONDS}


class Throttle:
    """The rules, over counters that are kept elsewhere."""

    def __init__(self, config: Penalties, state: SharedState) -> None:
        self.config = config
        self.state = state
        self._free = {scope: _allowance(config, scope)[0] for scope in ThrottleScope}
        self._per_second = {scope: _allowance(config, scope)[1] / 60 for scope in ThrottleScope}
        self._under_way: dict[tuple[ThrottleScope, str], int] = {}  # logins being looked at, where something counts
        self._waiting: dict[tuple[ThrottleScope, str], deque[asyncio.Future[None]]] = {}  # for one of those to end
        self.place = lru_cache(_PLACES)(self._place)

    def guess(self, user: str, host: str) -> Guess:
        """A login of the canonical `user` from the address `host` is about to be judged."""
        return Guess(self, user, self.place(host))

    def misbehaved(self, host: str) -> None:
        """The client at `host` has sent what nobody mistypes: a control character, a forged ticket."""
        place = self.place(host)
        if not place.allowed:
            self._count_place(place)

    async def penalties(self, *, everything: bool = False, most: int = 1000) -> tuple[list[Penalty], int]:
        """Who is refused now, the longest first; with `everything` also what is only counted.

        At most `most` of them, and how many there are. Lets others have their turn: a flood fills large tables.
        """
        found: list[tuple[float, float, ThrottleScope, str, Level]] = []
        for scope in ThrottleScope:
            for key, level in self.state.levels(scope):
                seconds = max(0.0, level.value + 1 - self._free[scope]) / self._per_second[scope]
                if scope is ThrottleScope.USER_ADDRESS and key.endswith("/48"):
                    continue  # which refuses nothing by itself
                if seconds or (everything and level.value):
                    found.append((seconds, level.value, scope, key, level))
            await asyncio.sleep(0)
        chosen = heapq.nlargest(most, found, key=lambda one: one[:4])
        return [self._penalty(scope, key, level, seconds) for seconds, _, scope, key, level in chosen], len(found)

    async def forgive(self, *, user: str | None = None, network: str | None = None) -> int:
        """Forget what is counted against a canonical user name, the addresses of a network, or everybody.

        With both, only what is counted against that user from there. Returns how many counters there were. Raises
        ValueError if `network` is none.
        """
        wanted = None if network is None else ipaddress.ip_network(network)
        gone = 0
        for scope in ThrottleScope:
            for key, _ in self.state.levels(scope):
                counted_user, address = _parts(scope, key)
                if (user is None or user == counted_user) and (wanted is None or _inside(address, wanted)):
                    gone += self.state.clear(scope, key)
            await asyncio.sleep(0)
        return gone

    # ---- rules ----

    def _is_quiet(self, user: str, place: Place) -> bool:
        """Is there nothing to weigh? But if several come from there at once, they could overtake the count."""
        return self._under_way.get((ThrottleScope.ADDRESS, place.near), 0) < _AT_ONCE and self._is_clean(user, place)

    def _is_clean(self, user: str, place: Place) -> bool:
        """Has nothing been wrong lately, neither from there nor about him?"""
        level = self.state.level
        if level(ThrottleScope.ADDRESS, place.near) is not None or level(ThrottleScope.ACCOUNT, user) is not None:
            return False
        return place.wide is None or level(ThrottleScope.NETWORK, place.wide) is None

    def _speaks_against(self, user: str, place: Place, known: bool) -> Throttled | None:
        """Why a login is refused. `known`: he has logged in from there."""
        pair = self._crowded(ThrottleScope.USER_ADDRESS, _pair(user, place.near))
        if pair is not None or known:
            return pair
        address = self._crowded(ThrottleScope.ADDRESS, place.near)
        if address is None and place.wide is not None:
            address = self._crowded(ThrottleScope.NETWORK, place.wide)
        if address is not None:
            return address
        newcomers = 0 if self._was_wrong_about(user, place) else self.config.account.newcomers
        account = self._crowded(ThrottleScope.ACCOUNT, user, newcomers)
        if account is not None:
            return account
        if self._lately(self.state.level(ThrottleScope.ADDRESS, place.near)):
            return self._crowded(ThrottleScope.TOTAL, _EVERYBODY)
        return None

    def _crowded(self, scope: ThrottleScope, key: str, more: int = 0) -> Throttled | None:
        level = self.state.level(scope, key)
        decided = (0.0 if level is None else level.value) + 1 - self._free[scope] - more  # this one counted already
        beyond = decided + self._under_way.get((scope, key), 0)
        if beyond <= 0:
            return None
        return Throttled(scope, beyond / self._per_second[scope], (scope, key) if decided <= 0 else None)

    async def _wait_in_turn(self, user: str, place: Place, known: bool, against: Throttled) -> Throttled | None:
        """Wait for as long as it is only others under way that speak against a login."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + PATIENCE
        found: Throttled | None = against
        while found is not None and found.behind is not None and (left := give_up - loop.time()) > 0:
            key, turn = found.behind, loop.create_future()
            self._waiting.setdefault(key, deque()).append(turn)
            try:
                await asyncio.wait((turn,), timeout=left)
            except asyncio.CancelledError:
                self._call_next(key) if turn.done() else self._leave(key, turn)
                raise
            found = self._speaks_against(user, place, known)
            if not turn.done():
                self._leave(key, turn)
            elif found is not None and found.behind != key:
                self._call_next(key)  # has no use for the place that has become free there
        return found

    def _call_next(self, key: tuple[ThrottleScope, str]) -> None:
        waiting = self._waiting.get(key)
        if waiting:
            turn = waiting[0]
            self._leave(key, turn)
            turn.set_result(None)

    def _leave(self, key: tuple[ThrottleScope, str], turn: asyncio.Future[None]) -> None:
        waiting = self._waiting[key]
        waiting.remove(turn)
        if not waiting:
            del self._waiting[key]

    def _was_wrong_about(self, user: str, place: Place) -> bool:
        keys = [_pair(user, near) for near in (place.near, place.wide) if near is not None]
        return any(self._lately(self.state.level(ThrottleScope.USER_ADDRESS, key)) for key in keys)

    def _lately(self, level: Level | None) -> bool:
        return level is not None and level.age <= self.config.memory

    # ---- counting ----

    def _count_place(self, place: Place) -> None:
        self.state.add(ThrottleScope.ADDRESS, place.near)
        if place.wide is not None:
            self.state.add(ThrottleScope.NETWORK, place.wide)
        self.state.add(ThrottleScope.TOTAL, _EVERYBODY)

    def _count(self, user: str, place: Place) -> None:
        self._count_place(place)
        self.state.add(ThrottleScope.ACCOUNT, user)
        self.state.add(ThrottleScope.USER_ADDRESS, _pair(user, place.near))
        if place.wide is not None:
            self.state.add(ThrottleScope.USER_ADDRESS, _pair(user, place.wide))

    async def _seen_before(self, user: str, password: Secret) -> bool:
        """Has this very password of this user been wrong before? Remembers that it was."""
        # under a key, so that what is kept of a password is worth nothing outside
        digest = hmac.digest(self.state.secret, b"\0".join((user.encode(), password.reveal())), "sha256")[:16].hex()
        seen = await self.state.marked(SEEN, digest)
        self.state.mark(SEEN, digest)
        return seen

    def _place(self, host: str) -> Place:
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        allowed = not self.config.enabled or any(
            address.version == network.version and address in network for network in self.config.allow
        )
        if isinstance(address, ipaddress.IPv4Address):
            return Place(str(address), None, allowed)
        near, wide = (ipaddress.ip_network((address, length), strict=False) for length in (64, 48))
        return Place(str(near), str(wide), allowed)

    def _penalty(self, scope: ThrottleScope, key: str, level: Level, seconds: float) -> Penalty:
        user, address = _parts(scope, key)
        return Penalty(scope, user, address, level.value, self._free[scope], level.age, seconds)


class Guess:
    """One login, from before its password is looked at until something is known about it; then `close` it."""

    __slots__ = ("_counted", "_place", "_throttle", "_weighed", "user")

    def __init__(self, throttle: Throttle, user: str, place: Place) -> None:
        self._throttle = throttle
        self.user = user
        self._place = place
        self._counted: tuple[tuple[ThrottleScope, str], ...] = ()  # where it is under way
        self._weighed = False  # something may be counted against him

    async def refused(self) -> Throttled | None:
        """Why the password is not looked at. If it is, this guess counts as wrong until it is closed."""
        throttle, user, place = self._throttle, self.user, self._place
        if place.allowed:
            return None
        if throttle._is_quiet(user, place):
            self._begin(((ThrottleScope.ADDRESS, place.near),))
            return None
        known = await throttle.state.marked(KNOWN, _pair(user, place.near))
        if known and throttle._is_clean(user, place):
            # several at once from where he belongs: what they get wrong together they all wait for afterwards
            self._begin(((ThrottleScope.ADDRESS, place.near),))
            return None
        against = throttle._speaks_against(user, place, known)
        if against is not None and against.behind is not None:
            against = await throttle._wait_in_turn(user, place, known, against)
        if against is None:
            self._weighed = True
            self._begin(tuple(_keys(user, place)))
        return against

    def _begin(self, keys: tuple[tuple[ThrottleScope, str], ...]) -> None:
        under_way = self._throttle._under_way
        self._counted = keys
        for key in keys:
            under_way[key] = under_way.get(key, 0) + 1

    def right(self) -> None:
        """The user has proved who he is."""
        throttle, pair = self._throttle, _pair(self.user, self._place.near)
        throttle.state.mark(KNOWN, pair)
        if self._weighed:
            throttle.state.clear(ThrottleScope.USER_ADDRESS, pair)

    async def wrong(self, password: Secret | None) -> None:
        """He has not. `password` is what was sent, if it was a password."""
        throttle, user, place = self._throttle, self.user, self._place
        if place.allowed or (password is not None and await throttle._seen_before(user, password)):
            return
        throttle._count(user, place)

    def close(self) -> None:
        """Nobody looks at it any more. Not an error the second time."""
        under_way = self._throttle._under_way
        keys, self._counted = self._counted, ()
        for key in keys:
            count = under_way[key] - 1
            if count:
                under_way[key] = count
            else:
                del under_way[key]
            self._throttle._call_next(key)


def _keys(user: str, place: Place) -> Iterable[tuple[ThrottleScope, str]]:
    """Everything that a wrong password counts against."""
    yield ThrottleScope.ADDRESS, place.near
    yield ThrottleScope.ACCOUNT, user
    yield ThrottleScope.USER_ADDRESS, _pair(user, place.near)
    yield ThrottleScope.TOTAL, _EVERYBODY
    if place.wide is not None:
        yield ThrottleScope.NETWORK, place.wide
        yield ThrottleScope.USER_ADDRESS, _pair(user, place.wide)


def _pair(user: str, near: str) -> str:
    return f"{user}\0{near}"  # no name holds a NUL


def _parts(scope: ThrottleScope, key: str) -> tuple[str, str]:
    """User and address in a counter's key."""
    if scope is ThrottleScope.USER_ADDRESS:
        user, _, address = key.partition("\0")
        return user, address
    if scope is ThrottleScope.ACCOUNT:
        return key, ""
    return "", "" if scope is ThrottleScope.TOTAL else key


def _inside(address: str, wanted: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    """Do the addresses that a counter stands for and a network overlap?"""
    if not address:
        return False
    network = ipaddress.ip_network(address)
    return network.version == wanted.version and network.overlaps(wanted)


def _allowance(config: Penalties, scope: ThrottleScope) -> tuple[int, int]:
    """How many are free, and how many a minute are forgiven."""
    section = getattr(config, scope.value)
    return section.free, section.per_minute
