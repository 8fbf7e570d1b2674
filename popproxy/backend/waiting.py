"""Logins that wait for a place at a server: the users in turn, each user's logins in the order in which they came."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from popproxy.backend.balancer import Member

if TYPE_CHECKING:
    from popproxy.backend.places import Place


class Waiter:
    """A login that waits for a place at one of the members in `wanted`; `granted` gets it, once."""

    __slots__ = ("granted", "user", "wanted")

    def __init__(self, user: str, wanted: Collection[Member], granted: Callable[[Place], None]) -> None:
        self.user = user
        self.wanted = wanted
        self.granted = granted


class WaitingQueue:
    """Everybody who waits for the servers of one pool; at most `most` logins."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._users: OrderedDict[str, deque[Waiter]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def join(self, waiter: Waiter) -> bool:
        """Take one more in; False if there are too many."""
        if self._count >= self._most:
            return False
        self._users.setdefault(waiter.user, deque()).append(waiter)
        self._count += 1
        return True

    def leave(self, waiter: Waiter) -> None:
        """Somebody waits no longer. Not an error if he does not wait."""
        mine = self._users.get(waiter.user)
        if mine is not None and waiter in mine:
            self._remove(waiter, mine)

    def wanted(self) -> list[Member]:
        """The members that somebody waits for."""
        return list(dict.fromkeys(member for mine in self._users.values() for one in mine for member in one.wanted))

    def wants(self, member: Member) -> bool:
        """Does somebody wait for it?"""
        return any(member in one.wanted for mine in self._users.values() for one in mine)

    def next(self, member: Member) -> Waiter | None:
        """A place at `member` is free: whose turn it is. He waits no longer. None if nobody wants it."""
        for user, mine in self._users.items():
            waiter = next((one for one in mine if member in one.wanted), None)
            if waiter is not None:
                self._remove(waiter, mine)
                if user in self._users:
                    self._users.move_to_end(user)
                return waiter
        return None

    def _remove(self, waiter: Waiter, mine: deque[Waiter]) -> None:
        mine.remove(waiter)
        self._count -= 1
        if not mine:
            del self._users[waiter.user]
