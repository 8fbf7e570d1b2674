"""One login's way through the servers of a pool: in turn, and side by side where one keeps it waiting.

What fails before the first octet of a credential has been sent is tried again at the next server; after it, nothing is.
A server that takes long gets company after a while (as RFC 8305 has it for addresses), and whichever is the first to be
ready for a credential gets it, alone. The others go on without one: what becomes of them says whether they are dead or
only slow, which is for the logins that come later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from popproxy.backend.link import Attempt, NotOpened, Opened
from popproxy.backend.places import Place
from popproxy.backend.pool import Backend, Pool
from popproxy.errors import BackendError, Overtaken, PopproxyError
from popproxy.types import Address
from popproxy.wire.visitor import Visitor

Resolve = Callable[[Pool, Backend], Awaitable[Sequence[Address]]]
"""Where a server is. Raises BackendError, which has been counted."""
LogIn = Callable[[Attempt, Address], Awaitable[Opened | NotOpened]]
"""Log in there. Raises BackendError, which has been counted, and Overtaken."""


class Search:
    """For one login, where there is more than one address to try.

    `place` is one at the first of `backends`, `seconds` the time to connect to one. `lanes` keeps what goes on when the
    search is over: whoever owns it ends that when the process does.
    """

    def __init__(
        self, pool: Pool, backends: Sequence[Backend], place: Place | None, seconds: float, visitor: Visitor | None,
        resolve: Resolve, log_in: LogIn, lanes: set[asyncio.Task[None]],
    ) -> None:  # fmt: skip
        self.pool = pool
        self.loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._visitor = visitor
        self._resolve = resolve
        self._log_in = log_in
        self._untried: deque[tuple[Backend, Address | None, Place | None]] = deque()
        for number, backend in enumerate(backends):
            self._untried.append((backend, None, None if number else place))
        self._lanes: set[asyncio.Task[None]] = set()
        self._all_lanes = lanes
        self._leader: _Turn | None = None  # who may send credentials
        self._result: Opened | NotOpened | None = None
        self._failure: Exception = BackendError("no place at the other servers", "connect", "limit")
        self._over: asyncio.Future[None] = self.loop.create_future()

    async def run(self) -> Opened | NotOpened:
        """What came of the login. Raises BackendError (of the last one tried), and what else `log_in` raises.

        If it is cancelled, all attempts are.
        """
        self.go_on()
        try:
            await self._over
        except asyncio.CancelledError:
            for lane in self._lanes:
                lane.cancel()
            if isinstance(self._result, Opened):
                self._result.channel.abort()
            raise
        finally:
            for _, _, place in self._untried:
                if place is not None:
                    place.release()
            self._untried.clear()
        if self._result is not None:
            return self._result
        failure = self._failure
        del self._failure
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame, and that the passwords

    def go_on(self) -> None:
        """Try the next one, beside what is under way."""
        if self._untried and not self.decided():
            lane = self.loop.create_task(self._lane())
            self._lanes.add(lane)
            self._all_lanes.add(lane)
            lane.add_done_callback(self._lane_ended)

    def decided(self) -> bool:
        """It is known who sends the credential, or that nobody does."""
        return self._leader is not None or self._over.done()

    @property
    def alone(self) -> bool:
        """One attempt is under way, and nothing is left to be tried."""
        return not self.decided() and len(self._lanes) == 1 and not self._untried

    def claim(self, turn: _Turn) -> bool:
        """May this one send the credential?"""
        if not self.decided():
            self._leader = turn
        return self._leader is turn

    async def _lane(self) -> None:
        while self._untried and not self.decided():
            backend, address, place = self._untried.popleft()
            turn = _Turn(self, backend)
            company = self.loop.call_later(self.pool.config.balance.next_after, self.go_on)
            try:
                result = await self._server(turn, backend, address, place)
            except Overtaken:
                return
            except Exception as error:
                if self._counts(turn):
                    # a traceback would hold frames, and they the passwords
                    self._failure = error.with_traceback(None) if isinstance(error, PopproxyError) else error
                    if self._leader is turn or not isinstance(error, BackendError):
                        self._end()
            else:
                if result is not None and self._counts(turn):  # a name can be refused before any credential
                    self._result = result
                    self._end()
            finally:
                company.cancel()

    def _counts(self, turn: _Turn) -> bool:
        """What comes of this one matters: no other is ahead."""
        return self._leader is turn if self._leader is not None else not self._over.done()

    async def _server(
        self, turn: _Turn, backend: Backend, address: Address | None, place: Place | None
    ) -> Opened | NotOpened | None:
        """None: there is no place at this server."""
        if address is None:
            try:
                address, *others = await self._resolve(self.pool, backend)
            except BaseException:
                if place is not None:
                    place.release()
                raise
            self._untried.extendleft((backend, other, None) for other in reversed(others))
        if self.pool.places is not None and place is None:
            place = await self.pool.places.take(backend.member)
            if place is None:
                return None  # others have taken the last one meanwhile
        give_up = self.loop.time() + self._seconds
        return await self._log_in(Attempt(self.pool, backend, give_up, self._visitor, turn, place), address)

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _lane_ended(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        self._all_lanes.discard(lane)
        if not self._lanes:
            self._end()


class _Turn:
    """See Turn."""

    __slots__ = ("_backend", "_search", "counted")

    def __init__(self, search: Search, backend: Backend) -> None:
        self._search = search
        self._backend = backend
        self.counted = False

    @property
    def alone(self) -> bool:
        return self._search.alone

    def claim(self) -> bool:
        return self._search.claim(self)

    def late(self) -> bool:
        search = self._search
        if search.alone:
            return True
        if not self.counted:
            self.counted = True
            error = BackendError("no greeting in time", "greeting", "timeout")
            search.pool.failed(self._backend, error, search.loop.time())
        search.go_on()
        return not search.decided()
