"""What workers ask the supervisor to have carried out by all: the commands of operators whom they answer themselves.

Those are at the console and at the status page. The supervisor knows nothing of them but what a worker says, and a
worker speaks with strangers: one that was taken over may claim anything. So it gets what operators there can ask for,
and never the supervisor's own commands (reload, upgrade, drain); and what changes or overhears something is put on
record by another worker, if there is one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

from popproxy.admin.commands import Commands, Known, Role
from popproxy.admin.desk import plain
from popproxy.admin.frames import MAX_REQUEST, CommandFailed, Reason, encode
from popproxy.app.child import Child
from popproxy.observe.logs import get_logger
from popproxy.types import Outcome

_REPEATED = 64  # that are remembered: the same question again and again is one command of an operator

log = get_logger("supervisor")


class Write(Protocol):
    """Has an audit record written."""

    def __call__(self, child: Child, action: str, outcome: Outcome, **fields: object) -> None:
        """By another one than `child` if there is one."""
        ...


class Requests:
    """Those of all workers. `own` commands of the supervisor are refused, `known` are all."""

    def __init__(self, own: Commands, known: Known, write: Write) -> None:
        self._own = own
        self._known = known
        self._write = write
        self._repeated: deque[tuple[str, str, str]] = deque(maxlen=_REPEATED)

    async def execute(self, child: Child, name: object, arguments: Mapping[str, object]) -> object:
        """Carry it out in all workers. Raises CommandFailed."""
        if len(encode(arguments)) > MAX_REQUEST:
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"arguments of more than {MAX_REQUEST} octets")
        if isinstance(name, str) and name in set(self._own):
            self._record(child, name, arguments, Outcome.FAILURE, **{"event.reason": Reason.DENIED})
            raise CommandFailed(Reason.DENIED, f"{name} is no command for a worker to give")
        command = self._known.find(name)
        if command.role is not Role.VIEWER and not self._is_repeated(child, command.name, arguments, command.hidden):
            self._record(child, command.name, arguments, Outcome.SUCCESS)
        return await self._known.execute(name, arguments)

    def _is_repeated(self, child: Child, name: str, arguments: Mapping[str, object], hidden: bool) -> bool:
        if not hidden:
            return False
        asked = (child.name, name, repr(arguments)[:1000])
        if asked in self._repeated:
            return True
        self._repeated.append(asked)
        return False

    def _record(
        self, child: Child, name: str, arguments: Mapping[str, object], outcome: Outcome, **more: object
    ) -> None:
        tell = log.warning if outcome is Outcome.FAILURE else log.info
        tell("a worker gives a command", worker=child.name, command=name, outcome=outcome)
        fields = {
            "process.name": f"popproxy {child.name}", "process.pid": child.pid,
            "popproxy.command": name, "popproxy.arguments": plain(arguments),
        }  # fmt: skip
        self._write(child, "worker_command", outcome, **more, **fields)
