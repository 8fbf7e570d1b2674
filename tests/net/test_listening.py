"""Accepting: addresses, a lack of descriptors, stale events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from popproxy.net.deadlines import Deadlines
from popproxy.net.listener import UNSENT, bind
from popproxy.net.reactor import READABLE, Reactor
from popproxy.types import Address
from tests.peers.process import PATIENCE, free_port, wait_until
from tests.peers.proxy import POPPROXY, workers_of
from tests.session.rig import configuration, descriptors


@pytest.fixture
async def reactor() -> AsyncIterator[Reactor]:
    made = Reactor(asyncio.get_running_loop())
    yield made
    made.close()
    made.close()


class Watcher:
    """Notes what it is called for."""

    def __init__(self, *, does: object = None) -> None:
        self.events: list[int] = []
        self.does = does
        self.failures = 0

    def ready(self, events: int) -> None:
        self.events.append(events)
        if callable(self.does):
            self.does()

    def failed(self) -> None:
        self.failures += 1


def test_empty_host_is_ipv4_and_ipv6_at_one_port() -> None:
    sockets = bind(Address("", 0))
    try:
        assert {sock.family for sock in sockets} == {socket.AF_INET, socket.AF_INET6}
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
    finally:
        for sock in sockets:
            sock.close()


def test_failure_at_one_address_leaves_none_bound() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as taken:
        before = descriptors()
        with pytest.raises(OSError, match="in use") as caught:
            bind(Address("", taken.getsockname()[1]))
        assert descriptors() <= before, caught  # which keeps alive what nobody has closed


async def test_events_of_a_closed_descriptor_do_not_reach_the_next_owner_of_its_number(reactor: Reactor) -> None:
    first, first_peer = socket.socketpair()
    second, second_peer = socket.socketpair()
    newcomer, newcomer_peer = socket.socketpair()
    late = Watcher()
    number = second.fileno()

    def replace() -> None:
        reactor.forget(number)
        os.dup2(newcomer.fileno(), number)
        reactor.watch(number, late, READABLE)
        reactor.change(first.fileno(), 0)

    reactor.watch(first.fileno(), Watcher(does=replace), READABLE)
    reactor.watch(number, Watcher(does=replace), READABLE)
    first_peer.send(b"x")
    second_peer.close()
    await asyncio.sleep(0.05)
    assert late.events == []
    newcomer_peer.send(b"x")
    await asyncio.sleep(0.01)
    assert late.events
    assert not any(events & select.EPOLLHUP for events in late.events)
    reactor.forget(number)
    for sock in (first, first_peer, second, newcomer, newcomer_peer):
        sock.close()


async def test_failing_handler_is_told_and_the_others_go_on(reactor: Reactor) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    pairs = [socket.socketpair() for _ in range(2)]
    good = Watcher()
    bad = Watcher(does=fail)
    reactor.watch(pairs[0][0].fileno(), bad, READABLE)
    reactor.watch(pairs[1][0].fileno(), good, READABLE)
    for _, peer in pairs:
        peer.send(b"x")
    await asyncio.sleep(0.02)
    assert bad.failures
    assert good.events
    for pair in pairs:
        for sock in pair:
            reactor.forget(sock.fileno())
            sock.close()


async def test_one_failing_deadline_does_not_keep_the_others_waiting() -> None:
    class Member:
        deadline = 0.0
        passed = 0

        ended = False

        def deadline_passed(self) -> None:
            self.passed += 1
            if self.fails:
                raise ZeroDivisionError
            self.deadline = float("inf")

        def check_pace(self) -> None: ...

        def failed(self) -> None:
            self.ended = True
            raise ZeroDivisionError

        def __init__(self, fails: bool) -> None:
            self.fails = fails

    deadlines = Deadlines(asyncio.get_running_loop(), lambda _late: None)
    members = [Member(fails=number % 2 == 0) for number in range(6)]
    for member in members:
        deadlines.add(member)
    while not any(member.passed for member in members):
        await asyncio.sleep(0.02)
    while deadlines._ticks < 12:  # one more pass
        await asyncio.sleep(0.02)
    deadlines.close()
    assert [member.passed for member in members] == [1] * 6
    assert [member.ended for member in members] == [True, False] * 3


async def test_each_tick_tells_how_late_it_is() -> None:
    late: list[float] = []
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, late.append)
    while len(late) < 3:
        await asyncio.sleep(0.02)
    before = len(late)
    time.sleep(0.5)  # nobody gets his turn
    while len(late) == before:
        await asyncio.sleep(0)
    deadlines.close()
    assert all(seconds >= 0 for seconds in late)
    assert late[before] > 0.35
    assert loop.time() - deadlines.now < 1


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _greeted(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        return client.recv(100).startswith(b"+OK")


@pytest.mark.long
def test_no_descriptors_left(tmp_path: Path) -> None:
    """Clients are turned away in words, idle ones make room, nothing spins, and all is well when some have left."""
    port = free_port()
    config = configuration(tmp_path, "127.0.0.1:1", listener={"listen": [f"127.0.0.1:{port}"]})
    (tmp_path / "popproxy.yaml").write_text(json.dumps(config))
    limit = "import os, resource, sys\nresource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
    start = "os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", limit + start, str(POPPROXY), "serve", "-c", str(tmp_path / "popproxy.yaml")]
    errors = (tmp_path / "stderr").open("wb")
    with subprocess.Popen(command, stderr=errors) as proxy:
        wait_until(lambda: '"serving"' in (tmp_path / "stderr").read_text(), "popproxy to serve")
        (worker,) = workers_of(proxy.pid)
        clients = []
        turned_away = 0
        try:
            come = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(80)]
            for client in come:  # which are there before the first is heard, however slow the machine is
                line = client.recv(100)
                if line.startswith(b"+OK"):
                    clients.append(client)
                else:
                    assert line == b"-ERR [SYS/TEMP] too many connections, try again later\r\n"
                    turned_away += 1
                    client.close()
            assert turned_away > 5  # each of whom has made room for some
            assert len(clients) > 40
            before = _cpu(worker)
            time.sleep(1)
            assert _cpu(worker) - before < 0.2, "it spins"
            for client in clients[:5]:
                client.close()
            wait_until(lambda: _greeted(port), "room, once popproxy has seen them go")
        finally:
            for client in clients:
                client.close()
            proxy.send_signal(signal.SIGTERM)
            proxy.wait(60)
            errors.close()
    text = (tmp_path / "stderr").read_text()
    assert proxy.returncode == 0, text
    assert "Traceback" not in text
    assert 1 <= len(re.findall("cannot accept", text)) <= 2, "a line for each client"


def test_a_client_that_reads_nothing_holds_little_of_the_kernels_memory() -> None:
    """4 MB each, else: on loopback at once, on the network as soon as it has been quick for a while."""
    (listening,) = bind(Address("127.0.0.1", 0))
    with listening, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listening.getsockname())
        ours, _ = listening.accept()
        with ours:
            ours.setblocking(False)
            taken = 0
            with contextlib.suppress(BlockingIOError):
                while taken < 64 * UNSENT:
                    taken += ours.send(b"x" * 65536)
            assert taken < 4 * UNSENT
