"""Another version takes the place of the running one: nobody is refused, no session is touched, no count is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from popproxy.app.succession import FORM, NotUnderstoodError, read, written
from tests.app.test_systemd import Manager
from tests.app.test_workers import logged_in, runs
from tests.cli.helpers import write_config
from tests.endurance.restarts import Tally, client
from tests.peers.line_client import LineClient
from tests.peers.process import REPOSITORY, Process, free_port, public_directory, require, wait_until
from tests.peers.proxy import POPPROXY, Proxy, StartProxy, fallen, settings, workers_of
from tests.peers.scripted import ScriptedBackend, in_thread

pytestmark = pytest.mark.long


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    with in_thread(ScriptedBackend([b"Subject: hello\r\n\r\nhello\r\n"])) as made:
        yield made


class Installed:
    """A popproxy of its own, which can be replaced by another version."""

    def __init__(self, directory: Path) -> None:
        self.package = directory / "popproxy"
        shutil.copytree(REPOSITORY / "popproxy", self.package)
        self.environment = {"PYTHONPATH": str(directory)}

    def become(self, version: str) -> None:
        """From now on it is that version."""
        self.replace("__init__.py", '__version__ = "', f'__version__ = "{version}"  # ')

    def replace(self, name: str, old: str, new: str) -> str:
        """Other text in a file; returns what was there. The file is never half there."""
        path = self.package / name
        before = path.read_text()
        assert old in before
        made = path.with_suffix(".new")
        made.write_text(before.replace(old, new, 1))
        made.rename(path)
        return before


@pytest.fixture
def installed() -> Iterator[Installed]:
    with public_directory("installed") as directory:
        yield Installed(directory)


def outcomes(proxy: Proxy) -> list[str]:
    return [record["event.outcome"] for record in proxy.audit("upgrade")]


def test_what_another_version_hands_over_in_another_form_is_not_understood() -> None:
    told = written({"form": FORM + 1})
    with pytest.raises(NotUnderstoodError, match=f"hands over in form {FORM + 1}, and this knows {FORM}"):
        read(told)


def test_sockets_of_systemd_survive_reload_and_upgrade(backend: ScriptedBackend, installed: Installed) -> None:
    with public_directory("activated") as directory:
        port, http, manager = free_port(), free_port(), Manager(str(directory / "notify"))
        config = write_config(
            directory,
            listeners=[{"name": "pop3", "listen": [f"127.0.0.1:{free_port()}"], "cleartext_networks": ["127.0.0.1"]}],
            pools={"main": {"servers": [backend.address], "tls": "none", "allow_cleartext": True}},
            http={"listen": f"127.0.0.1:{http}"},
            control={"socket": str(directory / "control.sock")},
            timeouts={"login": "10m"},  # for a session that only waits
        )
        environment = {**os.environ, **installed.environment, "NOTIFY_SOCKET": manager.address}
        passed = [f"--setenv={name}={environment[name]}" for name in ("PYTHONPATH", "NOTIFY_SOCKET")]
        command: list[str | Path] = [require("systemd-socket-activate"), "-l", f"127.0.0.1:{port}", *passed]
        service = Process("activated", [*command, POPPROXY, "serve", "-c", config], directory / "log", directory)
        wait_until(lambda: "Listening on" in service.log.read_text(), "systemd-socket-activate")
        try:
            session = LineClient(port, seconds=60)
            assert session.line().startswith(b"+OK")
            assert manager.heard()["READY"] == "1"
            installed.become("2.0.second")
            for order in ("reload", "upgrade"):
                done = subprocess.run(
                    [str(POPPROXY), order, "-c", str(config)], capture_output=True, text=True, timeout=90,
                    env=environment, check=False,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr + service.log.read_text()
                with LineClient(port) as client:
                    assert client.line().startswith(b"+OK")
            assert "serving with popproxy 2.0.second" in done.stdout
            assert manager.heard_until("READY")[-1]["READY"] == "1"
            assert session.command("QUIT").startswith(b"+OK")
        finally:
            assert service.stop() == 0, service.log.read_text()
            manager.close()


def version_of(proxy: Proxy) -> str:
    (name,) = (name for name in proxy.metrics() if name.startswith("popproxy_build_info"))
    return name.partition('version="')[2].partition('"')[0]


def test_an_upgrade_under_load_refuses_nobody_and_touches_no_session(
    start_proxy: StartProxy, backend: ScriptedBackend, installed: Installed
) -> None:
    installed.become("1.0.first")
    proxy = start_proxy(
        settings(backend.address, workers=2, logging={"level": "info", "format": "json"}), env=installed.environment
    )
    assert version_of(proxy) == "1.0.first"
    old, session = proxy.workers, logged_in(proxy, "patient")
    tally, lock, enough = Tally(), threading.Lock(), threading.Event()
    threads = [threading.Thread(target=client, args=(proxy.port(), tally, lock, enough)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: tally.sessions > 3, "the first sessions")
        before = proxy.metrics()
        descriptors = len(os.listdir(f"/proc/{proxy.pid}/fd"))
        for version in ("2.0.second", "3.0.third"):
            installed.become(version)
            done = proxy.command("upgrade")
            assert done.returncode == 0, done.stderr + proxy.log()
            assert f"serving with popproxy {version}, before " in done.stdout
            seen = tally.sessions
            wait_until(lambda seen=seen: tally.sessions > seen + 3, "sessions with the new version", 30)  # type: ignore[misc]
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert (tally.refused, tally.lost) == (0, [])
    assert version_of(proxy) == "3.0.third"
    after = proxy.metrics()
    assert not fallen(before, after)
    assert after["process_start_time_seconds"] == before["process_start_time_seconds"]
    wait_until(lambda: len(proxy.workers) == 3, "the workers without sessions to end")
    assert "patient" in proxy.command("who").stdout
    assert session.command("RETR 1").startswith(b"+OK")
    assert session.body().endswith(b"hello\r\n.\r\n")
    assert session.command("QUIT").startswith(b"+OK")
    wait_until(lambda: not any(map(runs, old)), "the end of the first workers")
    wait_until(lambda: len(os.listdir(f"/proc/{proxy.pid}/fd")) <= descriptors + 2, "all descriptors to be closed")
    victim = proxy.workers[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in proxy.workers and len(proxy.workers) == 2, "another worker")
    with LineClient(proxy.port()) as again:
        assert again.line().startswith(b"+OK")
    wait_until(lambda: outcomes(proxy) == ["success", "success"], "the records of both")


def test_a_version_that_does_not_work_changes_nothing(
    start_proxy: StartProxy, backend: ScriptedBackend, installed: Installed
) -> None:
    proxy = start_proxy(settings(backend.address), env=installed.environment)
    before, session = proxy.workers, logged_in(proxy)
    control = ("--socket", str(proxy.configuration["control"]["socket"]))
    whole = installed.replace("app/generation.py", "class Generation:", "clas Generation:")
    done = proxy.command("upgrade", *control)
    assert done.returncode == 66
    assert re.fullmatch(
        r"popproxy: what is installed cannot take over: \S+/app/generation\.py:\d+: invalid syntax\n", done.stderr
    ), done.stderr
    (installed.package / "app/generation.py").write_text(whole)
    proxy.file.write_text(proxy.file.read_text().replace("drain: 1s", "drain: soon"))
    done = proxy.command("upgrade", *control)
    assert (done.returncode, "timeouts.drain: 'soon' is not a duration" in done.stderr) == (66, True), done.stderr
    assert proxy.workers == before
    assert session.command("STAT").startswith(b"+OK")
    wait_until(lambda: outcomes(proxy) == ["failure"] * 2, "the records of both")
    proxy.file.write_text(proxy.file.read_text().replace("drain: soon", "drain: 1s"))
    installed.become("2.0.whole")
    os.kill(proxy.pid, signal.SIGUSR2)
    wait_until(lambda: version_of(proxy) == "2.0.whole", "the new version", 60)
    wait_until(lambda: "upgraded" in proxy.log(), "the new supervisor")
    assert session.command("QUIT").startswith(b"+OK")


GATE = """
import os, time
def execve(path, *rest, really=os.execve):
    while not os.path.exists("{directory}/now"):
        time.sleep(0.01)
    really(path, *rest)
