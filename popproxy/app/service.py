"""The running proxy: binds, becomes an ordinary user, serves, drains, ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from popproxy import __version__
from popproxy.admin.backends import add_backends
from popproxy.admin.commands import Commands
from popproxy.admin.control import Allowed, ControlServer
from popproxy.admin.control_socket import ControlSocket, bind_control
from popproxy.admin.desk import Desk
from popproxy.admin.orders import add_orders
from popproxy.admin.penalties import add_penalties
from popproxy.admin.sessions import add_sessions
from popproxy.admin.top import add_top
from popproxy.admin.trace import add_trace, add_watches
from popproxy.app import privileges
from popproxy.app.build import Parts, describe_config, read_privileged
from popproxy.app.checks.finding import counted
from popproxy.app.names import wants_names
from popproxy.app.operators import OperatorSecrets
from popproxy.app.systemd import Notifier, passed_sockets
from popproxy.config.loader import Loaded
from popproxy.config.model import Config
from popproxy.config.model_listeners import Listener
from popproxy.errors import AuditError, ConfigError, ConnectFailed, Problem
from popproxy.net.listener import Acceptor, bind
from popproxy.observe import logs
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
STOPPING_MARGIN = 5.0
"""Seconds for closing the books, after that."""

FEW = 4
"""Connections that make room where there is no descriptor left: a session and its link take two or three."""
ACCEPT_COMPLAINTS = 10.0
"""Seconds between two log lines about connections that cannot be accepted."""

log = logs.get_logger("popproxy")


class Service:
    """One proxy in this process. `addresses` are the bound ones, by listener, after `start`.

    `supervisor` is a socket to who keeps the state that workers share, if there are several.
    """

    def __init__(self, loaded: Loaded, supervisor: socket.socket | None = None) -> None:
        self._supervisor = supervisor
        self.addresses: dict[str, list[Address]] = {}
        self.http_address: Address | None = None
        self.sessions: set[Session] = set()
        self._loaded = loaded
        self._parts: Parts | None = None
        self._acceptors: list[Acceptor] = []
        self._http: HttpServer | None = None
        self._page: StatusPage | None = None
        self._console: ConsoleServer | None = None
        self._control: ControlServer | None = None
        self._draining = False
        self._complain_again = 0.0  # loop time

    async def start(self) -> None:
        """Bind, drop privileges, open files, accept. Raises ConfigError; nothing is left open then."""
        config = self._loaded.config
        bound = self._bind()
        control = console = None
        try:
            console = self._bind_console()
            control = self._bind_control()
            privileged = read_privileged(self._loaded)
            try:
                for module in (*_IMPORTED_LATE, *_wanted(config)):
                    importlib.import_module(module)
                privileges.drop(config.process, str(self._loaded.path))
                parts = self._parts = Parts(self._loaded, privileged, asyncio.get_running_loop(), self._supervisor)
            except BaseException:
                privileged.close()
                raise
        except BaseException:
            _close(bound, control, console)
            raise
        parts.metrics.config_last_reload_successful = 1
        parts.metrics.config_last_reload_success_timestamp_seconds = time.time()
        contexts = {listener.name: parts.listener(listener) for listener in config.listeners}
        desk = Desk(self._commands(parts), parts.audit, parts.metrics)
        try:
            if config.http.listen is not None:
                from popproxy.admin.http import HttpServer  # noqa: PLC0415 - see _wanted
                from popproxy.admin.status import StatusPage  # noqa: PLC0415

                token = privileged.operators.http_token
                page = self._page = StatusPage(desk.commands, desk, config.listeners, self._ready, token)
                self._http = HttpServer(config.http.listen, parts.metrics, self._ready, page.routes)
                await page.start()
                self.http_address = await self._http.start()
        except ConnectFailed as error:
            if self._page is not None:
                await self._page.stop()
            _close(bound, control, console)
            parts.close()
            cure = "choose another port, or write null to switch it off"
            raise ConfigError([Problem(str(self._loaded.path), "http.listen", str(error), cure)]) from None
        parts.audit.start()
        await parts.share()
        parts.orders.start()
        parts.backends.start()
        parts.discover()
        await self._answer_operators(desk, privileged.operators, console, control)
        for listener, sock in bound:
            self._accept_on(contexts[listener.name], sock)
        log.info("serving", version=__version__, config=str(self._loaded.path), what=describe_config(config))

    async def _answer_operators(
        self, desk: Desk, secrets: OperatorSecrets, console: socket.socket | None, control: ControlSocket | None
    ) -> None:
        """At the console and at the control socket, as far as there are any."""
        config = self._loaded.config
        if console is not None and config.console is not None and secrets.host_key is not None:
            from popproxy.admin.console import ConsoleServer  # noqa: PLC0415 - an optional library

            self._console = ConsoleServer(config.console, secrets.host_key, console, desk)
            await self._console.start()
        if control is not None:
            self._control = ControlServer(control, desk, Allowed.from_config(config.control))
            await self._control.start()

    async def stop(self, drain: float = 0.0) -> None:
        """Refuse new connections, give running sessions `drain` seconds, end the rest by the rules, close the books."""
        self._draining = True
        for acceptor in self._acceptors:
            acceptor.close()
        parts = self._parts
        if parts is None:
            return
        await _wait_while(lambda: bool(self.sessions), drain)
        for session in list(self.sessions):
            session.shut_down()
        await _wait_while(lambda: bool(self.sessions or parts.reactor.watching), LAST_WORDS)
        if self._console is not None:
            await self._console.stop()
        if self._page is not None:
            await self._page.stop()
        if self._http is not None:
            await self._http.stop()
        if self._control is not None:
            await self._control.stop()
        await parts.hang_up()
        parts.close()
        await parts.audit.settle()
        log.info("stopped")

    def rotated(self) -> None:
        """The audit file has been renamed: start a new one."""
        assert self._parts is not None
        try:
            self._parts.audit.reopen()
        except AuditError as error:
            log.error("the audit log could not be reopened", why=str(error))

    def status(self) -> str:
        """One line for who looks at the service."""
        ready, reasons = self._ready()
        return f"{counted(len(self.sessions), 'session')}, {'serving' if ready else '; '.join(reasons)}"

    # ---- pieces ----

    def _bind(self) -> list[tuple[Listener, socket.socket]]:
        bound: list[tuple[Listener, socket.socket]] = []
        problems: list[Problem] = []
        listeners = self._loaded.config.listeners
        passed = passed_sockets([listener.name for listener in listeners], str(self._loaded.path))
        for number, listener in enumerate(listeners):
            if listener.name in passed:
                bound += [(listener, sock) for sock in passed[listener.name]]
                log.info("takes the sockets of systemd", listener=listener.name)
                continue
            for place, address in enumerate(listener.listen):
                try:
                    bound += [(listener, sock) for sock in bind(address)]
                except OSError as error:
                    key = f"listeners[{number}].listen[{place}]"
                    problems.append(_cannot_listen(self._loaded, key, address, error))
        if problems:
            for _, sock in bound:
                sock.close()
            raise ConfigError(problems)
        return bound

    def _bind_console(self) -> socket.socket | None:
        """Before the privileges are dropped: the port may be a low one."""
        console = self._loaded.config.console
        if console is None:
            return None
        try:
            (sock,) = bind(console.listen)[:1]
        except OSError as error:
            raise ConfigError([_cannot_listen(self._loaded, "console.listen", console.listen, error)]) from None
        return sock

    def _bind_control(self) -> ControlSocket | None:
        """None if there is to be none, or if the default one cannot be had: mail is served without it."""
        config = self._loaded.config
        if config.control.socket is None:
            return None
        process = config.process
        try:
            return bind_control(config.control.socket, process.user, config.control.group or process.group)
        except ConnectFailed as error:
            cure = "choose another path, or write null to do without the commands of operators"
            if "socket" in config.control.model_fields_set:
                raise ConfigError([Problem(str(self._loaded.path), "control.socket", str(error), cure)]) from None
            log.warning("no commands of operators", why=str(error), cure=f"control.socket: {cure}")
            return None

    def _commands(self, parts: Parts) -> Commands:
        commands = Commands()
        add_penalties(commands, parts.throttle, parts.vet_name)
        add_backends(commands, parts.pools, parts.backends.latest, parts.metrics, parts.holding.book)
        add_orders(commands, parts.holding, parts.pools, self.sessions, parts.vet_name)
        add_sessions(commands, self.sessions, parts.metrics, parts.vet_name)
        add_watches(commands, self.sessions, parts.tracing, parts.vet_name)
        add_trace(commands, commands)
        add_top(commands, commands)
        return commands

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

    def _ready(self) -> tuple[bool, list[str]]:
        reasons = []
        if self._draining:
            reasons.append("draining")
        if self._parts is not None and not self._parts.audit.healthy and self._loaded.config.audit.on_error == "closed":
            reasons.append("the audit log cannot be written, logins are refused")
        return not reasons, reasons


def _close(
    bound: list[tuple[Listener, socket.socket]], control: ControlSocket | None, console: socket.socket | None
) -> None:
    for _, sock in bound:
        sock.close()
    if console is not None:
        console.close()
    if control is not None:
        control.close()


async def _wait_while(condition: Callable[[], bool], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while condition() and loop.time() < deadline:  # noqa: ASYNC110 - rare, and over soon
        await asyncio.sleep(0.02)


def _cannot_listen(loaded: Loaded, key: str, address: Address | None, error: OSError) -> Problem:
    if isinstance(error, PermissionError):
        cure = "ports below 1024 need root (name process.user to drop it afterwards) or CAP_NET_BIND_SERVICE"
    elif isinstance(error, socket.gaierror):
        cure = "write an IP address, or leave the host out for all addresses"
    else:
        cure = "stop what listens there, or choose another port; `popproxy check` says who it is"
    return Problem(str(loaded.path), key, f"cannot listen on {address}: {error.strerror}", cure)


async def serve(loaded: Loaded, *, ready: Callable[[Service], None] | None = None) -> int:
    """Run until SIGTERM or SIGINT, then drain; a second signal ends the drain. Returns the exit status."""
    config = loaded.config
    logs.configure(config.logging.level, config.logging.format)
    _raise_descriptor_limit(config.limits.connections, 3 if config.tunnels else 2)
    service = Service(loaded)
    systemd = Notifier.from_environment()
    await service.start()
    _settle_memory()
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    loop.add_signal_handler(signal.SIGHUP, service.rotated)
    if ready is not None:
        ready(service)
    systemd.ready(service.status)
    await told.wait()
    told.clear()
    systemd.stopping(config.timeouts.drain + LAST_WORDS + STOPPING_MARGIN)
    log.info("draining", sessions=len(service.sessions), seconds=config.timeouts.drain)
    stopping = asyncio.ensure_future(service.stop(config.timeouts.drain))
    impatient = asyncio.ensure_future(told.wait())
    await asyncio.wait({stopping, impatient}, return_when=asyncio.FIRST_COMPLETED)
    impatient.cancel()
    if not stopping.done():
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        await service.stop()
    systemd.close()
    _ignore_signals(loop)
    return 0


def _ignore_signals(loop: asyncio.AbstractEventLoop) -> None:
    """The end has begun, and ends with status 0. Between handler and ignoring there is a moment that would kill."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


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


def _settle_memory() -> None:
    """Sessions leave no cycles, so the collector may look rarely, and never at what was made at the start."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


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
