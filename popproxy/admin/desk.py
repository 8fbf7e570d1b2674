"""Where every command of an operator is carried out and put on record, whichever way it has come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Protocol

from popproxy.admin.commands import Command, Known, Role
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.observe.logs import get_logger
from popproxy.types import Outcome

log = get_logger("control")


@dataclass(frozen=True, slots=True)
class Operator:
    """Who asks: `name` for people, `record` the members of the audit record, no `role` for who may do nothing."""

    name: str
    role: Role | None
    record: Mapping[str, object]


class Recorder(Protocol):
    """Writes the audit records."""

    def event(self, action: str, outcome: Outcome, **fields: object) -> None:
        """As AuditLog.event."""
        ...


class Desk:
    """Carries out commands, and records each: who has asked for what, from where, and what came of it.

    `counts` gets them by the way they came and what became of them.
    """

    def __init__(self, commands: Known, audit: Recorder, counts: MutableMapping[tuple[str, str], float]) -> None:
        self.commands = commands
        self._audit = audit
        self._counts = counts

    def streams(self, name: object) -> bool:
        """Will there be answer after answer, until whoever asks goes away?"""
        try:
            return self.commands.find(name).streams
        except CommandFailed:
            return False

    async def answers(
        self, name: object, arguments: object, operator: Operator, wrong: CommandFailed | None = None
    ) -> AsyncGenerator[dict[str, object], None]:
        """What the control socket would say: any number of ``event``, then one ``result`` or ``error``.

        `wrong` is why the command could not even be read, if it is so: that is all the answer, and on record.

        A stream is on record twice: before its first event, and with their number when it has ended.
        """
        stream: AsyncGenerator[object, None] | None = None
        began = False
        events = 0
        try:
            if wrong is not None:
                raise wrong
            command = self._allowed(name, operator)
            if not isinstance(arguments, dict):
                raise CommandFailed(Reason.BAD_ARGUMENTS, "arguments must be an object")
            if not command.streams:
                result = await self.commands.execute(name, arguments)
                self._record(Outcome.SUCCESS, operator, name, arguments)
                yield {"result": result}
                return
            stream = self.commands.stream(name, arguments)
            async for event in stream:
                if not began:
                    began = True
                    self._record(Outcome.SUCCESS, operator, name, arguments, **{"popproxy.stream": "begun"})
                events += 1
                yield {"event": event}
            yield {"result": {"events": events}}
        except CommandFailed as error:
            self._record(Outcome.FAILURE, operator, name, arguments, **{"event.reason": error.reason})
            yield {"error": {"reason": error.reason, "text": str(error)}}
        except Exception:
            log.exception("a command failed", command=str(name))
            self._record(Outcome.FAILURE, operator, name, arguments, **{"event.reason": Reason.INTERNAL})
            yield {"error": {"reason": Reason.INTERNAL, "text": "internal error; popproxy's log says more"}}
        finally:
            if stream is not None:
                await stream.aclose()
                if began:
                    end = {"popproxy.stream": "ended", "popproxy.events": events}
                    self._record(Outcome.SUCCESS, operator, name, arguments, **end)

    def _allowed(self, name: object, operator: Operator) -> Command:
        if operator.role is None:
            text = f"{operator.name} may not give commands; see control in the configuration"
            raise CommandFailed(Reason.DENIED, text)
        command = self.commands.find(name)
        if command.hidden:
            raise CommandFailed(Reason.UNKNOWN_COMMAND, "that is no command for operators")
        if not operator.role.may(command.role):
            raise CommandFailed(Reason.DENIED, f"{operator.name} is a {operator.role}, and {name} is for operators")
        return command

    def _record(self, outcome: Outcome, operator: Operator, name: object, arguments: object, **more: object) -> None:
        """Nobody waits for the record: operators are needed when the disk is full."""
        if more.get("popproxy.stream") != "ended":
            denied = more.get("event.reason") == Reason.DENIED
            done = "done" if outcome is Outcome.SUCCESS else "denied" if denied else "failed"
            self._counts[(str(operator.record.get("popproxy.operator_via", "socket")), done)] += 1
        fields = {"popproxy.command": name if isinstance(name, str) else None, "popproxy.arguments": plain(arguments)}
        self._audit.event("admin", outcome, **more, **fields, **operator.record)


def plain(arguments: object) -> object:
    """For the record. No command takes what is nested, and a stranger's may be too deep to be written."""
    flat = isinstance(arguments, dict) and all(
        value is None or isinstance(value, str | int | float) for value in arguments.values()
    )
    return arguments if flat else "(not an object with plain values)"
