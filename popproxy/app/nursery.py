"""The process that workers are forked from: ``python -P -m popproxy.app.nursery DESCRIPTOR``.

To import what a worker needs takes a second or more, and a worker that has died must be back before anybody notices. So
one process does it once, and does nothing else: each message of the supervisor with a descriptor makes a worker. As the
modules are shared with it, a worker more costs less memory, too.

A worker is the child of a child that ends at once: so it becomes a child of the supervisor, who has asked the kernel
for that (`adopt_orphans`).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
from typing import Final

from popproxy.app.hardening import keep_memory
from popproxy.app.link import receive_now

_LARGE = ("uvloop", "popproxy.admin.http", "popproxy.app.worker")
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36


def main(descriptor: int) -> int:
    """Fork workers until the supervisor is gone; returns the exit status, of each worker too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        # meant for the supervisor; a handler, for what is ignored stays ignored in the helpers of workers
        signal.signal(number, lambda *_: None)
    keep_memory()
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    for module in _LARGE:
        try:
            importlib.import_module(module)
        except ImportError:
            if module != "uvloop":  # not everywhere
                raise
    gc.collect()
    gc.freeze()  # what is here now is not touched by the collector, and so stays shared
    while True:
        try:
            _, fields, (theirs,) = receive_now(sock)
        except (EOFError, OSError):
            return 0
        child = os.fork()
        if child == 0:
            if os.fork():
                os._exit(0)
            sock.close()
            name_process(f"popproxy {fields['name']}")
            from popproxy.app.worker import main as work  # noqa: PLC0415 - imported above, where it may fail

            return work(theirs)
        os.close(theirs)
        os.waitpid(child, 0)


def name_process(name: str) -> None:
    """What ``ps -o comm`` shows, 15 octets of it."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parents have ended (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
