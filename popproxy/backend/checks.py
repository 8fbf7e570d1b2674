"""Asks servers whether they work: regularly where a pool has a section check, and all that logins have found down."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from math import inf

from popproxy.backend.dial import Dialer
from popproxy.backend.pool import Backend, Pool
from popproxy.errors import BackendError
from popproxy.pop3.logins import Login, UserPass
from popproxy.types import Secret

ONCE_DOWN = 5.0
"""Seconds for asking a server of a pool that has no section check."""


class Checker:
    """Keeps a timer for each server that is to be asked. `passwords` are those of the checks' users, by pool."""

    def __init__(self, dialer: Dialer, loop: asyncio.AbstractEventLoop, passwords: Mapping[str, Secret]) -> None:
        self._dialer = dialer
        self._loop = loop
        self._passwords = passwords
        self._timers: dict[Backend, tuple[Pool, asyncio.TimerHandle]] = {}
        self._asking: dict[Backend, asyncio.Task[None]] = {}

    def start(self, pools: Iterable[Pool]) -> None:
        """Begin with the regular checks, those of a pool spread over its interval."""
        for pool in pools:
            if pool.config.check is not None:
                for number, backend in enumerate(pool.backends):
                    first = pool.config.check.every * number / len(pool.backends)
                    backend.member.check_at = self._loop.time() + first
                    self.arrange(pool, backend)

    def update(self, pool: Pool, new: Sequence[Backend]) -> None:
        """The servers of a pool have changed; `new` ones are to be asked, too."""
        for backend in new:
            if pool.config.check is not None:
                backend.member.check_at = self._loop.time()
            self.arrange(pool, backend)
        there = set(pool.backends)
        for backend in [one for one, (owner, _) in self._timers.items() if owner is pool and one not in there]:
            self._timers.pop(backend)[1].cancel()

    def arrange(self, pool: Pool, backend: Backend) -> None:
        """The server's state has changed: ask it when that makes it due."""
        timer = self._timers.pop(backend, None)
        if timer is not None:
            timer[1].cancel()
        due = backend.member.probe_at
        if due < inf and backend not in self._asking and backend in pool.backends:
            # else it is arranged when the answer is there, or it is none of ours any more
            self._timers[backend] = pool, self._loop.call_at(due, self._ask, pool, backend)

    def close(self) -> None:
        """Ask no more."""
        for _, timer in self._timers.values():
            timer.cancel()
        for task in self._asking.values():
            task.cancel()

    def _ask(self, pool: Pool, backend: Backend) -> None:
        del self._timers[backend]
        if backend.member.probe_at > self._loop.time():
            self.arrange(pool, backend)  # logins have failed there meanwhile, which put it off
            return
        task = self._asking[backend] = self._loop.create_task(self._probe(pool, backend))
        task.add_done_callback(lambda _: self._answered(pool, backend))

    async def _probe(self, pool: Pool, backend: Backend) -> None:
        check = pool.config.check
        try:
            await self._dialer.probe(pool, backend, self._logins(pool), ONCE_DOWN if check is None else check.timeout)
        except BackendError as error:
            pool.failed(backend, error, self._loop.time())
        else:
            pool.answered(backend, self._loop.time())
        finally:
            if check is not None:
                backend.member.check_at = self._loop.time() + check.every

    def _answered(self, pool: Pool, backend: Backend) -> None:
        task = self._asking.pop(backend)
        if not task.cancelled():
            task.result()  # a bug of ours is the loop's to report
            self.arrange(pool, backend)

    def _logins(self, pool: Pool) -> list[Login]:
        check, password = pool.config.check, self._passwords.get(pool.name)
        return [] if check is None or check.user is None or password is None else [UserPass(check.user, password)]
