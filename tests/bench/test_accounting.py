"""CPU time and memory of a group of processes, counted in either way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.accounting import Group, ProcessTree, accounting
from tests.bench.target import Ports, Target
from tests.peers.process import free_port, wait_until

pytestmark = pytest.mark.long

SECOND = 10**9
# burns 0.1 s itself and 0.1 s in a child that has exited by the time it greets
BUSY = r"""
import os, socket, sys, time
def burn():
    while time.process_time() < 0.1: sum(range(10000))
if os.fork() == 0:
    burn()
    os._exit(0)
burn()
os.wait()
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    listener.accept()[0].sendall(b"+OK\r\n")
"""


@pytest.fixture(params=["best", "proc"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    def by_proc(_name: str) -> Group:
        return ProcessTree()

    port = free_port()
    command = [sys.executable, "-c", BUSY, str(port)]
    group = accounting().group if request.param == "best" else by_proc
    target = Target("busy", [command], Ports(port), os.sched_getaffinity(0), tmp_path, group)
    target.start()
    yield target
    target.stop()


def test_exited_children_count(target: Target) -> None:
    cpu = target.group.cpu()
    assert cpu.total >= 0.18 * SECOND
    assert cpu.total < 20 * SECOND
    assert cpu.user_share > 0.5
    assert (cpu - cpu).total == 0


def test_memory_is_that_of_the_living(target: Target) -> None:
    (pid,) = target.group.pids()
    assert pid == target.processes[0].pid
    assert 1000 < target.group.pss_kb() <= target.group.rss_kb() <= target.group.peak_rss_kb() < 100_000


def test_a_stopped_target_is_gone_and_starts_again(target: Target) -> None:
    process: subprocess.Popen[bytes] = target.processes[0]
    target.stop()
    assert process.returncode is not None
    assert not target.alive()
    assert target.group.pids() == []
    target.start()
    wait_until(target.alive, "it to run again")
