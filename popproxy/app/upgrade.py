"""Another version of popproxy in the place of the running one, without a refused connection, with the same process id.

Three steps, and if one fails everything goes on as it was. A rehearsal: can what is installed now be loaded, and does
it understand the supervisor that runs? Then a reload, whose workers come from a nursery with the new code. And when
they serve, the supervisor replaces its own program (execve) and goes on with all that it had: sockets, workers, counts.
Only the connections of operators are cut by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from popproxy import __version__
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.app.forking import Nursery
from popproxy.app.succession import living, told_by, written
from popproxy.observe.logs import get_logger
from popproxy.types import Outcome

if TYPE_CHECKING:
    from popproxy.app.supervisor import Supervisor

REHEARSAL: Final = "popproxy.app.rehearsing"
REHEARSAL_LIMIT: Final = 60.0
"""Seconds."""
QUIET_LIMIT: Final = 5.0
"""Seconds that questions between supervisor and workers have to be answered before their time is over."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
"""They wait while there is nobody to handle them."""
ROOM: Final = 16
"""Descriptors that the next program needs beside those that it is given, or it would end as soon as it has begun."""
_ANSWERED = 0.2  # seconds for the answer to get to the operator
_POLL = 0.02
_TURNS = 3  # of the loop until a signal is handled: it sees that there is something, reads it, and calls the handler

log = get_logger("supervisor")


