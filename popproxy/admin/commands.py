"""The commands of operators: each is one function, called with the arguments that came by name."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, cast, get_type_hints

from popproxy.admin.frames import CommandFailed, Reason

Run = Callable[..., Awaitable[object]]
Stream = Callable[..., AsyncGenerator[object, None]]


class Route(StrEnum):
    """Which worker processes carry a command out."""

    EVERY = "every"  # all of them, those of earlier configurations too; one that has it is enough
    ONE = "one"  # any one that serves: what it answers holds for all


class Role(StrEnum):
    """What an operator may do: look, or also change something and read along."""

    VIEWER = "viewer"
    OPERATOR = "operator"

    def may(self, needed: Role) -> bool:
        """Does this role include the one that is needed?"""
        return self is Role.OPERATOR or needed is Role.VIEWER


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its function, and what that takes."""

    name: str
    run: Run | Stream
    role: Role
    streams: bool
    """It gives any number of answers, one after the other."""
    types: Mapping[str, Any]
    required: tuple[str, ...]
    hidden: bool
    """Not for operators: other commands are made of it."""

    def bind(self, arguments: Mapping[str, object]) -> None:
        """Raises CommandFailed unless the command can be called with `arguments`."""
        for key, value in arguments.items():
            wanted = self.types.get(key)
            if wanted is None:
                raise CommandFailed(Reason.BAD_ARGUMENTS, f"{self.name} has no argument {key}")
            if not isinstance(value, wanted) or (isinstance(value, bool) and not takes_bool(wanted)):
                raise CommandFailed(Reason.BAD_ARGUMENTS, f"{self.name}: {key} must be {_shown(wanted)}")
        if missing := sorted(set(self.required) - arguments.keys()):
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"{self.name} needs {', '.join(missing)}")


class Executor(Protocol):
    """Carries commands out: those of this process, or of several."""

    async def execute(self, name: object, arguments: Mapping[str, object]) -> object:
        """The result, good for JSON. Raises CommandFailed."""
        ...


class Known(Executor, Protocol):
    """Commands that can be looked up: those of this process, or of its workers (admin/routing)."""

    def __iter__(self) -> Iterator[str]:
        """Their names, in alphabetical order, without the hidden ones."""
        ...

    def find(self, name: object) -> Command:
        """The command of that name. Raises CommandFailed."""
        ...

    def stream(self, name: object, arguments: Mapping[str, object]) -> AsyncGenerator[object, None]:
        """The answers of a command that streams. Raises CommandFailed, with the first one at the latest."""
        ...


class Commands:
    """Functions by the name of their command.

    A command is an ``async def`` with keyword-only parameters of the types str, int, float, bool and None; what it
    returns must be good for JSON. One that yields streams: each value is an answer of its own, and it ends when whoever
    asked has gone. It raises CommandFailed (REFUSED) with a text for the operator; a stream before its first value.

    Where there are several workers, `route` says which of them carry it out, and `merged` how one result is made of
    theirs (see admin/merging): by the dotted path of a value, what becomes of several.
    """

    def __init__(self) -> None:
        self._commands: dict[str, Command] = {}
        self._routes: dict[str, dict[str, object]] = {}

    def add(
        self, name: str, run: Run | Stream, role: Role = Role.OPERATOR, *, hidden: bool = False,
        route: Route = Route.EVERY, merged: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Let operators of `role` call `run` as `name`."""
        self._routes[name] = {"route": route, "merged": dict(merged or {}), "role": role, "hidden": hidden}
        parameters = inspect.signature(run).parameters
        types = {key: value for key, value in get_type_hints(run).items() if key in parameters}
        required = tuple(key for key, parameter in parameters.items() if parameter.default is parameter.empty)
        self._commands[name] = Command(name, run, role, inspect.isasyncgenfunction(run), types, required, hidden)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(name for name, command in self._commands.items() if not command.hidden))

    def routes(self) -> dict[str, dict[str, object]]:
        """By command, what a supervisor needs to know of it: `route`, `merged`, `role`, `hidden`. Good for JSON."""
        return self._routes

    def find(self, name: object) -> Command:
        """The command of that name. Raises CommandFailed."""
        if not isinstance(name, str) or name not in self._commands:
            raise CommandFailed(Reason.UNKNOWN_COMMAND, f"no such command; there are {', '.join(self)}")
        return self._commands[name]

    async def execute(self, name: object, arguments: Mapping[str, object]) -> object:
        """Carry out a command that gives one answer. Raises CommandFailed, and whatever one with a bug raises."""
        command = self.find(name)
        command.bind(arguments)
        return await cast("Run", command.run)(**arguments)

    def stream(self, name: object, arguments: Mapping[str, object]) -> AsyncGenerator[object, None]:
        """The answers of a command that streams, to be closed by whoever asks. Raises like `execute`."""
        command = self.find(name)
        command.bind(arguments)
        return cast("Stream", command.run)(**arguments)


class Forwarded(Commands):
    """The commands of this process, carried out by `executor`: in several processes, perhaps. Streams stay here."""

    def __init__(self, commands: Commands, executor: Executor) -> None:
        super().__init__()
        self._commands |= commands._commands
        self._executor = executor

    async def execute(self, name: object, arguments: Mapping[str, object]) -> object:
        """As Commands.execute, elsewhere."""
        self.find(name).bind(arguments)
        return await self._executor.execute(name, arguments)


def takes_bool(wanted: Any) -> bool:
    """To isinstance a bool is an int, to people it is not."""
    return wanted is bool or bool in getattr(wanted, "__args__", ())


def _shown(wanted: Any) -> str:
    return wanted.__name__ if isinstance(wanted, type) else str(wanted)
