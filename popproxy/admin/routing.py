"""Commands of operators in a supervisor: its own, and those that its workers carry out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from popproxy.admin.commands import Command, Commands, Role, Route
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.admin.merging import merge

PATIENCE = 20.0
"""Seconds for one worker's answer; the operator's own patience is 30."""


class Worker(Protocol):
    """A process that knows commands."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    async def command(self, name: str, arguments: Mapping[str, object], seconds: float) -> Any:
        """Its result. Raises CommandFailed."""
        ...


class Router:
    """Executes `own` commands here, and others in workers.

    `workers` are those at present, those that serve new clients first; `routes` is what the latest of them have said
    about their commands (Commands.routes).
    """

    def __init__(self, own: Commands, workers: Callable[[], Sequence[Worker]]) -> None:
        self.routes: Mapping[str, Mapping[str, Any]] = {}
        self._own = own
        self._workers = workers

    def __iter__(self) -> Iterator[str]:
        shown = [name for name, route in self.routes.items() if not route["hidden"]]
        return iter(sorted({*self._own, *shown}))

    def find(self, name: object) -> Command:
        """The command of that name. Raises CommandFailed."""
        if self._is_own(name):
            return self._own.find(name)
        if not isinstance(name, str) or name not in self.routes:
            raise CommandFailed(Reason.UNKNOWN_COMMAND, f"no such command; there are {', '.join(self)}")
        route = self.routes[name]

        async def routed(**arguments: object) -> object:
            return await self.execute(name, arguments)

        return Command(name, routed, Role(route["role"]), False, {}, (), bool(route["hidden"]))

    async def execute(self, name: object, arguments: Mapping[str, object]) -> object:
        """Carry out a command. Raises CommandFailed."""
        if self._is_own(name):
            return await self._own.execute(name, arguments)
        routed = self.find(name).name
        workers = self._chosen(routed)
        if self.routes[routed]["route"] == Route.ONE:
            return await self._one(workers, routed, arguments)
        results = await asyncio.gather(
            *(worker.command(routed, arguments, PATIENCE) for worker in workers), return_exceptions=True
        )
        good, failed = [], []
        for worker, result in zip(workers, results, strict=True):
            if isinstance(result, CommandFailed):
                failed.append((worker, result))
            elif isinstance(result, BaseException):
                raise result
            else:
                good.append(result)
        silent = [f"{worker.name}: {error}" for worker, error in failed if error.reason is Reason.INTERNAL]
        if silent and good:
            # the others have done it; who gave the command must know that it is not done everywhere
            raise CommandFailed(Reason.INTERNAL, f"not carried out by all workers: {'; '.join(silent)}")
        if not good:
            raise failed[0][1]
        return merge(good, self.routes[routed]["merged"])

    def stream(self, name: object, arguments: Mapping[str, object]) -> AsyncGenerator[object, None]:
        """The events of a command of our own. Raises CommandFailed."""
        return self._own.stream(name, arguments)

    # ---- pieces ----

    def _is_own(self, name: object) -> bool:
        return isinstance(name, str) and name in set(self._own)  # it may be anything that JSON has

    async def _one(self, workers: Sequence[Worker], name: str, arguments: Mapping[str, object]) -> object:
        """The first that answers: one may end over the question."""
        for worker in workers[:-1]:
            try:
                return await worker.command(name, arguments, PATIENCE)
            except CommandFailed as failed:
                if failed.reason is not Reason.REFUSED:
                    raise
        return await workers[-1].command(name, arguments, PATIENCE)

    def _chosen(self, name: str) -> Sequence[Worker]:
        workers = self._workers()
        if not workers:
            raise CommandFailed(Reason.REFUSED, "no worker runs at present; popproxy's log says why")
        return workers