class Upgrades:
    """Those of one supervisor. `done` is how many there have been, `own` the version of this program."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.done = 0
        self.own = __version__
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._under_way = False
        self._tasks: set[asyncio.Task[Any]] = set()

    async def upgrade(self) -> object:
        """Replace the running version by the one that is installed now. Raises CommandFailed; then nothing has changed.

        When it returns the new workers serve; the supervisor's own program follows within moments.
        """
        if self._under_way:
            raise CommandFailed(Reason.REFUSED, "an upgrade is under way")
        self._under_way = True  # until this program is replaced, or goes on
        try:
            version = await self._rehearse()
            done = await self._replace_workers()
        except BaseException as error:
            self._under_way = False
            if isinstance(error, CommandFailed):
                for problem in str(error).splitlines():
                    log.error("the version stays as it was", version=self.own, why=problem)
                self._supervisor.record("upgrade", Outcome.FAILURE)
            raise
        self._start(self._replace_program())
        return {**done, "version": version, "before": self.own, "upgrades": self.done + 1}

    async def version(self) -> object:
        """What runs: the supervisor's version, the number of its upgrades, and the versions of workers' generations."""
        return {"version": self.own, "upgrades": self.done, "generations": self._versions()}

    def signalled(self) -> None:
        """SIGUSR2: upgrade; what comes of it stands in the log."""
        self._start(self._quietly())

    def arrived(self, before: str) -> None:
        """What now runs goes on with what the program of the version `before` has begun; signals are heard again."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        log.info("upgraded", version=self.own, before=before)
        self._supervisor.record("upgrade", Outcome.SUCCESS)

    # ---- pieces ----

    def _versions(self) -> dict[int, str]:
        return {generation.number: generation.plan.version for generation in living(self._supervisor)}

    def _asking(self) -> bool:
        return self._supervisor.state.busy or any(child.link.busy for child in self._supervisor.children())

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self) -> None:
        with contextlib.suppress(CommandFailed):
            await self.upgrade()

    async def _rehearse(self) -> str:
        """The version that is installed. Raises CommandFailed."""
        pid, heard = self._begin_rehearsal()
        reader = asyncio.StreamReader()
        pipe = os.fdopen(heard, "rb")
        transport, _ = await self._loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            async with asyncio.timeout(REHEARSAL_LIMIT):
                output = await reader.read()
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # not buried yet: it holds the pipe
            if not isinstance(error, TimeoutError):
                raise
            text = f"what is installed has not been loaded within {REHEARSAL_LIMIT:g} s"
            raise CommandFailed(Reason.REFUSED, text) from None
        finally:
            transport.close()
        return _understood(output)

    def _begin_rehearsal(self) -> tuple[int, int]:
        """The process, and the descriptor of what it says. Raises CommandFailed."""
        command = [sys.executable, "-P", "-m", REHEARSAL]
        with contextlib.ExitStack() as opened:
            try:
                told = written(told_by(self._supervisor, lambda descriptor: descriptor))
                opened.callback(os.close, told)
                heard, say = os.pipe()
                opened.callback(os.close, say)
                actions = [(os.POSIX_SPAWN_DUP2, told, 0), (os.POSIX_SPAWN_DUP2, say, 1), (os.POSIX_SPAWN_DUP2, say, 2)]
                with contextlib.ExitStack() as unheard:
                    unheard.callback(os.close, heard)
                    pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions, setsigmask=[])
                    unheard.pop_all()
            except OSError as error:
                text = f"what is installed cannot be tried, {sys.executable}: {error.strerror}"
                raise CommandFailed(Reason.REFUSED, text) from None
        return pid, heard

    async def _replace_workers(self) -> dict[str, object]:
        """Raises CommandFailed."""
        supervisor = self._supervisor
        before, supervisor.nursery = supervisor.nursery, Nursery()
        try:
            done = await supervisor.reloads.reload()
        except BaseException:
            supervisor.nursery.forget()
            supervisor.nursery = before
            raise
        before.forget()
        assert isinstance(done, dict)
        return done

    async def _replace_program(self) -> None:
        """When nothing is under way that the next program would not know of. It returns only if that was not to be."""
        supervisor = self._supervisor
        await asyncio.sleep(_ANSWERED)
        try:
            await self._replace_when_quiet(supervisor)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self._under_way = False

    async def _replace_when_quiet(self, supervisor: Supervisor) -> None:
        latest = self._loop.time() + QUIET_LIMIT
        while True:
            # what it waits for is told in many places
            while supervisor.changing() or (self._asking() and self._loop.time() < latest):  # noqa: ASYNC110
                await asyncio.sleep(_POLL)
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            for _ in range(_TURNS):
                await asyncio.sleep(0)  # those that came before are handled
            if supervisor.stopping:
                self._keeps("popproxy is draining")
                return
            if not supervisor.changing():
                self._execute()
                return
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _execute(self) -> None:
        from popproxy.app.supervising import SUPERVISOR  # noqa: PLC0415 - it imports the supervisor

        supervisor, kept = self._supervisor, []

        def keep(descriptor: int) -> int:
            kept.append(descriptor)
            return descriptor

        supervisor.state.pause()
        for child in supervisor.children():
            child.link.pause()
        told = None
        try:
            told = written(told_by(supervisor, keep))
            kept.append(told)
            _require_room()
            for descriptor in kept:
                os.set_inheritable(descriptor, True)
            command = [sys.executable, "-P", "-m", SUPERVISOR, supervisor.path, str(told)]
            environment = {**os.environ, **supervisor.systemd.environment}
            log.info("goes on as the program that is installed now")
            sys.stdout.flush()
            sys.stderr.flush()
            os.execve(sys.executable, command, environment)  # noqa: S606
        except Exception as error:  # whatever it was: nobody heard us any more
            why = (error.strerror or str(error)) if isinstance(error, OSError) else repr(error)
            for descriptor in kept:
                with contextlib.suppress(OSError):
                    os.set_inheritable(descriptor, False)
            if told is not None:
                os.close(told)
        supervisor.state.resume()
        for child in supervisor.children():
            child.link.resume()
        self._keeps(why)

    def _keeps(self, why: str) -> None:
        log.error("the supervisor keeps its version; its workers have the new one", why=why)
        self._supervisor.record("upgrade", Outcome.FAILURE)


def _require_room() -> None:
    """Raises OSError if there is not enough for another program."""
    with contextlib.ExitStack() as opened:
        for _ in range(ROOM):
            opened.callback(os.close, os.dup(0))


def _understood(output: bytes) -> str:
    """The version that a rehearsal has told. Raises CommandFailed."""
    lines = output.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    said: Any = None
    with contextlib.suppress(ValueError):
        said = json.loads(lines[-1])
    if isinstance(said, dict) and "version" in said:
        return str(said["version"])
    why = said["failed"] if isinstance(said, dict) and "failed" in said else lines[-1]
    raise CommandFailed(Reason.REFUSED, f"what is installed cannot take over: {why}")
