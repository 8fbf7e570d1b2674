"""Makes the processes of a popproxy stand still at a chosen step, so that a test can do something in that very moment.

with holds() as steps:
    proxy = start_proxy(settings(backend.address), env=steps.environment)
    with steps.held("planning"):
        ...  # order a reload
        steps.reached("planning")
        ...  # its first worker has not yet read the file, and does not before the block ends
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.peers.process import public_directory, wait_until

_CUSTOM = """
import os, signal, sys, time

STEPS = {directory!r}


def come(step):
    open(f"{{STEPS}}/at {{step}}", "w").close()


def held(step):
    return os.path.exists(f"{{STEPS}}/hold {{step}}")


def stopping(step, function):
    def stop(*arguments, **named):
        if held(step):
            come(step)
            while held(step):
                time.sleep(0.01)
        return function(*arguments, **named)
    return stop


def supervisor():
    import asyncio
    from popproxy.app.answering import Control

    os.execve = stopping("replacing", os.execve)
    switch, mask = Control.switch, signal.pthread_sigmask

    async def slow_switch(self, *arguments):
        if held("switching"):
            come("switching")
            while held("switching"):
                await asyncio.sleep(0.01)
        await switch(self, *arguments)

    def interrupted(how, numbers):
        if how == signal.SIG_BLOCK and signal.SIGTERM in numbers and held("blocking"):
            os.unlink(f"{{STEPS}}/hold blocking")
            os.kill(os.getpid(), signal.SIGTERM)
        return mask(how, numbers)

    Control.switch = slow_switch
    signal.pthread_sigmask = interrupted


def nursery():
    import popproxy.app.worker as worker

    worker.load_bytes = stopping("planning", worker.load_bytes)


def rehearsal():
    import popproxy.app.succession as succession

    succession.rehearse = stopping("rehearsing", succession.rehearse)


WHO = {{"popproxy.app.supervising": supervisor, "popproxy.app.nursery": nursery, "popproxy.app.rehearsing": rehearsal}}
for module in sys.orig_argv:
    WHO.get(module, lambda: None)()
"""


class Steps:
    """Of a worker: ``planning``; of an upgrade: ``rehearsing``; of the supervisor: ``switching`` to the new control
    socket, and ``replacing`` its own program. What is held at ``blocking`` does not stand still: SIGTERM comes in the
    moment before the supervisor hears no signals any more.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "sitecustomize.py").write_text(_CUSTOM.format(directory=str(directory)))
        self.environment = {"PYTHONPATH": str(directory)}

    @contextlib.contextmanager
    def held(self, step: str) -> Iterator[None]:
        """Whoever comes there waits until the end of the block."""
        hold = self._directory / f"hold {step}"
        hold.touch()
        self._mark(step).unlink(missing_ok=True)
        try:
            yield
        finally:
            hold.unlink(missing_ok=True)

    def reached(self, step: str) -> None:
        """Wait until somebody stands there."""
        wait_until(self._mark(step).exists, f"somebody to be {step}")

    def _mark(self, step: str) -> Path:
        return self._directory / f"at {step}"


@contextlib.contextmanager
def holds() -> Iterator[Steps]:
    """In a directory that popproxy's processes find through ``environment``."""
    with public_directory("holds") as directory:
        yield Steps(directory)
