"""The other end of a Helper: ``python -m popproxy.state.helper_process MODULE``, with its socket as standard input.

For libraries that stop the whole interpreter while they wait, that may crash, or that need rights which popproxy gives
up. Three kinds of processes, each forked from the one before:

    keeper       the one that was started: reads the settings, has MODULE prepare itself, gives up its rights if told
                 to; starts another dispatcher whenever one dies
    dispatcher   hands each question to a worker; kills the worker that is late
    worker       answers one question at a time, by the function that MODULE's ``prepare(settings)`` returned

Packets are JSON, one a message of a SOCK_SEQPACKET socket. The keeper is told ``{settings, workers, user, group}`` and
answers ``{ready}`` or ``{failed}``; then ``{id, ask, seconds}`` is answered by ``{id, answer}`` or ``{id, failed}``,
where failed is one word. Only the standard library is imported here.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import importlib
import json
import os
import pwd
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_PACKET = 128 * 1024
"""Octets of a question or an answer."""
LIFETIME = 1000
"""Questions after which a worker makes room for a fresh one: libraries leak."""
MEMORY = 512 << 20
"""Octets of data that a worker may have: what a directory sends is not ours to choose."""
_RESTART_PAUSE = 0.2  # seconds, lest a dispatcher that cannot live is started without end
_PR_SET_PDEATHSIG = 1

Handler = Callable[[dict[str, Any], float], dict[str, Any]]
"""Answers a question within so many seconds."""


def main() -> int:
    """Be the keeper until the other end closes the socket."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sessions that are being drained may still need us
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sock = socket.socket(fileno=os.dup(0))
    settings = json.loads(sock.recv(MAX_PACKET) or b"null")
    if settings is None:
        return 1
    try:
        module = importlib.import_module(sys.argv[1])
        handler: Handler = module.prepare(settings["settings"])
        if settings["user"] is not None:
            _become(settings["user"], settings["group"])
    except Exception as error:
        sock.send(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
        return 1
    sock.send(b'{"ready": true}')
    return _keep(sock, handler, settings["workers"])


def _become(user: str, group: str | None) -> None:
    account = pwd.getpwnam(user)
    gid = grp.getgrnam(group).gr_gid if group else account.pw_gid
    os.initgroups(user, gid)
    os.setgid(gid)
    os.setuid(account.pw_uid)


def _keep(sock: socket.socket, handler: Handler, workers: int) -> int:
    while True:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                Dispatcher(sock, handler, workers).run()
                status = 0
            except BaseException as error:
                print(f"popproxy helper: {type(error).__name__}", file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            return 0
        time.sleep(_RESTART_PAUSE)


@dataclass(eq=False, slots=True)
class _Worker:
    """A worker and the question that it has, if any."""

    pid: int
    sock: socket.socket
    question: int | None = None
    deadline: float = float("inf")  # monotonic


class Dispatcher:
    """Hands out questions. Never waits for a worker: what is late is killed, and gone."""

    def __init__(self, sock: socket.socket, handler: Handler, limit: int) -> None:
        self._sock = sock
        self._handler = handler
        self._limit = limit
        self._workers: list[_Worker] = []
        self._dead: list[int] = []  # killed or ended, still to be reaped
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)

    def run(self) -> None:
        """Until the other end has closed the socket."""
        while True:
            for key, _ in self._selector.select(self._patience()):
                if key.data is not None:
                    self._hear(key.data)
                elif not self._take():
                    for worker in list(self._workers):
                        self._drop(worker)
                    return
            now = time.monotonic()
            for worker in [worker for worker in self._workers if worker.deadline <= now]:
                self._lose(worker, "deadline")
            self._dead = [pid for pid in self._dead if not _reaped(pid)]

    def _patience(self) -> float | None:
        nearest = min((worker.deadline for worker in self._workers), default=float("inf"))
        if self._dead:
            nearest = min(nearest, time.monotonic() + 1.0)
        return None if nearest == float("inf") else max(0.0, nearest - time.monotonic())

    def _take(self) -> bool:
        """One packet from popproxy; False if there will be no more."""
        packet = self._sock.recv(MAX_PACKET + 1)
        if not packet:
            return False
        question = json.loads(packet)
        worker = next((worker for worker in self._workers if worker.question is None), None)
        if worker is None and len(self._workers) < self._limit:
            worker = self._hire()
        if worker is None:
            self._answer({"id": question["id"], "failed": "busy"})
            return True
        worker.question = question["id"]
        worker.deadline = time.monotonic() + question["seconds"]
        try:
            worker.sock.send(packet)
        except OSError:
            self._lose(worker, "died")
        return True

    def _hear(self, worker: _Worker) -> None:
        """An answer of a worker, or its end."""
        try:
            packet = worker.sock.recv(MAX_PACKET + 1)
        except OSError:
            packet = b""
        if not packet:
            self._lose(worker, "died")
        elif worker.question is not None:
            question, worker.question, worker.deadline = worker.question, None, float("inf")
            self._answer({"id": question, **json.loads(packet)})

    def _lose(self, worker: _Worker, reason: str) -> None:
        if worker.question is not None:
            self._answer({"id": worker.question, "failed": reason})
        self._drop(worker)

    def _drop(self, worker: _Worker) -> None:
        self._selector.unregister(worker.sock)
        worker.sock.close()
        self._workers.remove(worker)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        if not _reaped(worker.pid):
            self._dead.append(worker.pid)

    def _answer(self, packet: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the end of the socket is noticed by `run`
            self._sock.send(json.dumps(packet).encode())

    def _hire(self) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                self._selector.close()
                for sock in (self._sock, ours, *(worker.sock for worker in self._workers)):
                    sock.close()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
                _work(theirs, self._handler)
            finally:
                os._exit(0)
        theirs.close()
        worker = _Worker(pid, ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker


def _work(sock: socket.socket, handler: Handler) -> None:
    """Body of a worker. What an exception says is not passed on: it may quote a password."""
    for _ in range(LIFETIME):
        packet = sock.recv(MAX_PACKET)
        if not packet:
            return
        question = json.loads(packet)
        try:
            answer = json.dumps({"answer": handler(question["ask"], question["seconds"])}).encode()
        except Exception as error:
            answer = json.dumps({"failed": type(error).__name__}).encode()
        del packet, question
        sock.send(answer if len(answer) <= MAX_PACKET else b'{"failed": "answer_too_long"}')


def _reaped(pid: int) -> bool:
    """Is the process gone for good? One that hangs in the kernel cannot be waited for."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


if __name__ == "__main__":
    sys.exit(main())
