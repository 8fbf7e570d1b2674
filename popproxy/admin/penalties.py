"""The commands ``penalties list`` and ``penalties clear``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from popproxy.admin.commands import Commands, Role, Route
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.auth.names import NameRefused
from popproxy.auth.throttle import Throttle


def add_penalties(commands: Commands, throttle: Throttle, vet_name: Callable[[str], str]) -> None:
    """Add the commands. `vet_name` makes a user's name canonical, and raises NameRefused."""

    async def listed(*, everything: bool = False) -> object:
        penalties, total = await throttle.penalties(everything=everything)
        return {"penalties": [asdict(penalty) for penalty in penalties], "total": total}

    async def clear(*, user: str | None = None, network: str | None = None, everybody: bool = False) -> object:
        if everybody is (user is not None or network is not None):
            raise CommandFailed(Reason.BAD_ARGUMENTS, "name a user, an address or a network, or say everybody")
        try:
            name = None if user is None else vet_name(user)
            return {"cleared": await throttle.forgive(user=name, network=network)}
        except NameRefused as refused:
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"that is no user name ({refused.reason})") from None
        except ValueError as error:
            raise CommandFailed(Reason.BAD_ARGUMENTS, str(error)) from None

    commands.add("penalties list", listed, Role.VIEWER, route=Route.ONE)  # all workers share them
    commands.add("penalties clear", clear, route=Route.ONE)
