"""The commands ``hold``, ``release``, ``move``, ``move undo`` and ``orders list``."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from math import inf

from popproxy.admin.backends import change, find_server
from popproxy.admin.commands import Commands, Role
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.auth.names import NameRefused
from popproxy.backend.pool import Pool
from popproxy.session.hold import Holding
from popproxy.session.session import Session
from popproxy.state.orders import Hold, Move
from popproxy.types import CloseReason

CURE = "name a directory in process.state_directory, and restart popproxy"

_LISTED = {
    "holds": "rows user", "holds.since": "first", "holds.until": "first",
    "moves": "rows user", "moves.since": "first",
    "servers": "rows pool server", "servers.since": "first",
}  # fmt: skip


def add_orders(
    commands: Commands, holding: Holding, pools: Mapping[str, Pool], sessions: Collection[Session],
    vet_name: Callable[[str], str],
) -> None:  # fmt: skip
    """Add the commands. `vet_name` makes a user's name canonical, and raises NameRefused."""
    book = holding.book

    def canonical(user: str) -> str:
        try:
            return vet_name(user)
        except NameRefused as refused:
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"that is no user name ({refused.reason})") from None

    async def hold(
        *, user: str, seconds: float | None = None, refuse: bool = False, end_sessions: bool = False
    ) -> object:
        name, now = canonical(user), time.time()
        if seconds is not None and not 0 < seconds < inf:
            raise CommandFailed(Reason.BAD_ARGUMENTS, "hold: seconds must be more than 0")
        until = inf if seconds is None else now + seconds
        await change(book, lambda orders: orders.holding(name, Hold(now, until, not refuse)))
        return {**_held(name, book.orders.holds[name]), "kept": book.kept, **_sessions_of(name, sessions, end_sessions)}

    async def release(*, user: str) -> object:
        name, now = canonical(user), time.time()
        if book.orders.hold(name) is None:
            raise CommandFailed(Reason.REFUSED, f"{name} is not held")
        await change(book, lambda orders: orders.released(name, now))
        return {"user": name}

    async def move(*, user: str, pool: str, server: str | None = None, backend_user: str | None = None) -> object:
        name, now = canonical(user), time.time()
        if not book.kept:
            what = "a move that is forgotten when popproxy restarts would show the user an empty maildrop"
            raise CommandFailed(Reason.REFUSED, f"{what}; {CURE}")
        if pool not in pools:
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"there is no pool {pool}; there are {', '.join(pools)}")
        label = None if server is None else find_server(pools, server, pool)[0][1].label
        if backend_user is not None and not (backend_user and backend_user.isprintable()):
            raise CommandFailed(Reason.BAD_ARGUMENTS, "that cannot be a user's name at the server")
        await change(book, lambda orders: orders.moving(name, Move(now, pool, label, backend_user)))
        return {**_moved(name, book.orders.moves[name]), **_sessions_of(name, sessions, end=False)}

    async def undo(*, user: str) -> object:
        name = canonical(user)
        if name not in book.orders.moves:
            raise CommandFailed(Reason.REFUSED, f"{name} has not been moved")
        await change(book, lambda orders: orders.moving(name, None))
        return {"user": name}

    async def listed() -> object:
        orders = book.orders
        return {
            "holds": [_held(user, one) for user, one in sorted(orders.holds.items()) if orders.hold(user) is one],
            "moves": [_moved(user, one) for user, one in sorted(orders.moves.items())],
            "servers": [
                {"pool": pool, "server": server, "state": one.state, "since": one.since}
                for (pool, server), one in sorted(orders.servers.items())
            ],
            "kept": book.kept,
            "waiting": holding.waiting,
        }

    times = {"since": "first", "until": "first"}
    commands.add("hold", hold, merged=times)
    commands.add("release", release)
    commands.add("move", move, merged=times)
    commands.add("move undo", undo)
    commands.add("orders list", listed, Role.VIEWER, merged=_LISTED)


def _held(user: str, hold: Hold) -> dict[str, object]:
    until = None if hold.until == inf else hold.until
    return {"user": user, "since": hold.since, "until": until, "logins": "wait" if hold.wait else "refused"}


def _moved(user: str, move: Move) -> dict[str, object]:
    return {
        "user": user, "since": move.since, "pool": move.pool, "server": move.server, "backend_user": move.backend_user,
    }  # fmt: skip


def _sessions_of(user: str, sessions: Collection[Session], end: bool) -> dict[str, object]:
    """The user's open sessions: those that go on, and those that end now (as with ``kick``)."""
    views = [(one, view) for one in tuple(sessions) if (view := one.view()).user == user]
    ended = [one for one, view in views if end and view.phase != "update"]
    for one in ended:
        one.shut_down(CloseReason.KICKED, "your mailbox is being moved")
    return {"ended": [str(one.id) for one in ended], "open": [view.id for one, view in views if one not in ended]}
