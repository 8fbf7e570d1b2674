"""The proxy of one process: becomes an ordinary user, serves, drains, ends. It binds only if nobody has for it.

`popproxy serve` runs one in each of its workers (app/worker); tests and the demonstration in their own process.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from popproxy import __version__
from popproxy.admin.backends import add_backends
from popproxy.admin.commands import Commands, Executor, Forwarded
from popproxy.admin.control import ControlServer
from popproxy.admin.control_socket import ControlSocket
from popproxy.admin.desk import Desk
from popproxy.admin.orders import add_orders
from popproxy.admin.penalties import add_penalties
from popproxy.admin.sessions import add_sessions
from popproxy.admin.top import add_top
from popproxy.admin.trace import add_trace
from popproxy.admin.watches import add_watches
from popproxy.app import privileges
from popproxy.app.build import Parts, describe_config, read_privileged
from popproxy.app.names import wants_names
from popproxy.app.operators import OperatorSecrets
from popproxy.app.plan import plan_of
from popproxy.app.sockets import Held, Sockets, allowed, bind_control_as_planned
from popproxy.config.loader import Loaded
from popproxy.config.model import Config
from popproxy.errors import AuditError
from popproxy.net.listener import Acceptor
from popproxy.observe import logs
from popproxy.observe.metric_exposition import Exposition
from popproxy.observe.metrics import Metrics
from popproxy.session.context import ListenerContext
from popproxy.session.session import Session
from popproxy.types import Address

if TYPE_CHECKING:
    from popproxy.admin.console import ConsoleServer
    from popproxy.admin.http import HttpServer
    from popproxy.admin.status import StatusPage

_IMPORTED_LATE = ("concurrent.futures.thread", "encodings.idna", "stringprep")
"""What the standard library imports on first use, when an unprivileged user may not be able to read it any more."""
LAST_WORDS = 2.0
"""Seconds for sessions that were told to end, and for what they say last to get to their clients."""
FEW = 4
"""Connections that make room where there is no descriptor left: a session and its link take two or three."""
ACCEPT_COMPLAINTS = 10.0
"""Seconds between two log lines about connections that cannot be accepted."""

log = logs.get_logger("popproxy")


class Others(Protocol):
    """The processes beside this one, as far as metrics and health go."""

    async def metrics(self, own: Metrics) -> Exposition:
        """Those of all processes as one."""
        ...

    async def ready(self, reasons: list[str]) -> list[str]:
        """Why no new session can be served, those of this process being `reasons`; empty if one can."""
        ...

    def executor(self, own: Commands) -> Executor:
        """Carries out commands in all processes; `own` are those of this one."""
        ...


class Alone:
    """There are none."""

    async def metrics(self, own: Metrics) -> Exposition:
        """Our own."""
        return own

    async def ready(self, reasons: list[str]) -> list[str]:
        """Our own."""
        return reasons

    def executor(self, own: Commands) -> Executor:
        """Our own."""
        return own


class Service:
    """One proxy in this process.

    Without `sockets` it binds them, and the control socket too; else it serves those that it is given, and somebody
    else answers operators by its `commands`. `others` are the processes beside it, and `supervisor` is a socket to who
    keeps the state that they share.
    """

    def __init__(
        self, loaded: Loaded, sockets: Sockets | None = None, others: Others | None = None,
        supervisor: socket.socket | None = None,
    ) -> None:  # fmt: skip
        self._supervisor = supervisor
        self.addresses: dict[str, list[Address]] = {}
        """The bound ones, by listener, after `accept`."""
        self.http_address: Address | None = None
        self.sessions: set[Session] = set()
        self.commands = Commands()
        self._loaded = loaded
        self._sockets = sockets
        self._others = others or Alone()
        self._bound_control: ControlSocket | None = None
        self._parts: Parts | None = None
        self._secrets = OperatorSecrets()
        self._page: StatusPage | None = None
        self._console: ConsoleServer | None = None
        self._acceptors: list[Acceptor] = []
        self._http: HttpServer | None = None
        self._control: ControlServer | None = None
        self.closed = False
        """The audit log takes no records any more."""
        self._draining = False
        self._complain_again = 0.0  # loop time

    @property
    def parts(self) -> Parts:
        """What the sessions share, after `prepare`."""
        assert self._parts is not None
        return self._parts

    async def start(self) -> None:
        """Bind, drop privileges, open files, accept. Raises ConfigError; nothing is left open then."""
        await self.prepare()
        await self.accept()

    async def prepare(self) -> None:
        """Everything but accepting. Raises ConfigError; nothing is left open then."""
        if self._sockets is None:
            self._bind()
        try:
            privileged = read_privileged(self._loaded)
            try:
                for module in (*_IMPORTED_LATE, *_wanted(self._loaded.config)):
                    importlib.import_module(module)
                privileges.drop(self._loaded.config.process, str(self._loaded.path))
                loop = asyncio.get_running_loop()
                parts = self._parts = Parts(self._loaded, privileged, loop, self._supervisor)
            except BaseException:
                privileged.close()
                raise
        except BaseException:
            self._close_sockets()
            raise
        parts.metrics.config_last_reload_successful = 1
        parts.metrics.config_last_reload_success_timestamp_seconds = time.time()
        add_penalties(self.commands, parts.throttle, parts.vet_name)
        add_backends(self.commands, parts.pools, parts.backends.latest, parts.metrics, parts.holding.book)
        add_orders(self.commands, parts.holding, parts.pools, self.sessions, parts.vet_name)
        add_sessions(self.commands, self.sessions, self._counts, parts.vet_name)
        add_watches(self.commands, self.sessions, parts.tracing, parts.vet_name)
        self._secrets = privileged.operators

    async def accept(self) -> None:
        """Serve from now on."""
        config, parts, sockets = self._loaded.config, self.parts, self._sockets
        assert sockets is not None
        contexts = {listener.name: parts.listener(listener) for listener in config.listeners}
        known = Forwarded(self.commands, self._others.executor(self.commands))
        add_trace(known, known)
        add_top(known, known)
        desk = Desk(known, parts.audit, parts.metrics.operator_commands)
        if sockets.http:
            from popproxy.admin.http import HttpServer  # noqa: PLC0415 - see _wanted
            from popproxy.admin.status import StatusPage  # noqa: PLC0415

            token, hosts = self._secrets.http_token, config.http.hosts
            page = self._page = StatusPage(known, desk, config.listeners, self._ready, token, hosts)
            self._http = HttpServer(sockets.http, self._counts, self._ready, page.routes)
            await page.start()
            self.http_address = await self._http.start()
        parts.audit.start()
        await parts.share()
        parts.orders.start()
        parts.backends.start()
        parts.discover()
        await self._answer_operators(desk, sockets)
        for name, sock in sockets.listeners:
            self._accept_on(contexts[name], sock)
        log.info("serving", version=__version__, config=str(self._loaded.path), what=describe_config(config))

    async def _answer_operators(self, desk: Desk, sockets: Sockets) -> None:
        """At the console and at the control socket, as far as there are any here."""
        config, parts = self._loaded.config, self.parts
        if sockets.console and config.console is not None and self._secrets.host_key is not None:
            from popproxy.admin.console import ConsoleServer  # noqa: PLC0415 - an optional library

            key = self._secrets.host_key
            self._console = ConsoleServer(config.console, key, sockets.console, desk, parts.audit, parts.state)
            await self._console.start()
        if self._bound_control is not None:
            plan = plan_of(self._loaded, __version__, 1, "")
            self._control = ControlServer(self._bound_control, desk, allowed(plan))
            await self._control.start()

    async def stop(self, drain: float = 0.0, *, http: bool = True) -> None:
        """Refuse new connections, give running sessions `drain` seconds, end the rest by the rules, close the books.

        Meanwhile HTTP and operators are answered, unless `http` is false because another process does.
        """
        self._draining = True
        for acceptor in self._acceptors:
            acceptor.close()
        parts = self._parts
        if parts is None:
            return
        if not http:
            await self._leave_operators()
        await _wait_while(lambda: bool(self.sessions), drain)
        for session in list(self.sessions):
            session.shut_down()
        await _wait_while(lambda: bool(self.sessions or parts.reactor.watching), LAST_WORDS)
        await self._leave_operators()
        if self._control is not None:
            await self._control.stop()
        await parts.hang_up()
        self.closed = True
        parts.close()
        await parts.audit.settle()
        log.info("stopped")

    def reopen(self) -> None:
        """The audit file has been renamed: start a new one."""
        if self.closed:
            return
        try:
            self.parts.audit.reopen()
        except AuditError as error:
            log.error("the audit log could not be reopened", why=str(error))

    def reasons(self) -> list[str]:
        """Why this process can serve no new session; empty if it can."""
        reasons = []
        if self._draining:
            reasons.append("draining")
        if self._parts is not None and not self._parts.audit.healthy and self._loaded.config.audit.on_error == "closed":
            reasons.append("the audit log cannot be written, logins are refused")
        return reasons

    # ---- pieces ----

    async def _leave_operators(self) -> None:
        """Those of the console, of the status page, and of HTTP."""
        if self._console is not None:
            await self._console.stop()
        if self._page is not None:
            await self._page.stop()
        if self._http is not None:
            await self._http.stop()
        self._console = self._page = self._http = None

    def _bind(self) -> None:
        plan = plan_of(self._loaded, __version__, 1, "")
        self._sockets = Held().bind(plan)
        try:
            self._bound_control = bind_control_as_planned(plan)
        except BaseException:
            self._close_sockets()
            raise

    def _close_sockets(self) -> None:
        assert self._sockets is not None
        self._sockets.close()
        if self._bound_control is not None:
            self._bound_control.close()

    async def _counts(self) -> Exposition:
        return await self._others.metrics(self.parts.metrics)

    def _accept_on(self, context: ListenerContext, sock: socket.socket) -> None:
        parts = self._parts
        assert parts is not None

        def accepted(client: socket.socket, peer: Address) -> None:
            Session(context, client, peer, self.sessions)

        def failed(error: OSError) -> None:
            parts.metrics.accept_errors += 1
            parts.metrics.connections_refused[(context.listener.name, "fd")] += 1
            parts.admission.evict(FEW)  # or whoever has the descriptors and says nothing keeps everybody out
            now = context.reactor.loop.time()
            if now < self._complain_again:
                return  # a line for each client that is turned away would fill a disk
            self._complain_again = now + ACCEPT_COMPLAINTS
            log.error("cannot accept", listener=context.listener.name, why=error.strerror)

        acceptor = Acceptor(context.reactor, sock, accepted, failed)
        self._acceptors.append(acceptor)
        self.addresses.setdefault(context.listener.name, []).append(acceptor.address)

    async def _ready(self) -> list[str]:
        return await self._others.ready(self.reasons())


async def _wait_while(condition: Callable[[], bool], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while condition() and loop.time() < deadline:  # noqa: ASYNC110 - rare, and over soon
        await asyncio.sleep(0.02)


def _wanted(config: Config) -> Iterator[str]:
    """Large modules that only some configurations need, to be imported while root may still read them."""
    if config.http.listen is not None:
        yield "popproxy.admin.http"
        yield "popproxy.admin.status"
    if config.vault is not None:
        yield "popproxy.vault.store"
    if wants_names(config):
        yield "popproxy.net.dns"
    if config.kerberos is not None or any(pool.pin for pool in config.pools.values()):
        yield "popproxy.net.certificate"


def settle_memory() -> None:
    """Sessions leave no cycles, so the collector may look rarely, and never at what was made at the start."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
