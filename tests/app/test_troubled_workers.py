"""Workers that hang, that die at their start, or after their users have guessed: what is left, and what is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.test_workers import change, greeting, spread
from tests.peers.canaries import canary
from tests.peers.line_client import LineClient
from tests.peers.process import public_directory, wait_until
from tests.peers.proxy import POPPROXY, Proxy, StartProxy, settings, workers_of
from tests.peers.scripted import ScriptedBackend, in_thread
from tests.session.rig import users_file

pytestmark = pytest.mark.long

PATIENCE = 4.0
IMPATIENT = f"""
import signal, time
import popproxy.app.child
popproxy.app.child.HUNG = {PATIENCE}
signal.signal(signal.SIGVTALRM, lambda *_: time.sleep(600))
"""
"""For every Python of a test: a supervisor that waits less, and a signal that makes the loop of a worker hang."""


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    with in_thread(ScriptedBackend([b"Subject: hello\r\n\r\nhello\r\n"])) as made:
        yield made


def test_workers_that_hang_are_ended_and_replaced(start_proxy: StartProxy, backend: ScriptedBackend) -> None:
    with public_directory("impatient") as modules:
        (modules / "sitecustomize.py").write_text(IMPATIENT)
        (modules / "sitecustomize.py").chmod(0o644)
        proxy = start_proxy(settings(backend.address, workers=3), env={"PYTHONPATH": str(modules)})
        sessions = spread(proxy)
        stopped, blocked, well = sessions
        os.kill(stopped, signal.SIGSTOP)
        os.kill(blocked, signal.SIGVTALRM)
        wait_until(lambda: not {stopped, blocked} & set(proxy.workers), "the end of both", 60)
        wait_until(lambda: len(proxy.workers) == 3, "new ones")
        assert well in proxy.workers
        assert sessions[well][1].command("STAT").startswith(b"+OK")
        assert sessions[blocked][1].rest() == b""
        assert "ready" in greeting(proxy)
        assert proxy.log().count("a worker hangs and is ended") == 2
        assert "Fatal Python error: Aborted" in proxy.log(), "the log says where a worker hung"
        assert proxy.metrics()["popproxy_worker_restarts_total"] == 2


def test_a_nursery_that_hangs_is_replaced(start_proxy: StartProxy, backend: ScriptedBackend) -> None:
    with public_directory("impatient") as modules:
        (modules / "sitecustomize.py").write_text("import popproxy.app.child\npopproxy.app.child.BORN_LIMIT = 15.0\n")
        (modules / "sitecustomize.py").chmod(0o644)
        proxy = start_proxy(settings(backend.address), env={"PYTHONPATH": str(modules)})
        nursery, victim = nursery_of(proxy.pid), proxy.worker
        os.kill(nursery, signal.SIGSTOP)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: proxy.workers not in ([], [victim]), "another worker", 120)
        assert "a worker has not been made, and the nursery is ended" in proxy.log()
        assert "ready" in greeting(proxy)
        assert nursery_of(proxy.pid) != nursery


def nursery_of(supervisor: int) -> int:
    """The child that workers are forked from: the only one whose name is not popproxy's."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    (found,) = set(map(int, children)) - set(workers_of(supervisor))
    return found


def test_a_new_worker_that_dies_at_its_start_leaves_the_old_one_serving(
    start_proxy: StartProxy, backend: ScriptedBackend
) -> None:
    proxy = start_proxy(settings(backend.address))
    old = proxy.worker
    change(proxy, users={"file": "/nowhere/users"}, workers=2)
    refused = proxy.command("reload")
    assert (refused.returncode, "/nowhere/users" in refused.stderr) == (66, True), refused.stderr
    proxy.configuration["users"] = None
    proxy.configuration["listeners"][0]["banner"] = "the second"
    change(proxy)
    command = [str(POPPROXY), "reload", "-c", str(proxy.file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as reload:
        _kill_newcomer(proxy, old)
        _, said = reload.communicate(timeout=60)
    assert reload.returncode == 66
    assert "a worker was ended by SIGKILL at its start" in said or "a worker could not be made at its start" in said
    wait_until(lambda: proxy.workers == [old], "the other newcomer to go")
    assert "the second" not in greeting(proxy)
    assert proxy.command("reload").returncode == 0
    assert "the second" in greeting(proxy)


def _kill_newcomer(proxy: Proxy, old: int) -> None:
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        for pid in set(workers_of(proxy.pid)) - {old}:
            os.kill(pid, signal.SIGKILL)
            return
    raise AssertionError("no new worker")


def test_who_guesses_is_slowed_down_after_a_reload_and_after_the_death_of_a_worker(
    start_proxy: StartProxy, backend: ScriptedBackend
) -> None:
    with public_directory("users") as directory:
        users = users_file(directory, alice=canary())
        Path(users["file"]).chmod(0o644)
        proxy = start_proxy(
            settings(
                backend.address, listener={"authenticate": ["users"]}, users=users,
                penalties={"user_address": {"free": 3, "per_minute": 1}},
            )
        )  # fmt: skip
        wrong(proxy, 3)
        change(proxy, timeouts={"drain": "1s", "idle": "15m"})
        assert proxy.command("reload").returncode == 0
        assert counted(proxy) == 3
        wait_until(lambda: len(proxy.workers) == 1, "the end of the first worker")
        victim = proxy.worker
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: proxy.workers not in ([], [victim]), "another worker")
        assert counted(proxy) == 3
        with LineClient(proxy.port()) as client:
            client.line()
            client.command("USER alice")
            assert not client.command(f"PASS {canary()}").startswith(b"+OK"), "the right password, but too late"
        assert counted(proxy) == 3


def wrong(proxy: Proxy, count: int) -> None:
    for _ in range(count):
        with LineClient(proxy.port()) as client:
            client.line()
            client.command("USER alice")
            assert client.command(f"PASS {canary()}-{time.monotonic()}").startswith(b"-ERR [AUTH]")


def counted(proxy: Proxy) -> int:
    """Wrong passwords that are remembered of alice from here."""
    listed = json.loads(proxy.command("penalties", "list", "--all", "--json").stdout)["penalties"]
    (row,) = (one for one in listed if one["scope"] == "user_address")
    return round(float(row["level"]))
