"""The supervisor's side of the nursery, the process that workers are forked from (app/nursery)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from popproxy.admin.frames import encode
from popproxy.observe.logs import get_logger

log = get_logger("supervisor")


class Nursery:
    """The process that workers are forked from; started again if it has ended."""

    def __init__(self) -> None:
        self.pid = 0
        self._sock: socket.socket | None = None

    def fork(self, theirs: socket.socket, name: str) -> None:
        """Have a worker made that has this end of its socket pair. If that fails, the end is closed.

        Raises OSError if there is nobody to make it.
        """
        if self._sock is None:
            self._start()
        assert self._sock is not None
        try:
            socket.send_fds(self._sock, [encode({"tell": "fork", "with": {"name": name}})], [theirs.fileno()])
        except OSError as error:
            log.error("no worker can be made", why=error.strerror)
            self.forget()

    def forget(self) -> None:
        """It has ended, or is to end; the next worker needs another one."""
        if self._sock is not None:
            self._sock.close()
        self._sock, self.pid = None, 0

    def end(self) -> None:
        """End it by force, and what it was to make."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.forget()

    def _start(self) -> None:
        self._sock, theirs = socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            command = [sys.executable, "-P", "-m", "popproxy.app.nursery", str(theirs.fileno())]
            try:
                self.pid = os.posix_spawn(sys.executable, command, os.environ, setsigmask=[])
            except OSError:
                self.forget()
                raise

    def hand_over(self, keep: Callable[[socket.socket], int]) -> dict[str, Any]:
        """What `take_over` needs to go on with the process in another program."""
        return {"pid": self.pid, "sock": None if self._sock is None else keep(self._sock)}

    def take_over(self, told: Mapping[str, Any], adopt: Callable[[int], socket.socket]) -> None:
        """Go on with that process, if there is one."""
        if told["sock"] is not None:
            self.pid, self._sock = told["pid"], adopt(told["sock"])
