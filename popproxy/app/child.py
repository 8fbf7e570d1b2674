"""One worker process, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping
from enum import StrEnum
from itertools import islice
from typing import Any

from popproxy.admin.frames import CommandFailed
from popproxy.admin.tables import printable
from popproxy.app.forking import Nursery
from popproxy.app.link import Handler, Link, UnderWay
from popproxy.app.plan import Plan
from popproxy.app.sockets import Sockets
from popproxy.app.unwritten import Unwritten
from popproxy.observe.logs import get_logger
from popproxy.observe.metric_merge import Snapshot, fitting
from popproxy.session.admission import CROWDS
from popproxy.types import Outcome

HUNG = 30.0
"""Seconds without a sign of life after which a worker is ended by force."""
BORN_LIMIT = 30.0
"""Seconds until it says which process it is; then the nursery hangs."""
START_LIMIT = 120.0
"""Seconds that a worker may take to be ready."""
LAST_WORDS = 10.0
"""Seconds beyond the time for its sessions that a worker has for its end."""
_ABORT_LIMIT = 2.0  # seconds that it has to say where it hangs
_EOF_LIMIT = 1.0  # seconds between the end of a process and that of its socket
_MOST = 10_000_000  # sessions or connections that a worker can have; it may say anything
_REASONS, _LONGEST = 8, 200  # why it can serve no new session: so many, of so many characters; addresses are shorter

log = get_logger("supervisor")


class Stage(StrEnum):
    """How far a worker is."""

    STARTING = "starting"
    READY = "ready"  # could accept, but was not told to
    SERVING = "serving"
    LEAVING = "leaving"  # has sessions, but takes no new ones
    GONE = "gone"


class StartFailed(Exception):
    """A worker cannot start. `problems` is what a person is told, `status` what to exit with."""

    def __init__(self, problems: list[str], status: int) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.status = status


class Child:
    """A worker. `ended` is called once, when it is gone; `questions_of` it are those that it may ask.

    `status_of` a process that has ended already is how that was, None of one that runs.
    """

    def __init__(
        self, number: int, generation: int, questions_of: Callable[[Child], Mapping[str, Handler]],
        ended: Callable[[Child], None], status_of: Callable[[int], int | None],
    ) -> None:  # fmt: skip
        self.number = number
        self.generation = generation
        self.stage = Stage.STARTING
        self.sessions = 0
        self.reasons: list[str] = []
        self.counts: Snapshot = {}
        self.crowds: dict[str, int] = {}
        """Its connections by address, of those who have many."""
        self.elsewhere: dict[str, int] | None = None
        """What it was told of those of the others."""
        self.routes: dict[str, Any] = {}
        self.changes: list[dict[str, Any]] | None = None
        """What it says that has changed since the configuration before; None if nobody knows."""
        self.segment = ""
        """Of the audit log: its own one."""
        self.unwritten = Unwritten()
        """Audit records that it owes us."""
        self.pid = 0
        """Known when it says it, before it has read anything."""
        self.was = Stage.STARTING
        """The stage at which it ended, and for how many seconds it had been ready by then."""
        self.served = 0.0
        self.status: int | None = None
        """How it ended; negative: the signal."""
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._planned: asyncio.Future[tuple[Plan, bytes]] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._problems: list[str] = []
        self._lost = False
        self._questions = questions_of(self)
        self._status_of = status_of
        self._since = self._loop.time()
        self._last_sign = self._since
        self._end_by = self._since + START_LIMIT  # when its time is over, at this stage
        self._aborted = False
        self._doomed = False
        self._nursery: Nursery | None = None
        self.link: Link

    @property
    def killed_by_others(self) -> bool:
        """Has somebody else ended it by SIGKILL, not we?"""
        return self.status == -signal.SIGKILL and not self._doomed

    @property
    def name(self) -> str:
        """For logs and tables: generation and number."""
        return f"{self.generation}.{self.number}"

    def spawn(self, nursery: Nursery) -> None:
        """Start the process. Raises OSError if there is no room for it, or for the one that makes it."""
        self._nursery = nursery
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                nursery.fork(theirs, self.name)
            except OSError:
                ours.close()
                raise
        self.connect(ours)

    def connect(self, sock: socket.socket, under_way: UnderWay | None = None) -> None:
        """Talk to it over this end of its socket pair, and go on with what was `under_way` there."""
        self.link = Link(
            sock,
            questions=self._questions,
            tidings={
                "born": self._told_born,
                "plan": self._told_plan, "failed": self._failed, "ready": self._told_ready, "status": self._told_status,
                "last": self._told_last, "written": self._told_written,
            },
            lost=self._link_lost,
            under_way=under_way or UnderWay(),
        )  # fmt: skip

    # ---- another program in the supervisor's process ----

    def hand_over(self, keep: Callable[[socket.socket], int]) -> dict[str, Any]:
        """All that is known of it, good for JSON; `keep` numbers a socket."""
        under_way = self.link.under_way
        return {
            "number": self.number, "stage": self.stage, "sessions": self.sessions, "reasons": self.reasons,
            "counts": self.counts, "routes": self.routes, "segment": self.segment,
            "pid": self.pid, "status": self.status, "doomed": self._doomed,
            "unwritten": self.unwritten.hand_over(),
            "since": self._since, "end_by": self._end_by, "sock": keep(self.link.sock), "asked": under_way.asked,
            "unread": _text(under_way.unread), "unsent": _text(under_way.unsent),
        }  # fmt: skip

    def take_over(self, told: Mapping[str, Any], sock: socket.socket) -> None:
        """Go on with what `hand_over` has told. Times are those of CLOCK_MONOTONIC, which knows no programs."""
        self.stage = Stage(told["stage"])
        self.sessions, self.reasons = told["sessions"], told["reasons"]
        self.counts, self.routes, self.segment = told["counts"], told["routes"], told["segment"]
        self.pid, self.status, self._doomed = told["pid"], told["status"], told["doomed"]
        self._since, self._end_by = told["since"], told["end_by"]
        self.unwritten.take_over(told.get("unwritten", (0, ())))  # an earlier program did not know
        if self.stage is not Stage.STARTING:
            self._ready.set_result(None)
        unread, unsent = (base64.b64decode(told[name]) for name in ("unread", "unsent"))
        self.connect(sock, UnderWay(unread, unsent, told["asked"]))
        if self.status is not None:
            self._loop.call_later(_EOF_LIMIT, self._gone)

    # ---- what it is told ----

    def start(self, path: str, raw: bytes | None, previous: bytes | None) -> None:
        """Read the configuration: the octets `raw`, or those of the file if there are none yet."""
        self.link.tell("start", path=path, raw=_text(raw), previous=_text(previous))

    def go(self, sockets: Sockets, state: socket.socket, name: str, plan: Plan) -> None:
        """Take the sockets, and get ready. `state` is the way to what all share, `name` is for its log.

        Whom it becomes is not always as the file has it.
        """
        given = [*sockets.all(), ("state", state)]
        what = [name for name, _ in given]
        descriptors = [sock.fileno() for _, sock in given]
        self.link.tell("go", descriptors, sockets=what, name=name, user=plan.user, group=plan.group)

    def accept(self) -> None:
        """Serve."""
        self.stage = Stage.SERVING
        self.link.tell("accept")

    def leave(self, how: str, seconds: float) -> None:
        """``retire``, or ``drain``: the same while health is still asked for."""
        if self.stage in (Stage.SERVING, Stage.LEAVING):
            self.stage = Stage.LEAVING
            self._end_by = self._loop.time() + seconds + LAST_WORDS
            self.link.tell(how, seconds=seconds)
        else:
            self.kill()

    def end(self) -> None:
        """End the sessions now, by the rules."""
        self._end_by = self._loop.time() + LAST_WORDS
        self.link.tell("end")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it by force; one that has not said yet which process it is, as soon as it does."""
        self._doomed = True
        if self.pid and self.stage is not Stage.GONE and self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def abandon(self, why: str) -> None:
        """Have it end by itself at its start; who waits for it is told `why`."""
        self._problems = [why]
        with contextlib.suppress(OSError):
            self.link.sock.shutdown(socket.SHUT_WR)

    def tell_crowds(self, everywhere: Mapping[str, int]) -> None:
        """How many connections other workers have from one address; `everywhere` are all, its own included."""
        elsewhere = {key: count - self.crowds.get(key, 0) for key, count in everywhere.items()}
        elsewhere = {key: count for key, count in elsewhere.items() if count > 0}
        if elsewhere != self.elsewhere:
            self.elsewhere = elsewhere
            self.link.tell("crowds", elsewhere=elsewhere)

    def record(self, action: str, outcome: Outcome, fields: Mapping[str, object]) -> None:
        """Have it write an audit record. It is among the `unwritten` until it says that it has."""
        number = self.unwritten.add((action, outcome, dict(fields)))
        self.link.tell("record", action=action, outcome=outcome.value, fields=dict(fields), number=number)

    async def command(self, name: str, arguments: Mapping[str, object], seconds: float) -> Any:
        """Its result. Raises CommandFailed."""
        return await self.link.ask("command", seconds, name=name, arguments=arguments)

    async def fresh_counts(self, seconds: float) -> None:
        """Have `counts` brought up to date; left as they are if it does not answer."""
        if self.stage in (Stage.STARTING, Stage.GONE):
            return  # which has counted nothing yet, and listens for nothing but its start
        with contextlib.suppress(CommandFailed):
            self._take_counts(await self.link.ask("counts", seconds))

    # ---- what comes of it ----

    async def planned(self) -> tuple[Plan, bytes]:
        """Its plan, and the octets that it was made from. Raises StartFailed."""
        return await self._planned

    async def ready(self) -> None:
        """Returns when it could accept. Raises StartFailed."""
        await self._ready

    def check(self, late: float) -> None:
        """Called every second or so: has it hung, or has its time gone? `late` are seconds that we ourselves slept."""
        now = self._loop.time()
        if not self.pid and self._nursery is not None and now - late - self._since > BORN_LIMIT:
            log.error("a worker has not been made, and the nursery is ended", worker=self.name, seconds=BORN_LIMIT)
            self._nursery.end()
            self._gone()
            return
        if self.stage in (Stage.STARTING, Stage.LEAVING) and now > self._end_by:
            log.error("a worker is out of time and is killed", worker=self.name, pid=self.pid, stage=self.stage)
            self.kill()
        self._last_sign += late
        if self.stage not in (Stage.STARTING, Stage.GONE) and now - self._last_sign > HUNG:
            if not self._aborted:
                log.error("a worker hangs and is ended", worker=self.name, pid=self.pid, seconds=round(HUNG))
                self.kill(signal.SIGABRT)
                self._aborted = True
            elif now - self._last_sign > HUNG + _ABORT_LIMIT:
                self.kill()

    def reaped(self, status: int) -> None:
        """The process has ended; its last messages may still have to be read."""
        self.status = status
        if self._lost:
            self._gone()
        else:
            self._loop.call_later(_EOF_LIMIT, self._gone)

    # ---- pieces ----

    def _told_born(self, *, pid: int, **_: object) -> None:
        if self.pid:
            return  # later on strangers may speak through it, and name whom root is to kill
        self.pid = pid
        status = self._status_of(pid)
        if status is not None:
            self.reaped(status)
        elif self._doomed:
            self.kill()

    def _told_plan(
        self, *, plan: dict[str, Any], raw: str, changes: list[dict[str, Any]] | None = None, **_: object
    ) -> None:
        self.changes = changes
        if not self._planned.done():
            self._planned.set_result((Plan.from_json(plan), base64.b64decode(raw)))

    def _told_ready(self, *, routes: dict[str, Any], segment: str = "", **_: object) -> None:
        if self.stage is not Stage.STARTING:
            return  # said anew it would save one that is to leave from its end
        self.routes, self.segment = routes, segment
        self.stage = Stage.READY
        self._since = self._last_sign = self._loop.time()
        if not self._ready.done():
            self._ready.set_result(None)

    def _failed(self, *, problems: list[str], **_: object) -> None:
        self._problems = problems

    def _told_status(
        self, *, sessions: int, reasons: list[str], counts: object = None, crowds: dict[str, int] | None = None,
        **_: object,
    ) -> None:  # fmt: skip
        self._last_sign = self._loop.time()
        told = islice((crowds or {}).items(), CROWDS)
        self.crowds = {key: int(count) for key, count in told if len(key) <= _LONGEST and 0 < count <= _MOST}
        self.sessions = max(0, min(int(sessions), _MOST))
        self.reasons = [printable(str(reason)[:_LONGEST]) for reason in reasons[:_REASONS]]
        if counts is not None:
            self._take_counts(counts)

    def _told_last(self, *, counts: object, **_: object) -> None:
        self._take_counts(counts)
        self.sessions = 0

    def _told_written(self, *, number: int, **_: object) -> None:
        self.unwritten.written(number)

    def _take_counts(self, counts: Any) -> None:
        good = fitting(counts)
        if good is not None:  # or nothing could be added up any more, long after it has ended
            self.counts = good

    def _link_lost(self) -> None:
        self._lost = True
        if self.status is not None or not self.pid:
            self._gone()
        else:
            self._loop.call_later(_EOF_LIMIT, self.kill)

    def _gone(self) -> None:
        if self.stage is Stage.GONE:
            return
        before, self.stage = self.stage, Stage.GONE
        self.link.close()
        problems = self._problems or [f"a worker {how_ended(self.status)} at its start; its log says more"]
        status = self.status if self.status is not None and self.status > 0 else os.EX_SOFTWARE
        for waited in (self._planned, self._ready):
            if not waited.done():
                waited.set_exception(StartFailed(problems, status))
                waited.exception()  # nobody may be waiting
        self.was = before
        self.served = 0.0 if before is Stage.STARTING else self._loop.time() - self._since
        self._ended(self)


def how_ended(status: int | None) -> str:
    """In words; None if nothing is known of its process."""
    if status is None:
        return "could not be made"
    if status >= 0:
        return f"has ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def _text(octets: bytes | None) -> str | None:
    return None if octets is None else base64.b64encode(octets).decode()