os.execve = execve
"""


def test_a_program_that_cannot_be_replaced_goes_on_with_what_it_has(
    backend: ScriptedBackend, installed: Installed
) -> None:
    """Started as `python -m popproxy`, by an interpreter that is gone when it is wanted."""
    with public_directory("interpreter") as directory:
        python = directory / "bin/python"
        python.parent.mkdir()
        python.symlink_to((REPOSITORY / ".venv/bin/python").resolve())
        (directory / "lib").symlink_to(REPOSITORY / ".venv/lib")
        shutil.copy(REPOSITORY / ".venv/pyvenv.cfg", directory)
        (installed.package.parent / "sitecustomize.py").write_text(GATE.format(directory=directory))
        port, http = free_port(), free_port()
        config = write_config(
            directory,
            listeners=[{"name": "pop3", "listen": [f"127.0.0.1:{port}"], "cleartext_networks": ["127.0.0.1"]}],
            pools={"main": {"servers": [backend.address], "tls": "none", "allow_cleartext": True}},
            http={"listen": f"127.0.0.1:{http}"},
            control={"socket": str(directory / "control.sock")},
            timeouts={"login": "10m"},  # for a session that only waits
            audit={"file": str(directory / "audit.jsonl")},
        )
        environment = {**os.environ, **installed.environment}
        command: list[str | Path] = [python, "-m", "popproxy", "serve", "--config", config]
        service = Process("long", command, directory / "log", directory, environment)

        def order(name: str) -> str:
            done = subprocess.run(
                [str(POPPROXY), name, "-c", str(config)], capture_output=True, text=True, timeout=90,
                env=environment, check=False,
            )  # fmt: skip
            return done.stdout + done.stderr

        def outcomes() -> list[str]:
            records = map(json.loads, (directory / "audit.jsonl").read_text().splitlines())
            return [record["event.outcome"] for record in records if record["event.action"] == "upgrade"]

        try:
            wait_until(lambda: "serving" in service.log.read_text(), "the service")
            (old,) = workers_of(service.pid)
            session = LineClient(port, seconds=60)
            assert session.line().startswith(b"+OK")
            installed.become("2.0.second")
            with ThreadPoolExecutor(1) as aside:
                ordered = aside.submit(order, "upgrade")
                wait_until(lambda: "goes on as the program that is installed now" in service.log.read_text(), "it", 60)
                os.rename(python, python.with_name("away"))
                (directory / "now").touch()
                assert "the new workers serve, but the supervisor has kept its version" in ordered.result()
            wait_until(lambda: outcomes() == ["failure"], "the failure on record")
            said = service.log.read_text()
            assert "the supervisor keeps its version; its workers have the new one" in said
            assert "No such file or directory" in said
            victims = workers_of(service.pid)
            victims.remove(old)
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            wait_until(lambda: not set(victims) & set(workers_of(service.pid)), "their end")
            with LineClient(port) as client:
                assert client.line().startswith(b"+OK"), "the supervisor hears and has workers made"
            os.rename(python.with_name("away"), python)
            assert "serving with popproxy 2.0.second" in order("upgrade")
            wait_until(lambda: outcomes() == ["failure", "success"], "the success on record", 60)
            assert session.command("QUIT").startswith(b"+OK")
        finally:
            assert service.stop() == 0, service.log.read_text()
