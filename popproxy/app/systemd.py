"""What systemd hands to a service, and what it wants to hear: sd_listen_fds(3) and sd_notify(3), without its library.

The variables are taken out of the environment: no helper process must think that they are meant for it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from popproxy.errors import ConfigError, Problem
from popproxy.net.listener import BACKLOG, shape
from popproxy.observe.logs import get_logger

FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START: descriptors that are passed begin here."""
STATUS_INTERVAL = 30.0
"""Seconds between two status lines, where no watchdog wants to hear more often."""

log = get_logger("systemd")


class Notifier:
    """Tells systemd how it goes; silent where nobody listens. Datagrams that cannot be sent are lost, not waited for.

    `address` is that of NOTIFY_SOCKET (``@`` begins the name of an abstract socket), `watchdog` how many seconds may
    pass without a sign of life.
    """

    def __init__(self, address: str | None, watchdog: float | None) -> None:
        self._address = None if not address else "\0" + address[1:] if address.startswith("@") else address
        self._interval = STATUS_INTERVAL if watchdog is None else min(STATUS_INTERVAL, watchdog / 2)
        self._watched = watchdog is not None
        self._timer: asyncio.TimerHandle | None = None
        self._complained = False
        self.environment: dict[str, str] = {}
        """What `from_environment` has taken out, for another program in this process."""

    @classmethod
    def from_environment(cls) -> Notifier:
        """As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID say, if they are there and mean this process."""
        found = {name: os.environ.pop(name, "") for name in _NOTIFY_VARIABLES}
        address, microseconds, pid = found.values()
        watched = microseconds.isdecimal() and int(microseconds) > 0 and pid in ("", str(os.getpid()))
        made = cls(address or None, int(microseconds) / 1e6 if watched else None)
        made.environment = {name: value for name, value in found.items() if value}
        return made

    def ready(self, status: Callable[[], str]) -> None:
        """Service can be had. From now on `status` goes out regularly, with signs of life of the running event loop."""
        self._send("READY=1", f"STATUS={status()}")
        if self._address is not None:
            self._alive(status)

    def stopping(self, seconds: float) -> None:
        """No new service; the end comes within `seconds`. Signs of life go on until then."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def close(self) -> None:
        """Say no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _alive(self, status: Callable[[], str]) -> None:
        """Called by the loop: if it hangs, systemd hears nothing, and restarts us."""
        self._send(*(["WATCHDOG=1"] if self._watched else []), f"STATUS={status()}")
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._alive, status)

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                # one line each: whoever has a say in the status must not be able to say anything else
                said = "\n".join(" ".join(assignment.split()) for assignment in assignments)
                sock.sendto(said.encode(errors="replace"), self._address)
        except OSError as error:
            if not self._complained:
                log.warning("systemd cannot be told how it goes", why=error.strerror, cure="NotifyAccess=main")
            self._complained = True


_NOTIFY_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_LISTEN_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_NAME_THEM = (
    "name each socket after its listener: FileDescriptorName= in the socket unit, --fdname= of systemd-socket-activate"
)


def passed_sockets(listeners: Sequence[str], where: str) -> dict[str, list[socket.socket]]:
    """The listening sockets that systemd has passed, by the listener that they are named for; none without systemd.

    `where` is the configuration's file, for messages. Raises ConfigError; what was passed stays open then.
    """
    pid, count, names = (os.environ.pop(name, "") for name in _LISTEN_VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count))
    given = names.split(":") if names else []
    if not given and len(listeners) == 1:
        given = [listeners[0]] * len(descriptors)
    problems = [_unfit(descriptor, name, listeners) for descriptor, name in zip(descriptors, given, strict=False)]
    if len(given) != len(descriptors):
        problems = [f"has passed {len(descriptors)} sockets, and names for {len(given)}"]
    if any(problems):
        raise ConfigError([Problem(where, "listeners", f"systemd {text}", _NAME_THEM) for text in problems if text])
    passed: dict[str, list[socket.socket]] = {}
    for descriptor, name in zip(descriptors, given, strict=True):
        passed.setdefault(name, []).append(_adopt(descriptor))
    return passed


def _unfit(descriptor: int, name: str, listeners: Sequence[str]) -> str:
    """What is wrong with a descriptor, or nothing."""
    if name not in listeners:
        return f"has passed a socket named {name!r}, but the listeners are {', '.join(listeners)}"
    try:
        sock = socket.socket(fileno=os.dup(descriptor))
    except OSError as error:
        return f"says that descriptor {descriptor} ({name}) is a socket: {error.strerror}"
    with sock:
        stream = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
        if not stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return f"has passed a socket for {name} that does not listen on TCP; it takes ListenStream= and Accept=no"
    return ""


def _adopt(descriptor: int) -> socket.socket:
    """As if it were bound by popproxy.net.listener."""
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    shape(sock)
    sock.listen(BACKLOG)
    return sock
