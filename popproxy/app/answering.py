"""Where a supervisor answers operators: the control socket, over all its configurations."""

from __future__ import annotations

from popproxy.admin.control import ControlServer
from popproxy.admin.control_socket import ControlSocket
from popproxy.admin.desk import Desk
from popproxy.app.plan import Plan
from popproxy.app.sockets import allowed, bind_control_as_planned
from popproxy.errors import ConfigError


class Control:
    """The control socket of one supervisor, if there is one at present. `desk` carries the commands out."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._server: ControlServer | None = None

    @property
    def bound(self) -> ControlSocket | None:
        """The socket."""
        return None if self._server is None else self._server.bound

    async def answer_at(self, bound: ControlSocket, plan: Plan) -> None:
        """Answer there whom `plan` allows."""
        self._server = ControlServer(bound, self._desk, allowed(plan))
        await self._server.start()

    async def switch(self, old: Plan, new: Plan) -> None:
        """Operators are answered where the new configuration says. Raises ConfigError; nothing has changed then."""
        before, same = self._server, old.control.socket == new.control.socket
        if before is not None and same and old.control.group == new.control.group and before.bound.is_there:
            before.admit(allowed(new))
            return
        if before is not None and same:
            before.retire()  # or it would be in the way of the new one
        try:
            bound = bind_control_as_planned(new)
        except ConfigError:
            if before is not None and same:
                self._server = None
                again = bind_control_as_planned(old)
                if again is not None:
                    await self.answer_at(again, old)
            raise
        if before is not None and not same:
            before.retire()
        self._server = None
        if bound is not None:
            await self.answer_at(bound, new)

    async def stop(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            await self._server.stop()
