"""The sockets that a popproxy listens on: bound or taken from systemd, held, handed on, given up."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popproxy.admin.control import Allowed
from popproxy.admin.control_socket import ControlSocket, bind_control
from popproxy.app.plan import Endpoint, Plan
from popproxy.app.systemd import passed_sockets
from popproxy.errors import ConfigError, ConnectFailed, Problem
from popproxy.net.listener import bind
from popproxy.observe.logs import get_logger

log = get_logger("popproxy")


@dataclass(slots=True)
class Sockets:
    """Listening sockets: those of the listeners with their names, those for HTTP, and those for operators by SSH."""

    listeners: list[tuple[str, socket.socket]] = field(default_factory=list)
    http: list[socket.socket] = field(default_factory=list)
    console: list[socket.socket] = field(default_factory=list)

    def all(self) -> list[tuple[str, socket.socket]]:
        """Each with what it is for: ``pop3 NAME``, ``http`` or ``console``."""
        listeners = [(f"pop3 {name}", sock) for name, sock in self.listeners]
        return [*listeners, *(("http", sock) for sock in self.http), *(("console", sock) for sock in self.console)]

    @classmethod
    def of(cls, named: Iterable[tuple[str, socket.socket]]) -> Sockets:
        """From what `all` has said."""
        made = cls()
        for name, sock in named:
            kind, _, listener = name.partition(" ")
            if kind == "pop3":
                made.listeners.append((listener, sock))
            elif kind == "http":
                made.http.append(sock)
            elif kind == "console":
                made.console.append(sock)
        return made

    def close(self) -> None:
        """All of them."""
        for _, sock in self.all():
            sock.close()


class Held:
    """The sockets of a supervisor, by the endpoint that they are for, over all its configurations.

    `passed` are those of systemd, by listener: what stands in `listen` does not count for these.
    """

    def __init__(self, passed: dict[str, list[socket.socket]] | None = None) -> None:
        self._passed = passed or {}
        self._bound: dict[tuple[str, str, int], list[socket.socket]] = {}

    def take_passed(self, plan: Plan) -> None:
        """Those that systemd has passed to this process. Raises ConfigError."""
        self._passed = passed_sockets(plan.names, plan.path)
        for name in self._passed:
            log.info("takes the sockets of systemd", listener=name)

    @property
    def passed(self) -> frozenset[str]:
        """Listeners whose sockets are systemd's."""
        return frozenset(self._passed)

    def bind(self, plan: Plan) -> Sockets:
        """What `plan` needs: what is held already, the rest bound now. Raises ConfigError; then nothing has changed."""
        made: dict[tuple[str, str, int], list[socket.socket]] = {}
        problems: list[Problem] = []
        found = Sockets()
        for name in plan.names:
            found.listeners += [(name, sock) for sock in self._passed.get(name, ())]
        others = [endpoint for endpoint in (plan.http, plan.console) if endpoint is not None]
        for endpoint in (*plan.listeners, *others):
            kind = "pop3" if endpoint in plan.listeners else endpoint.name
            if kind == "pop3" and endpoint.name in self._passed:
                continue
            # port 0 is another one for each that says so
            key = (kind if endpoint.port else f"{kind} {endpoint.name} {endpoint.key}", endpoint.host, endpoint.port)
            try:
                sockets = self._bound.get(key) or made.get(key)
                if sockets is None:
                    sockets = made[key] = bind(endpoint.address)
            except OSError as error:
                problems.append(cannot_listen(plan.path, endpoint, error))
                continue
            if kind == "http":
                found.http = sockets
            elif kind == "console":
                found.console = sockets
            else:
                found.listeners += [(endpoint.name, sock) for sock in sockets]
        if problems:
            _close(made.values())
            raise ConfigError(problems)
        self._bound |= made
        return found

    def hand_over(self, keep: Callable[[socket.socket], int]) -> dict[str, Any]:
        """What `take_over` needs to go on in another program, good for JSON; `keep` numbers a socket."""
        return {
            "passed": {name: [keep(sock) for sock in sockets] for name, sockets in self._passed.items()},
            "bound": [[*key, [keep(sock) for sock in sockets]] for key, sockets in self._bound.items()],
        }

    def take_over(self, told: Mapping[str, Any], adopt: Callable[[int], socket.socket]) -> None:
        """Hold what `hand_over` has told of."""
        self._passed = {name: [adopt(number) for number in numbers] for name, numbers in told["passed"].items()}
        self._bound = {
            (kind, host, port): [adopt(number) for number in numbers] for kind, host, port, numbers in told["bound"]
        }

    def keep_only(self, wanted: Sequence[Sockets]) -> None:
        """Give up what none of `wanted` uses. Sockets of systemd are kept: they may be used again."""
        used = {sock for sockets in wanted for _, sock in sockets.all()}
        for key in [key for key, sockets in self._bound.items() if not used.intersection(sockets)]:
            _close([self._bound.pop(key)])

    def close(self) -> None:
        """Nobody listens any more, but for systemd and who has copies."""
        _close(self._bound.values())
        _close(self._passed.values())
        self._bound, self._passed = {}, {}


def bind_control_as_planned(plan: Plan) -> ControlSocket | None:
    """None if there is to be none, or if the default one cannot be had: mail goes without it. Raises ConfigError."""
    control = plan.control
    if control.socket is None:
        return None
    try:
        return bind_control(Path(control.socket), plan.user, control.group or plan.group)
    except ConnectFailed as error:
        cure = "choose another path, or write null to do without the commands of operators"
        if control.chosen:
            raise ConfigError([Problem(plan.path, "control.socket", str(error), cure)]) from None
        log.warning("no commands of operators", why=str(error), cure=f"control.socket: {cure}")
        return None


def allowed(plan: Plan) -> Allowed:
    """Who may give commands.

    Not process.user, whom workers become: one that strangers have taken over could have root reload, upgrade or drain.
    """
    control = plan.control
    return Allowed.named(control.users, [*control.groups, *([control.group] if control.group else [])])


def cannot_listen(path: str, endpoint: Endpoint, error: OSError) -> Problem:
    """What a person is told."""
    what = "cannot listen for HTTP on" if endpoint.key == "http.listen" else "cannot listen on"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        cure = "raise the limit of open files (systemd: LimitNOFILE=)"
    elif endpoint.key == "http.listen":
        cure = "choose another port, or write null to switch it off"
    elif isinstance(error, PermissionError):
        cure = "ports below 1024 need root (name process.user to drop it afterwards) or CAP_NET_BIND_SERVICE"
    elif isinstance(error, socket.gaierror):
        cure = "write an IP address, or leave the host out for all addresses"
    else:
        cure = "stop what listens there, or choose another port; `popproxy check` says who it is"
    return Problem(path, endpoint.key, f"{what} {endpoint.address}: {error.strerror}", cure)


def _close(groups: Iterable[Sequence[socket.socket]]) -> None:
    for sockets in groups:
        for sock in sockets:
            sock.close()
