"""One worker of a supervisor, forked from the nursery, with its end of a socket pair.

It reads the configuration and tells the supervisor what is in it for that (a Plan), gets the sockets, reads what only
root may read, becomes an ordinary user, and is ready. From then on it does as it is told: accept, retire, drain, end.
If the supervisor is gone it accepts nobody any more, lets its sessions finish, and ends.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import faulthandler
import os
import resource
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from popproxy import __version__
from popproxy.admin.commands import Commands, Executor
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.app.build import describe_config
from popproxy.app.effects import effect_of
from popproxy.app.link import Link, receive_now, send_now
from popproxy.app.loop import run
from popproxy.app.plan import plan_of
from popproxy.app.service import Service, settle_memory
from popproxy.app.sockets import Sockets
from popproxy.config.differences import differences
from popproxy.config.finding import dotted
from popproxy.config.loader import Loaded, load_bytes, read_file
from popproxy.config.model import Config
from popproxy.errors import ConfigError, Unavailable
from popproxy.observe import logs
from popproxy.observe.metric_exposition import Exposition
from popproxy.observe.metric_snapshot import MergedMetrics, snapshot
from popproxy.observe.metrics import Metrics
from popproxy.types import Outcome

STATUS_INTERVAL = 1.0
"""Seconds between two signs of life."""
COUNTS_EVERY = 5
"""With how many of them what has been counted is sent along, for the case that this process dies."""
PATIENCE = 5.0
"""Seconds for the supervisor's answer."""
COMMAND_PATIENCE = 25.0
"""Seconds for that of all workers to a command; the supervisor waits for 20."""

log = logs.get_logger("worker")


def main(descriptor: int) -> int:
    """Serve until told to end; returns the exit status."""
    faulthandler.enable()  # the supervisor aborts a worker that hangs: the log then says where
    sock = socket.socket(fileno=descriptor)
    try:
        send_now(sock, "born", pid=os.getpid())
        _, start, _ = receive_now(sock)
        try:
            path = Path(start["path"])
            raw = read_file(path) if start["raw"] is None else base64.b64decode(start["raw"])
            loaded = load_bytes(raw, path)
        except ConfigError as error:
            send_now(sock, "failed", problems=[str(problem) for problem in error.problems])
            return os.EX_CONFIG
        plan = plan_of(loaded, __version__, how_many(loaded.config), describe_config(loaded.config))
        changes = None if start["previous"] is None else _changes(base64.b64decode(start["previous"]), loaded)
        send_now(sock, "plan", plan=plan.to_json(), raw=base64.b64encode(raw).decode(), changes=changes)
        _, go, descriptors = receive_now(sock)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0  # the supervisor does without us
    given = list(zip(go["sockets"], map(_adopted, descriptors), strict=True))
    sockets = Sockets.of(given)
    shared = next(sock for name, sock in given if name == "state")
    # after a reload perhaps not as the file has it
    process = loaded.config.process.model_copy(update={"user": go["user"], "group": go["group"]})
    connections = share(loaded.config.limits.connections, go["name"], how_many(loaded.config))
    limits = loaded.config.limits.model_copy(update={"connections": connections})
    loaded = replace(loaded, config=loaded.config.model_copy(update={"process": process, "limits": limits}))
    logs.configure(loaded.config.logging.level, loaded.config.logging.format)
    if go["name"]:
        logs.bind(worker=go["name"])
    _raise_descriptor_limit(loaded.config.limits.connections, 3 if loaded.config.tunnels else 2)
    return run(_serve(loaded, sock, sockets, shared))


def _changes(previous: bytes, loaded: Loaded) -> list[dict[str, object]] | None:
    """What the file says otherwise than when it held `previous`; None if that cannot be read any more."""
    try:
        before = load_bytes(previous, loaded.path).config
    except ConfigError:
        return None  # of another version
    found = ((dotted(one.key), one.shown) for one in differences(before, loaded.config))
    return [
        {"key": key, "effect": effect_of(key), **({"from": shown[0], "to": shown[1]} if shown else {})}
        for key, shown in found
    ]


def how_many(config: Config) -> int:
    """Workers that the configuration asks for; with ``auto`` no more than there may be connections."""
    return config.workers or min(len(os.sched_getaffinity(0)), config.limits.connections)


def share(limit: int, name: str, workers: int) -> int:
    """Of a limit for all `workers`, what the one with this name has, GENERATION.NUMBER or "" for the only one."""
    number = int(name.rpartition(".")[2] or 1)
    return limit // workers + (number <= limit % workers)


def _adopted(descriptor: int) -> socket.socket:
    return socket.socket(fileno=descriptor)


async def _serve(loaded: Loaded, sock: socket.socket, sockets: Sockets, shared: socket.socket) -> int:
    worker = Worker(loaded, sock, sockets, shared)
    return await worker.run()


