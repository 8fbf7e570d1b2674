"""One configuration after the other: reading the file again while the supervisor goes on.

The new configuration gets workers of its own, beside those that serve. If they cannot start nothing has happened; when
they are ready the earlier ones are retired.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from popproxy.admin.frames import CommandFailed, Reason
from popproxy.app.child import StartFailed
from popproxy.app.effects import KEPT, Effect, described
from popproxy.app.generation import Generation
from popproxy.app.plan import Plan
from popproxy.app.sockets import Sockets
from popproxy.errors import ConfigError
from popproxy.observe import logs
from popproxy.types import Outcome

if TYPE_CHECKING:
    from popproxy.app.supervisor import Supervisor

MOST_RETIRED = 8
"""Generations that may wait for their last sessions; each costs the memory of its workers."""

_NOTHING = {"changes": "none"}
_DRAINING = "popproxy is draining"

log = logs.get_logger("supervisor")


class Reloads:
    """Those of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.last = (1, supervisor.started)
        """Was the last one successful (1 or 0), and when was the last that was (Unix time)?"""
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._reloading = asyncio.Lock()
        self._hanging_up = asyncio.Lock()
        self._waiting = False
        self._kept: list[dict[str, object]] = []  # what the latest file would change, and only a restart will
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Is one under way, or waiting?"""
        return self._reloading.locked() or self._hanging_up.locked() or self._waiting

    async def reload(self) -> object:
        """Read the configuration again. Raises CommandFailed; then everything goes on as it was."""
        async with self._reloading:
            try:
                done = await self._reload()
            except CommandFailed as failed:
                self.last = (0, self.last[1])
                for problem in str(failed).splitlines():
                    log.error("the configuration stays as it was", why=problem)
                self._supervisor.record("config_reload", Outcome.FAILURE)
                raise
            self.last = (1, time.time())
            self._supervisor.record("config_reload", Outcome.SUCCESS)
            return done

    def hang_up(self) -> None:
        """SIGHUP: reload; what comes of it stands in the log."""
        if self._waiting:
            return  # that one will read the file as it is then
        self._waiting = True
        task = self._loop.create_task(self._reload_quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- pieces ----

    async def _reload_quietly(self) -> None:
        async with self._hanging_up:
            self._waiting = False
            with contextlib.suppress(CommandFailed):
                await self.reload()

    async def _reload(self) -> object:
        supervisor, old = self._supervisor, self._supervisor.current
        assert old is not None
        assert old.raw is not None
        waiting = len(supervisor.retired)
        if waiting >= MOST_RETIRED:
            text = f"{waiting} earlier configurations have sessions still; wait, or end them (popproxy kick)"
            raise CommandFailed(Reason.REFUSED, text)
        candidate = supervisor.generation(old.number + 1)
        try:
            self._go_on()
            await candidate.start(old.raw, self._bind)
            self._go_on()
            await supervisor.control.switch(old.plan, candidate.plan)
            self._go_on()  # or workers would begin to serve after the end of all others
        except (StartFailed, ConfigError) as error:
            candidate.kill()
            supervisor.dismiss(candidate)
            self._keep_sockets()
            problems = [_DRAINING] if supervisor.stopping else error.problems  # a drain kills the candidate's workers
            raise CommandFailed(Reason.REFUSED, "\n".join(map(str, problems))) from None
        supervisor.serve(candidate)
        supervisor.retired += [old] if old.children else []
        old.leave("retire", candidate.plan.reload)
        logs.configure(candidate.plan.level, candidate.plan.format)
        self._keep_sockets()
        return self._told(candidate)

    def _told(self, candidate: Generation) -> dict[str, object]:
        """What has come of it, for who asked; it stands in the log, too."""
        changes = candidate.changes
        if changes is not None:
            changes = [*(one for one in changes if one["effect"] != Effect.RESTART), *self._kept]
        by_effect = {
            effect.value: [described(one) for one in changes or () if one["effect"] == effect] for effect in Effect
        }
        shown = {effect: lines for effect, lines in by_effect.items() if lines}
        unknown = {"changes": "not known"} if changes is None else {}
        log.info("serving with the new configuration", generation=candidate.number, **(shown or unknown or _NOTHING))
        for warning in candidate.plan.warnings:
            log.warning("the configuration", why=warning)
        return {"generation": candidate.number, "changes": changes, "warnings": list(candidate.plan.warnings)}

    def _go_on(self) -> None:
        if self._supervisor.stopping:
            raise StartFailed([_DRAINING], os.EX_TEMPFAIL)

    def _bind(self, plan: Plan) -> tuple[Plan, Sockets]:
        """Files and sockets belong to somebody already: whom we become stays as it was at the start."""
        self._go_on()  # or the sockets, which are closed, would be opened again
        assert self._supervisor.current is not None
        ours = self._supervisor.current.plan
        self._kept = [
            {"key": key, "effect": Effect.RESTART, "from": getattr(ours, name), "to": getattr(plan, name)}
            for key, name in KEPT.items()
            if getattr(ours, name) != getattr(plan, name)
        ]
        plan = replace(plan, user=ours.user, group=ours.group)
        return plan, self._supervisor.held.bind(plan)

    def _keep_sockets(self) -> None:
        if self._supervisor.current is not None:
            self._supervisor.held.keep_only([self._supervisor.current.sockets])
