"""Reloads and deaths of workers under load: ``python -m tests.endurance.restarts [RELOADS [KILLS]]``.

Clients log in, read a message and leave, again and again, while the configuration is reloaded and workers are killed.
No connection may be refused; no session may be lost but those of a killed worker; the dead are replaced at once. Each
worker that the audit log says was lost must be one that was killed here, and each session that a client has lost after
its login must be one of such a worker's.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field

from popproxy.observe.audit_lost import LostSessions
from tests.peers.canaries import canary
from tests.peers.process import wait_until
from tests.peers.proxy import Proxy, proxies, settings
from tests.peers.scripted import ScriptedBackend, in_thread

CLIENTS = 6


@dataclass
class Tally:
    """What the clients have seen, and how long workers were missing (seconds)."""

    sessions: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    lost_after_login: list[int] = field(default_factory=list)
    """The ports of clients who have lost a session with its login on record, and its end not."""
    victims: list[int] = field(default_factory=list)
    reloads: int = 0
    missing: list[float] = field(default_factory=list)
    slowest: float = 0.0
    """The longest that a client has waited for its greeting (seconds)."""
    descriptors: tuple[int, int] = (0, 0)


def client(port: int, tally: Tally, lock: threading.Lock, enough: threading.Event) -> None:
    """Sessions, one after the other."""
    while not enough.is_set():
        began = time.monotonic()
        try:
            sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        except ConnectionRefusedError:
            with lock:
                tally.refused += 1
            continue
        said, line, port_of_client = "", "", sock.getsockname()[1]
        try:
            with sock, sock.makefile("rwb") as stream:
                said = stream.readline().decode()
                waited = time.monotonic() - began
                for line in ("USER alice", f"PASS {canary()}", "STAT", "QUIT"):
                    stream.write(f"{line}\r\n".encode())
                    stream.flush()
                    said = stream.readline().decode()
                    if not said.startswith("+OK"):
                        raise ConnectionError(said)
        except OSError as error:
            with lock:
                tally.lost.append(f"{error!r} at {line!r} after {said!r}")
                if line == "STAT":
                    tally.lost_after_login.append(port_of_client)
        else:
            with lock:
                tally.sessions += 1
                tally.slowest = max(tally.slowest, waited)


def play(proxy: Proxy, reloads: int, kills: int) -> Tally:
    """Reloads and kills, mixed; the clients are at it all the time."""
    tally, lock, enough = Tally(), threading.Lock(), threading.Event()
    threads = [threading.Thread(target=client, args=(proxy.port(), tally, lock, enough)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    wait_until(lambda: tally.sessions > CLIENTS, "the first sessions")
    before = len(os.listdir(f"/proc/{proxy.pid}/fd"))
    deeds = ["reload"] * reloads + ["kill"] * kills
    random.shuffle(deeds)
    try:
        for deed in deeds:
            if deed == "reload":
                done = proxy.command("reload")
                assert done.returncode == 0, done.stderr
                tally.reloads += 1
                continue
            restarts = _restarts(proxy)
            victim = _kill(proxy)
            tally.victims.append(victim)
            began = time.monotonic()
            wait_until(lambda victim=victim: victim not in proxy.workers, "its end")  # type: ignore[misc]
            wait_until(lambda: len(proxy.workers) >= 2, "another one")
            tally.missing.append(time.monotonic() - began)
            assert _restarts(proxy) >= restarts, "a counter has gone backwards"
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    wait_until(lambda: len(proxy.workers) == 2, "the end of earlier workers", 60)
    tally.descriptors = before, len(os.listdir(f"/proc/{proxy.pid}/fd"))
    return tally


def _kill(proxy: Proxy) -> int:
    """One of the workers that run; those of earlier configurations end by themselves at any time."""
    while True:
        victim = random.choice(proxy.workers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            return victim


def _settle(proxy: Proxy, tally: Tally) -> None:
    """Each loss is a killed worker's. Raises AssertionError."""
    sessions = LostSessions()
    lost = [one for record in proxy.audit() for one in sessions.take(record)]
    gone = {record["process.pid"] for record in proxy.audit("worker_lost")}
    assert gone <= set(tally.victims), (gone, tally.victims)
    assert {one.pid for one in lost} <= gone
    assert set(tally.lost_after_login) <= {one.port for one in lost}, (tally, lost)


def _restarts(proxy: Proxy) -> float:
    return proxy.metrics()["popproxy_worker_restarts_total"]


def run(reloads: int, kills: int) -> Tally:
    """With a proxy of its own. Raises AssertionError."""
    with in_thread(ScriptedBackend([b"Subject: hello\r\n\r\nhello\r\n"])) as backend, proxies() as start:
        proxy = start(settings(backend.address, workers=2, logging={"level": "info", "format": "json"}))
        tally = play(proxy, reloads, kills)
        _settle(proxy, tally)
    assert tally.refused == 0, tally
    assert len(tally.lost) <= CLIENTS * kills, tally
    assert kills or not tally.lost, tally
    first, last = tally.descriptors
    assert last <= first + 4, tally.descriptors
    return tally


if __name__ == "__main__":
    done = run(*map(int, [*sys.argv[1:], "100", "50"][:2]))
    missing = max(done.missing, default=0)
    print(
        f"{done.reloads} reloads, {len(done.missing)} kills, {done.sessions} sessions: {done.refused} refused, "
        f"{len(done.lost)} lost with their workers; a worker was missing for {missing:.2f} s at most; "
        f"the slowest greeting took {done.slowest:.2f} s; descriptors {done.descriptors[0]} and {done.descriptors[1]}"
    )
