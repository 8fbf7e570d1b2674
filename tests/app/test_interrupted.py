"""Reloads and upgrades in whose midst something else comes: a drain, another order, a death, the last descriptor."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.app.test_workers import change, greeting, logged_in, refused, runs
from tests.peers.holds import Steps, holds
from tests.peers.process import free_port, limit_with, wait_until
from tests.peers.proxy import Proxy, StartProxy, settings
from tests.peers.scripted import ScriptedBackend, in_thread

pytestmark = pytest.mark.long

SECOND = "the second"


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    with in_thread(ScriptedBackend([b"Subject: hello\r\n\r\nhello\r\n"])) as made:
        yield made


@pytest.fixture
def steps() -> Iterator[Steps]:
    with holds() as made:
        yield made


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """For commands that wait."""
    with ThreadPoolExecutor(4) as made:
        yield made


def started(start_proxy: StartProxy, backend: ScriptedBackend, steps: Steps, **sections: Any) -> Proxy:
    proxy = start_proxy(settings(backend.address, timeouts={"drain": "60s"}, **sections), env=steps.environment)
    proxy.configuration["listeners"][0]["banner"] = SECOND
    change(proxy)
    return proxy


def outcomes(proxy: Proxy, action: str) -> list[str]:
    return [record["event.outcome"] for record in proxy.audit(action)]


def said(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    return done.returncode, done.stderr


# ---- a drain ----


@pytest.mark.parametrize("step", ["planning", "switching"])
def test_a_drain_ends_the_reload_in_whose_midst_it_comes(
    start_proxy: StartProxy, backend: ScriptedBackend, steps: Steps, aside: ThreadPoolExecutor, step: str
) -> None:
    proxy = started(start_proxy, backend, steps)
    session = logged_in(proxy)
    with steps.held(step):
        reload = aside.submit(proxy.command, "reload")
        steps.reached(step)
        assert proxy.command("drain").returncode == 0
        wait_until(lambda: refused(proxy.port()), "the port to be closed")
    assert said(reload.result()) == (66, "popproxy: popproxy is draining\n")
    assert refused(proxy.port()), "no worker of the new configuration has opened it again"
    assert proxy.get("/readyz") == (503, "draining\n")
    wait_until(lambda: outcomes(proxy, "config_reload") == ["failure"], "the record of the reload")
    assert session.command("QUIT").startswith(b"+OK")
    wait_until(lambda: not runs(proxy.pid), "the end")


def test_a_drain_in_the_rehearsal_of_an_upgrade_ends_both(
    start_proxy: StartProxy, backend: ScriptedBackend, steps: Steps, aside: ThreadPoolExecutor
) -> None:
    proxy = started(start_proxy, backend, steps)
    session = logged_in(proxy)
    with steps.held("rehearsing"):
        upgrade = aside.submit(proxy.command, "upgrade")
        steps.reached("rehearsing")
        assert proxy.command("drain").returncode == 0
        wait_until(lambda: refused(proxy.port()), "the port to be closed")
    assert said(upgrade.result()) == (66, "popproxy: popproxy is draining\n")
    wait_until(lambda: outcomes(proxy, "upgrade") == ["failure"], "the record of the upgrade")
    assert session.command("QUIT").startswith(b"+OK")
    wait_until(lambda: not runs(proxy.pid), "the end")


def test_the_end_takes_the_rehearsal_of_an_upgrade_along(
    start_proxy: StartProxy, backend: ScriptedBackend, steps: Steps
) -> None:
    proxy = started(start_proxy, backend, steps)
    with steps.held("rehearsing"):
        os.kill(proxy.pid, signal.SIGUSR2)
        steps.reached("rehearsing")
        (rehearsal,) = [
            pid for pid in map(int, Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split())
            if b"popproxy.app.rehearsing" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]  # fmt: skip
        os.kill(proxy.pid, signal.SIGTERM)
        wait_until(lambda: not runs(proxy.pid), "the end")
        wait_until(lambda: not runs(rehearsal), "the end of the rehearsal")


@pytest.mark.parametrize("step", ["blocking", "replacing"])
def test_a_drain_in_the_moment_of_an_upgrade_is_not_lost(
    start_proxy: StartProxy, backend: ScriptedBackend, steps: Steps, step: str
) -> None:
    """Before the program is replaced, and while nobody hears signals: then the next one hears it."""
    proxy = started(start_proxy, backend, steps)
    session = logged_in(proxy)
    with steps.held(step):
        os.kill(proxy.pid, signal.SIGUSR2)
        if step == "replacing":
            steps.reached(step)
            os.kill(proxy.pid, signal.SIGTERM)
        else:
            wait_until(lambda: "draining" in proxy.log(), "the drain")
    wait_until(lambda: refused(proxy.port()), "the port to be closed")
    wait_until(lambda: len(outcomes(proxy, "upgrade")) == 1, "the record of the upgrade")
    assert outcomes(proxy, "upgrade") == [{"blocking": "failure", "replacing": "success"}[step]]
    assert session.command("STAT").startswith(b"+OK")
    assert session.command("QUIT").startswith(b"+OK")
    wait_until(lambda: not runs(proxy.pid), "the end")


# ---- another order ----


def test_orders_to_reload_and_to_upgrade_come_after_each_other(
    start_proxy: StartProxy, backend: ScriptedBackend, steps: Steps, aside: ThreadPoolExecutor
) -> None:
    proxy = started(start_proxy, backend, steps)
    with steps.held("rehearsing"):
        first = aside.submit(proxy.command, "upgrade")
        steps.reached("rehearsing")
        assert said(proxy.command("upgrade")) == (66, "popproxy: an upgrade is under way\n")
        reload = proxy.command("reload")
        assert (reload.returncode, "(generation 2)" in reload.stdout) == (0, True), reload.stderr
        assert SECOND in greeting(proxy)
    done = first.result()
    assert (done.returncode, "(generation 3)" in done.stdout) == (0, True), done.stderr
    with steps.held("planning"):
        reloading = aside.submit(proxy.command, "reload")
        steps.reached("planning")
        with steps.held("rehearsing"):
            second = aside.submit(proxy.command, "upgrade")
            steps.reached("rehearsing")
    assert "(generation 4)" in reloading.result().stdout, reloading.result().stderr
    done = second.result()
    assert (done.returncode, "(generation 5)" in done.stdout) == (0, True), done.stderr
    assert logged_in(proxy).command("QUIT").startswith(b"+OK")
    wait_until(lambda: len(proxy.workers) == 1, "the earlier workers to end")
    wait_until(lambda: outcomes(proxy, "upgrade") == ["success", "success"], "the records")


# ---- a death ----


def test_new_workers_that_die_before_they_serve_are_replaced(
    start_proxy: StartProxy, backend: ScriptedBackend, steps: Steps, aside: ThreadPoolExecutor
) -> None:
    proxy = started(start_proxy, backend, steps)
    session, old = logged_in(proxy), proxy.worker
    control = str(proxy.configuration["control"]["socket"])
    with steps.held("switching"):
        reload = aside.submit(proxy.command, "reload", "--socket", control)
        steps.reached("switching")
        (new,) = set(proxy.workers) - {old}
        os.kill(new, signal.SIGKILL)
        wait_until(lambda: proxy.workers == [old], "its end")
    assert reload.result().returncode == 0, reload.result().stderr + proxy.log()
    wait_until(lambda: len(set(proxy.workers) - {old, new}) == 1, "another one")
    assert SECOND in greeting(proxy)
    assert session.command("QUIT").startswith(b"+OK")
    wait_until(lambda: len(proxy.workers) == 1, "the old worker to end")
    victim = proxy.worker
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: proxy.workers not in ([], [victim]), "one more")
    assert SECOND in greeting(proxy)


def test_workers_that_die_while_the_program_is_replaced_are_replaced_by_the_next_one(
    start_proxy: StartProxy, backend: ScriptedBackend, steps: Steps
) -> None:
    proxy = started(start_proxy, backend, steps, workers=2)
    with steps.held("replacing"):
        os.kill(proxy.pid, signal.SIGUSR2)
        steps.reached("replacing")
        victims = proxy.workers
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(set(proxy.workers) - set(victims)) == 2, "others")
    assert SECOND in greeting(proxy)
    wait_until(lambda: outcomes(proxy, "upgrade") == ["success"], "the record")
    wait_until(lambda: "worker_lost" in {record["event.action"] for record in proxy.audit()}, "those of the deaths")


# ---- the last descriptor ----


def test_who_has_too_few_descriptors_for_a_change_says_so_and_goes_on(
    start_proxy: StartProxy, backend: ScriptedBackend, steps: Steps
) -> None:
    proxy = started(start_proxy, backend, steps)
    session, old, before = logged_in(proxy), proxy.worker, descriptors(proxy)
    limits = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)

    def refused_with(left: int, order: signal.Signals, what: str, why: str) -> None:
        count = proxy.log().count(why)
        stays = proxy.log().count(what)
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (limit_with(left, before), limits[1]))
        os.kill(proxy.pid, order)
        wait_until(lambda: proxy.log().count(what) == stays + 1, f"an order to fail with {left} descriptors")
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, limits)
        assert proxy.log().count(why) > count, proxy.log()
        wait_until(lambda: descriptors(proxy) == before, "all descriptors to be closed")
        wait_until(lambda: proxy.workers == [old], "only the old worker")
        assert SECOND not in greeting(proxy)
        assert session.command("STAT").startswith(b"+OK")

    no_room = "no worker can be made: Too many open files"
    for left in (0, 2):
        refused_with(left, signal.SIGHUP, "the configuration stays as it was", no_room)
    for left in (0, 2, 3):
        why = no_room if left == 3 else "what is installed cannot be tried"
        refused_with(left, signal.SIGUSR2, "the version stays as it was", why)
    listener = proxy.configuration["listeners"][0]
    change(
        proxy, listeners=[{**listener, "listen": [*listener["listen"], *(f"127.0.0.1:{free_port()}" for _ in "12")]}]
    )
    missing = "Too many open files; raise the limit of open files"
    refused_with(2, signal.SIGHUP, "the configuration stays as it was", missing)
    change(proxy, listeners=[listener])

    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (limit_with(6, before), limits[1]))
    os.kill(proxy.pid, signal.SIGUSR2)
    wait_until(lambda: "the supervisor keeps its version; its workers have the new one" in proxy.log(), "it to fail")
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, limits)
    wait_until(lambda: SECOND in greeting(proxy), "the new worker")
    assert session.command("QUIT").startswith(b"+OK")
    wait_until(lambda: len(proxy.workers) == 1, "the old worker to end")
    wait_until(lambda: len(descriptors(proxy)) == len(before), "all descriptors to be closed")
    done = proxy.command("upgrade")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: outcomes(proxy, "upgrade") == [*["failure"] * 4, "success"], "the records of all")
    assert outcomes(proxy, "config_reload").count("failure") >= 3


def descriptors(proxy: Proxy) -> set[int]:
    """Those of the supervisor."""
    return set(map(int, os.listdir(f"/proc/{proxy.pid}/fd")))
