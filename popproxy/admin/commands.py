"""The commands of operators: each is one function, called with the arguments that came by name."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, get_type_hints

from popproxy.admin.frames import CommandFailed, Reason

Run = Callable[..., Awaitable[object]]


class Commands:
    """Functions by the name of their command.

    A command is an ``async def`` with keyword-only parameters of the types str, int, float, bool and None; what it
    returns must be good for JSON. It raises CommandFailed (REFUSED) with a text for the operator.
    """

    def __init__(self) -> None:
        self._commands: dict[str, tuple[Run, dict[str, Any], frozenset[str]]] = {}

    def add(self, name: str, run: Run) -> None:
        """Let operators call `run` as `name`."""
        parameters = inspect.signature(run).parameters
        types = {key: value for key, value in get_type_hints(run).items() if key in parameters}
        required = frozenset(key for key, parameter in parameters.items() if parameter.default is parameter.empty)
        self._commands[name] = (run, types, required)

    def __iter__(self) -> Any:
        return iter(sorted(self._commands))

    async def execute(self, name: object, arguments: Mapping[str, object]) -> object:
        """Carry out a command. Raises CommandFailed, and whatever a command with a bug raises."""
        if not isinstance(name, str) or name not in self._commands:
            raise CommandFailed(Reason.UNKNOWN_COMMAND, f"no such command; there are {', '.join(self)}")
        run, types, required = self._commands[name]
        for key, value in arguments.items():
            wanted = types.get(key)
            if wanted is None:
                raise CommandFailed(Reason.BAD_ARGUMENTS, f"{name} has no argument {key}")
            if not isinstance(value, wanted) or (isinstance(value, bool) and not _takes_bool(wanted)):
                raise CommandFailed(Reason.BAD_ARGUMENTS, f"{name}: {key} must be {_shown(wanted)}")
        if missing := sorted(required - arguments.keys()):
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"{name} needs {', '.join(missing)}")
        return await run(**arguments)


def _takes_bool(wanted: Any) -> bool:
    """To isinstance a bool is an int, to people it is not."""
    return wanted is bool or bool in getattr(wanted, "__args__", ())


def _shown(wanted: Any) -> str:
    return wanted.__name__ if isinstance(wanted, type) else str(wanted)