class Worker:
    """A service, and the link to its supervisor. Also what the service knows of `Others`."""

    def __init__(self, loaded: Loaded, sock: socket.socket, sockets: Sockets, shared: socket.socket) -> None:
        self._loaded = loaded
        self._loop = asyncio.get_running_loop()
        self._service = Service(loaded, sockets, self, shared)
        self._told: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
        self._ticks = 0
        self._workers = how_many(loaded.config)
        self._serving = False
        self._early: list[tuple[str, str, dict[str, object], int]] = []  # records that may not come before audit_start
        self._tasks: set[asyncio.Task[None]] = set()
        self._link = Link(
            sock,
            questions={"command": self._command, "counts": self._counts},
            tidings={
                "accept": lambda: self._told.put_nowait(("accept", 0.0)),
                "retire": lambda seconds: self._told.put_nowait(("retire", seconds)),
                "drain": lambda seconds: self._told.put_nowait(("drain", seconds)),
                "end": lambda: self._told.put_nowait(("end", 0.0)),
                "reopen": self._service.reopen,
                "record": self._record,
                "crowds": self._crowded,
            },
            lost=self._lost,
        )

    async def run(self) -> int:
        """Until the end; returns the exit status."""
        try:
            await self._service.prepare()
        except ConfigError as error:
            self._link.tell("failed", problems=[str(problem) for problem in error.problems])
            self._link.finish()
            return os.EX_CONFIG
        self._link.tell("ready", routes=self._service.commands.routes(), segment=self._service.parts.audit.segment)
        self._sign()
        what, seconds = await self._told.get()
        if what != "accept":
            return 0  # another worker of this generation could not start
        await self._service.accept()
        self._serving = True
        for record in self._early:
            self._record(*record)
        settle_memory()
        self._sign()
        what, seconds = await self._told.get()
        await self._stop(what, seconds)
        self._link.tell("last", counts=snapshot(self._service.parts.metrics))
        self._link.finish()
        return 0

    async def metrics(self, own: Metrics) -> Exposition:
        """Those of all processes, from the supervisor. Raises Unavailable."""
        try:
            return MergedMetrics(own, await self._link.ask("counts", PATIENCE))  # type: ignore[arg-type]
        except CommandFailed as error:
            raise Unavailable(f"the supervisor: {error}") from None

    async def ready(self, reasons: list[str]) -> list[str]:
        """What the supervisor knows, and this process alone if there is no supervisor any more."""
        try:
            told = await self._link.ask("reasons", PATIENCE)
        except CommandFailed as error:
            return [f"the supervisor: {error}", *reasons]
        assert isinstance(told, list)
        return list(dict.fromkeys([*told, *reasons]))

    def executor(self, own: Commands) -> Executor:
        """The supervisor, who asks all workers."""
        return self

    async def execute(self, name: object, arguments: Mapping[str, object]) -> object:
        """In all workers. Raises CommandFailed."""
        return await self._link.ask("execute", COMMAND_PATIENCE, name=name, arguments=arguments)

    # ---- pieces ----

    async def _stop(self, what: str, seconds: float) -> None:
        stopping = asyncio.ensure_future(self._service.stop(seconds, http=what == "drain"))
        while not stopping.done():
            more = asyncio.ensure_future(self._told.get())
            await asyncio.wait({stopping, more}, return_when=asyncio.FIRST_COMPLETED)
            if not more.done():
                more.cancel()
                break
            what, seconds = more.result()
            stopping.cancel()  # retired, and now drained; or told to end
            with contextlib.suppress(asyncio.CancelledError):
                await stopping
            stopping = asyncio.ensure_future(self._service.stop(seconds, http=what == "drain"))
        await stopping

    def _sign(self) -> None:
        """A sign of life of the running loop; what has been counted goes with some."""
        counts = snapshot(self._service.parts.metrics) if self._ticks % COUNTS_EVERY == 0 else None
        self._ticks += 1
        crowds = self._service.parts.admission.crowds(self._workers)
        self._link.tell(
            "status", sessions=len(self._service.sessions), reasons=self._service.reasons(), counts=counts,
            crowds=crowds,
        )  # fmt: skip
        self._loop.call_later(STATUS_INTERVAL, self._sign)

    def _crowded(self, elsewhere: dict[str, int]) -> None:
        self._service.parts.admission.elsewhere = elsewhere

    def _lost(self) -> None:
        self._told.put_nowait(("lost", self._loaded.config.timeouts.drain))

    async def _command(self, name: str, arguments: Mapping[str, object]) -> object:
        try:
            return await self._service.commands.execute(name, arguments)
        except Unavailable as error:
            raise CommandFailed(Reason.REFUSED, str(error)) from None

    async def _counts(self) -> object:
        return await asyncio.to_thread(snapshot, self._service.parts.metrics)

    def _record(self, action: str, outcome: str, fields: dict[str, object], number: int = 0) -> None:
        if not self._serving:
            self._early.append((action, outcome, fields, number))
        elif not self._service.closed:  # or another worker writes it, as nobody says that it is written
            self._service.parts.audit.event(action, Outcome(outcome), **fields)
            self._say_written(number)

    def _say_written(self, number: int) -> None:
        """As soon as it is; a disk may be full."""

        def tried(written: bool) -> None:
            if written:
                self._link.tell("written", number=number)
            else:
                self._loop.call_later(STATUS_INTERVAL, self._say_written, number)

        self._service.parts.audit.commit_then(tried)


def _raise_descriptor_limit(connections: int, each: int) -> None:
    """`each` descriptors a session, and some for the rest; beyond the hard limit only root can go."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = each * connections + 100
    for limits in ((wanted, max(wanted, hard)), (min(wanted, hard), hard)):
        if soft >= wanted:
            return
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            soft = limits[0]
    if soft < wanted:
        cure = f"raise the limit (systemd: LimitNOFILE={wanted}), or lower limits.connections"
        log.warning(
            "too few file descriptors", possible_connections=(soft - 100) // each, wanted=connections, cure=cure
        )
