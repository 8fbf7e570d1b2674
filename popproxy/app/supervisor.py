"""The supervisor: binds, starts workers, answers operators and systemd, and never touches a session.

    popproxy serve ── exec ──> supervisor ── exec ──> worker, worker, ...      one generation for each configuration

It stays what it was started as, root perhaps: its workers read what only root may read, and then become process.user,
each for itself. It parses nothing that strangers send. So that nothing is lost it outlives configurations: the sockets
are its own, and what workers that are gone have counted is kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from popproxy.admin.commands import Commands, Role
from popproxy.admin.control_socket import ControlSocket
from popproxy.admin.desk import Desk
from popproxy.admin.routing import Router
from popproxy.admin.top import add_top
from popproxy.admin.trace import add_trace
from popproxy.app.answering import Control
from popproxy.app.child import Child, Stage, StartFailed, how_ended
from popproxy.app.forking import Nursery
from popproxy.app.generation import Generation
from popproxy.app.link import Handler
from popproxy.app.nursery import adopt_orphans
from popproxy.app.plan import Plan
from popproxy.app.records import Records
from popproxy.app.reloads import Reloads
from popproxy.app.requests import Requests
from popproxy.app.sockets import Held, Sockets, bind_control_as_planned
from popproxy.app.strangers import Strangers
from popproxy.app.succession import read, take_over
from popproxy.app.systemd import Notifier
from popproxy.app.upgrade import Upgrades
from popproxy.errors import ConfigError
from popproxy.observe import logs
from popproxy.observe.metric_merge import Snapshot, keyed, merged, settle
from popproxy.state.workers import StateServer
from popproxy.types import Outcome

COUNTS_LIMIT = 2.0
"""Seconds that a worker has to say what it has counted; then what it said last counts."""
STOPPING_MARGIN = 15.0
"""Seconds beyond timeouts.drain until the very end."""
_CHECK_INTERVAL = 1.0
_ANSWERED = 0.2  # seconds until it begins to end, so that the answer gets to whoever has told it to

log = logs.get_logger("supervisor")


class Supervisor:
    """One popproxy, with the configuration in the file `path`.

    `told` is what another program in this process has handed over (app/succession).
    """

    def __init__(self, path: str, told: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.held = Held()
        self.current: Generation | None = None
        self.retired: list[Generation] = []
        self.past: Snapshot = {}
        self.restarts = 0
        self.started = time.time()
        self.own = Commands()
        self.router = Router(self.own, self.workers)
        self.records = Records(self.workers)
        self.requests = Requests(self.own, self.router, self.records.record_elsewhere)
        self.reloads = Reloads(self)
        self.own.add("reload", self.reloads.reload)
        self.upgrades = Upgrades(self)
        self.own.add("upgrade", self.upgrades.upgrade)
        self.own.add("version", self.upgrades.version, Role.VIEWER)
        self.own.add("drain", self.drain)
        add_top(self.own, self.router)
        add_trace(self.own, self.router)
        self.state = StateServer()
        self._candidate: Generation | None = None
        self.nursery = Nursery()
        self.operators: defaultdict[tuple[str, str], float] = defaultdict(
            float
        )  # their commands, as in metric_families
        self.strangers = Strangers()
        self.control = Control(Desk(self.router, self, self.operators))
        self.systemd = Notifier.from_environment()
        self._before = told
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops = 0  # how often we were told to stop
        self._to_stop = False  # within moments: who has told it gets an answer first
        self._told = asyncio.Event()
        self._empty = asyncio.Event()
        self._checked = self._loop.time()

    async def run(self) -> int:
        """Start, serve, drain, end; returns the exit status. Raises StartFailed and ConfigError."""
        adopt_orphans()
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        if self._before is None:
            generation = self.generation(1)
            await generation.start(None, self._bind_first)
            control = self._bind_control(generation)
        else:
            control = await take_over(self, self._before)
            assert self.current is not None
            generation = self.current
        logs.configure(generation.plan.level, generation.plan.format)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop)
        self._loop.add_signal_handler(signal.SIGUSR1, self._reopen)
        self._loop.add_signal_handler(signal.SIGHUP, self.reloads.hang_up)
        self._loop.add_signal_handler(signal.SIGUSR2, self.upgrades.signalled)
        if self._before is None:
            self.serve(generation)
        else:
            self._reap()  # who has ended meanwhile
            self.upgrades.arrived(str(self._before["version"]))
        if control is not None:
            await self.control.answer_at(control, generation.plan)
        self._check()
        self.systemd.ready(self.status)
        await self._told.wait()
        await self._drain()
        return 0

    def stop(self) -> None:
        """Drain, and end; told once more: end at once."""
        self._stops += 1
        self._to_stop = False
        self._told.set()
        if self._stops > 1:
            for child in self.children():
                child.end()

    async def drain(self) -> object:
        """As SIGTERM: no new clients, sessions may finish, and then the end. Told once more it changes nothing."""
        assert self.current is not None
        if not self._stops and not self._to_stop:
            self._to_stop = True
            self._loop.call_later(_ANSWERED, self.stop)
        return {"sessions": sum(child.sessions for child in self.children()), "seconds": self.current.plan.drain}

    def generation(self, number: int) -> Generation:
        """A candidate: its workers are not started yet."""
        self._candidate = self.made(number)
        return self._candidate

    def made(self, number: int) -> Generation:
        """A generation without workers."""
        return Generation(
            number, self.path, self._questions_of, self._child_ended, self.nursery, self.strangers.status_of,
            self._share,
        )  # fmt: skip

    def serve(self, generation: Generation) -> None:
        """New clients are its own from now on."""
        self.current, self._candidate = generation, None
        self.router.routes = generation.routes
        generation.accept()

    def dismiss(self, generation: Generation) -> None:
        """A candidate that does not come to serve: its workers have been killed, and are on their way."""
        self._candidate = None
        self.retired += [generation] if generation.children else []

    @property
    def stopping(self) -> bool:
        """Have we been told to?"""
        return self._stops > 0 or self._to_stop

    def changing(self) -> bool:
        """Is a generation of workers being made, or a worker being given its sockets?"""
        return self._candidate is not None or self.reloads.busy or bool(self._tasks)

    def generations(self) -> list[Generation]:
        """All that have workers, the earlier ones first."""
        return [one for one in (*self.retired, self.current, self._candidate) if one is not None]

    def children(self) -> list[Child]:
        """The workers of all generations."""
        return [child for generation in self.generations() for child in generation.children]

    def workers(self) -> Sequence[Child]:
        """Those that serve or have sessions, those with the latest configuration first."""
        children = sorted(self.children(), key=lambda child: (-child.generation, child.number))
        return [child for child in children if child.stage in (Stage.SERVING, Stage.LEAVING)]

    def status(self) -> str:
        """One line for systemd."""
        sessions = sum(child.sessions for child in self.children())
        reasons = self.reasons()
        return f"{sessions} session{'' if sessions == 1 else 's'}, {'; '.join(reasons) or 'serving'}"

    def reasons(self) -> list[str]:
        """Why no new session can be served; empty if one can."""
        if self._stops:
            return ["draining"]
        serving = [child for child in self.children() if child.stage is Stage.SERVING]
        if not serving:
            return ["no worker runs"]
        if any(not child.reasons for child in serving):
            return []
        return list(dict.fromkeys(reason for child in serving for reason in child.reasons))

    def record(self, action: str, outcome: Outcome, **fields: object) -> None:
        """Have a worker write an audit record."""
        self.records.record(action, outcome, **fields)

    event = record
    """As AuditLog.event, for the control socket."""

    async def counts(self) -> Snapshot:
        """The metrics of all processes, past and present, as one."""
        await asyncio.gather(*(child.fresh_counts(COUNTS_LIMIT) for child in self.children()))
        living = [child.counts for child in self.children() if child.stage is not Stage.GONE]
        serving = [child.counts for child in self.workers() if child.stage is Stage.SERVING]
        result = merged(self.past, living, serving or living[:1])
        successful, when = self.reloads.last
        commands = result["counter"].setdefault("operator_commands", {})
        for key, count in self.operators.items():
            commands[keyed(key)] = commands.get(keyed(key), 0) + count
        result["counter"]["worker_restarts"] = {"": self.restarts}
        result["min"]["config_last_reload_successful"] = {"": successful}
        result["max"]["config_last_reload_success_timestamp_seconds"] = {"": when}
        result["min"]["process_start_time_seconds"] = {"": self.started}
        return result

    # ---- pieces ----

    def _share(self, sock: socket.socket) -> None:
        task = self._loop.create_task(self.state.attach(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _questions_of(self, child: Child) -> Mapping[str, Handler]:
        return {
            "counts": self.counts, "reasons": self._tell_reasons,
            "execute": partial(self.requests.execute, child),
        }  # fmt: skip

    async def _tell_reasons(self) -> object:
        return self.reasons()

    def _bind_first(self, plan: Plan) -> tuple[Plan, Sockets]:
        self.held.take_passed(plan)
        return plan, self.held.bind(plan)

    def _bind_control(self, generation: Generation) -> ControlSocket | None:
        try:
            return bind_control_as_planned(generation.plan)
        except ConfigError:
            generation.kill()
            raise

    def _child_ended(self, child: Child, again: bool) -> None:
        settle(self.past, child.counts)
        self.records.lost(child)
        if again:
            self.restarts += 1
        self.retired = [generation for generation in self.retired if generation.children]
        if not self.children():
            self._empty.set()

    def _reap(self) -> None:
        """Also those that we have never started: as process 1 of a container they are ours to bury."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._bury(pid, os.waitstatus_to_exitcode(status))

    def _bury(self, pid: int, status: int) -> None:
        if pid == self.nursery.pid:
            log.error("the nursery of workers has ended", why=how_ended(status))
            self.nursery.forget()
            return
        for child in self.children():
            if child.pid == pid:
                child.reaped(status)
                return
        self.strangers.ended(pid, status)

    def _check(self) -> None:
        self._loop.call_later(_CHECK_INTERVAL, self._check)  # first: whatever goes wrong, it goes on
        now = self._loop.time()
        late = max(0.0, now - self._checked - 2 * _CHECK_INTERVAL)  # the machine slept, or we did: so did they
        self._checked = now
        for child in self.children():
            child.check(late)
        self._spread_crowds()
        self.records.pass_on()

    def _spread_crowds(self) -> None:
        """Each worker refuses by itself who has too many connections: so it must know of the others'."""
        everywhere: Counter[str] = Counter()
        for child in self.children():
            everywhere.update(child.crowds)
        for child in self.children():
            if child.stage is Stage.SERVING:
                child.tell_crowds(everywhere)

    def _reopen(self) -> None:
        for child in self.workers():
            child.link.tell("reopen")

    async def _drain(self) -> None:
        assert self.current is not None
        seconds = self.current.plan.drain
        self.systemd.stopping(seconds + STOPPING_MARGIN)
        log.info("draining", sessions=sum(child.sessions for child in self.children()), seconds=seconds)
        self.held.close()
        for generation in self.generations():
            generation.leave("drain", seconds)
        if self.children():
            self._empty.clear()
            await self._empty.wait()
        await self.control.stop()
        self.records.close()
        self.systemd.close()
        log.info("all workers have ended")


def _ignore_signals(loop: asyncio.AbstractEventLoop) -> None:
    """The end has begun, and ends with status 0. Between handler and ignoring there is a moment that would kill."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


async def supervise(path: str, told: int | None) -> int:
    """Run until the end; returns the exit status, having said on standard error what was wrong.

    `told` is the descriptor of what another program in this process has handed over.
    """
    loop = asyncio.get_running_loop()
    try:
        status = await Supervisor(path, None if told is None else read(told)).run()
    except StartFailed as failed:
        problems, status = failed.problems, failed.status
    except ConfigError as error:
        problems, status = [str(problem) for problem in error.problems], os.EX_CONFIG
    else:
        problems = []
    with contextlib.suppress(OSError):
        for problem in problems:
            os.write(2, f"popproxy: {problem}\n".encode(errors="backslashreplace"))
    _ignore_signals(loop)
    return status
