"""The workers of one configuration: started together, restarted one by one, retired together."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from popproxy.app.child import Child, Stage, StartFailed, how_ended
from popproxy.app.forking import Nursery
from popproxy.app.link import Handler
from popproxy.app.plan import Plan
from popproxy.app.sockets import Sockets
from popproxy.errors import ConfigError
from popproxy.observe.logs import get_logger

STABLE = 0.5
"""Seconds of service after which the death of a worker is not the consequence of its start."""
WELL = 60.0
"""Seconds of service after which all its deaths before are forgiven."""
LONGEST_PAUSE = 30.0
"""Seconds between two attempts to start a worker that does not stay."""
LONGEST_AFTER_KILL = 0.5
"""Seconds, for one that has served and was killed from outside: it would have stayed."""
NO_ROOM = 1.0
"""Seconds between two attempts where there are no descriptors or processes left."""

log = get_logger("supervisor")


class Generation:
    """Workers with the same configuration.

    `questions_of` a worker answer what it may ask; `ended` is called for each that is gone, with whether it comes back;
    `share` gets a socket to each, over which it shares state with the others.
    """

    def __init__(
        self,
        number: int,
        path: str,
        questions_of: Callable[[Child], Mapping[str, Handler]],
        ended: Callable[[Child, bool], None],
        nursery: Nursery,
        status_of: Callable[[int], int | None],
        share: Callable[[socket.socket], None],
    ) -> None:
        self.number = number
        self.path = path
        self.raw: bytes | None = None
        self.plan: Plan
        self.changes: list[dict[str, Any]] | None = None
        """Since the generation before: dotted key, effect, and sometimes from what to what. None if not known."""
        self.sockets = Sockets()
        self.routes: dict[str, Any] = {}
        """How operators' commands reach its workers, and what becomes of their answers."""
        self.children: list[Child] = []
        self.serving = False
        self._questions_of = questions_of
        self._ended = ended
        self._nursery = nursery
        self._status_of = status_of
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._pauses = Pauses()
        self._restarts: dict[int, asyncio.Task[None]] = {}

    async def start(self, previous: bytes | None, bind: Callable[[Plan], tuple[Plan, Sockets]]) -> None:
        """Bring up all workers, until they could accept.

        The first one reads the file; `bind` then gets the sockets, and says who they become, if that
        is not as the file has it. Raises StartFailed, and ConfigError from `bind`; no worker is left then.
        """
        try:
            first = self._spawn(1)
            first.start(self.path, None, previous)
            plan, self.raw = await first.planned()
            self.changes = first.changes
            self.plan, self.sockets = bind(plan)
            self._go(first)
            started = [first]
            for number in range(2, self.plan.workers + 1):
                child = self._spawn(number)
                child.start(self.path, self.raw, None)
                self._go(child)
                started.append(child)
            for child in started:
                await child.ready()
            if len(self.children) < len(started):
                raise StartFailed(["a worker has ended as soon as it was ready; its log says more"], os.EX_SOFTWARE)
            self.routes = first.routes
        except (StartFailed, ConfigError):
            self.kill()
            raise

    def accept(self) -> None:
        """All serve; those that have ended since they were ready are started again."""
        self.serving = True
        for child in self.children:
            child.accept()
        self._start_missing()

    def leave(self, how: str, seconds: float) -> None:
        """No new clients; sessions may go on for so long. See Child.leave."""
        self.serving = False
        for task in self._restarts.values():
            task.cancel()
        for child in list(self.children):
            child.leave(how, seconds)

    def kill(self) -> None:
        """End all by force."""
        self.serving = False
        for child in self.children:
            child.kill()

    def hand_over(self, keep: Callable[[socket.socket], int]) -> dict[str, Any]:
        """All that another program in this process must know of it, good for JSON; `keep` numbers a socket."""
        sockets = self.sockets.all() if self.serving else []  # others have none to give to new workers
        return {
            "number": self.number, "serving": self.serving, "plan": self.plan.to_json(),
            "raw": base64.b64encode(self.raw or b"").decode(),
            "sockets": [[name, keep(sock)] for name, sock in sockets],
            "children": [child.hand_over(keep) for child in self.children],
        }  # fmt: skip

    def take_over(self, told: Mapping[str, Any], adopt: Callable[[int], socket.socket]) -> None:
        """Go on with what `hand_over` has told."""
        self.serving = told["serving"]
        self.plan, self.raw = Plan.from_json(told["plan"]), base64.b64decode(told["raw"])
        self.sockets = Sockets.of([(name, adopt(number)) for name, number in told["sockets"]])
        for one in told["children"]:
            child = Child(one["number"], self.number, self._questions_of, self._child_ended, self._status_of)
            child.take_over(one, adopt(one["sock"]))
            self.children.append(child)
            if self.serving and child.stage in (Stage.STARTING, Stage.READY):
                self._restarts[child.number] = self._loop.create_task(self._accept_when_ready(child))
        if self.serving:
            self._start_missing()

    # ---- pieces ----

    def _start_missing(self) -> None:
        for number in set(range(1, self.plan.workers + 1)) - {child.number for child in self.children}:
            self._restarts[number] = self._loop.create_task(self._restart(number, 0.0))

    def _spawn(self, number: int) -> Child:
        """Raises StartFailed if the machine has no room for one."""
        child = Child(number, self.number, self._questions_of, self._child_ended, self._status_of)
        try:
            child.spawn(self._nursery)
        except OSError as error:
            raise StartFailed([f"no worker can be made: {error.strerror}"], os.EX_OSERR) from None
        self.children.append(child)
        return child

    def _go(self, child: Child) -> None:
        name = child.name if self.number > 1 or self.plan.workers > 1 else ""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            child.abandon(f"no worker can be made: {error.strerror}")
            return
        with theirs:
            try:
                child.go(self.sockets, theirs, name, self.plan)
            except OSError as error:
                ours.close()
                child.abandon(f"no worker can be made: {error.strerror}")
                return
        self._share(ours)

    def _child_ended(self, child: Child) -> None:
        self.children.remove(child)
        again = self.serving and child.was is not Stage.LEAVING
        if again:
            pause = self._pauses.after(child.number, child.served, killed=child.killed_by_others)
            log.error(
                "a worker has died and is started again", worker=child.name, pid=child.pid,
                why=how_ended(child.status), seconds=pause, sessions_lost=child.sessions,
            )  # fmt: skip
            self._restarts[child.number] = self._loop.create_task(self._restart(child.number, pause))
        self._ended(child, again)

    async def _restart(self, number: int, pause: float) -> None:
        child = None
        while child is None:
            await asyncio.sleep(pause)
            try:
                child = self._spawn(number)
            except StartFailed as failed:
                log.error("a worker cannot be started", worker=f"{self.number}.{number}", why=str(failed))
                pause = NO_ROOM
        child.start(self.path, self.raw, None)
        self._go(child)
        await self._accept_when_ready(child)

    async def _accept_when_ready(self, child: Child) -> None:
        try:
            await child.ready()
        except StartFailed as failed:  # its end has started another one
            log.error("a worker cannot be started", worker=child.name, why=str(failed))
            return
        if self.serving:
            child.accept()


class Pauses:
    """How long to wait before a worker is started again: longer each time, until one has stayed."""

    def __init__(self) -> None:
        self._deaths: dict[int, int] = {}  # in a row, by number of worker

    def after(self, number: int, served: float, *, killed: bool) -> float:
        """Seconds; worker `number` has ended after it has `served` so many, `killed` by somebody else."""
        deaths = self._deaths[number] = 1 if served >= WELL else self._deaths.get(number, 0) + 1
        # the first is forgiven; a power of all deaths of a night is more than a float can hold
        pause = 0.0 if deaths < 2 else min(LONGEST_PAUSE, 0.1 * 2 ** min(deaths, 10))
        return min(pause, LONGEST_AFTER_KILL) if killed and served > STABLE else pause
