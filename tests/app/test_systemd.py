"""popproxy as a service of systemd: its units as systemd judges them, sockets that are passed, and what it tells."""

from __future__ import annotations

import asyncio
import configparser
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from popproxy.app.systemd import Notifier
from popproxy.config.loader import load_file
from tests.cli.helpers import process, write_config
from tests.peers.canaries import canary
from tests.peers.certs import CertificateFiles
from tests.peers.line_client import LineClient
from tests.peers.process import PATIENCE, REPOSITORY, Process, accepts, free_port, public_directory, require, wait_until
from tests.peers.proxy import POPPROXY, StartProxy, settings
from tests.peers.scripted import ScriptedBackend, in_thread

UNITS = REPOSITORY / "config" / "systemd"
RECIPE = REPOSITORY / "config" / "recipes" / "systemd.yaml"


@pytest.fixture
def directory() -> Iterator[Path]:
    with public_directory("systemd") as made:
        yield made


class Manager:
    """systemd's end of NOTIFY_SOCKET. Reads all the time: the kernel keeps ten messages, and the next one is lost."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + address[1:] if address.startswith("@") else address)
        if not address.startswith("@"):
            os.chmod(address, 0o777)
        self._messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def heard(self) -> dict[str, str]:
        """The next message."""
        return dict(line.split("=", 1) for line in self._messages.get(timeout=PATIENCE).decode().splitlines())

    def heard_until(self, variable: str) -> list[dict[str, str]]:
        """All messages up to one with `variable`."""
        messages = [self.heard()]
        while variable not in messages[-1]:
            messages.append(self.heard())
        return messages

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()

    def _read(self) -> None:
        while message := self._sock.recv(4096):
            self._messages.put(message)


# ---- what it tells ----


async def test_without_a_manager_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    notifier = Notifier.from_environment()
    notifier.ready(lambda: "never")
    notifier.stopping(1)
    notifier.close()


async def test_signs_of_life_come_from_the_running_loop_at_half_the_limit(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(str(directory / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = Notifier.from_environment()
    assert "NOTIFY_SOCKET" not in os.environ
    notifier.ready(lambda: "2 sessions, serving\nMAINPID=1 \udc80")
    assert manager.heard() == {"READY": "1", "STATUS": "2 sessions, serving MAINPID=1 ?"}
    for _ in range(3):
        assert (await asyncio.to_thread(manager.heard))["WATCHDOG"] == "1"
    notifier.stopping(37)
    heard = await asyncio.to_thread(manager.heard_until, "STOPPING")
    assert heard[-1]["EXTEND_TIMEOUT_USEC"] == "37000000"
    notifier.close()
    manager.close()


async def test_a_watchdog_of_another_process_and_a_dead_manager_are_borne(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(str(directory / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    notifier = Notifier.from_environment()
    notifier.ready(lambda: "serving")
    assert [manager.heard(), manager.heard()] == [{"READY": "1", "STATUS": "serving"}, {"STATUS": "serving"}]
    manager.close()
    notifier.stopping(1)
    notifier.close()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_service_is_ready_alive_and_stopping(
    start_proxy: StartProxy, server_certificate: CertificateFiles, directory: Path, kind: str
) -> None:
    manager = Manager(str(directory / "notify") if kind == "path" else f"@popproxy-test-{os.getpid()}")
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    proxy = start_proxy(settings(f"127.0.0.1:{free_port()}", server_certificate), env=environment)
    assert manager.heard() == {"READY": "1", "STATUS": "0 sessions, serving"}
    with LineClient(proxy.port()):
        while manager.heard() != {"WATCHDOG": "1", "STATUS": "1 session, serving"}:
            pass
        os.kill(proxy.pid, 15)
        assert float(manager.heard_until("STOPPING")[-1]["EXTEND_TIMEOUT_USEC"]) == pytest.approx(16e6)
        assert manager.heard_until("STATUS")[-1]["STATUS"].endswith("draining")
    manager.close()


# ---- sockets that are passed ----


def activated(config: Path, ports: list[int], names: str | None) -> Process:
    """popproxy behind systemd-socket-activate, which starts it at the first connection."""
    listen = [option for port in ports for option in ("-l", f"127.0.0.1:{port}")]
    command = [require("systemd-socket-activate"), *listen, *([] if names is None else [f"--fdname={names}"])]
    log = config.parent / "activated.log"
    return Process("activated", [*command, POPPROXY, "serve", "-c", config], log, config.parent)


def greeting(port: int) -> str:
    with LineClient(port) as client:
        return client.line().decode()


@pytest.mark.long
def test_sockets_of_systemd_become_the_listeners_they_are_named_for(directory: Path) -> None:
    own, ports = free_port(), [free_port(), free_port(), free_port()]
    listeners = [
        {"name": "pop3", "listen": [f"127.0.0.1:{free_port()}"], "banner": "the first"},
        {"name": "other", "listen": [f"127.0.0.1:{free_port()}"], "banner": "the other"},
        {"name": "own", "listen": [f"127.0.0.1:{own}"], "banner": "bound by popproxy"},
    ]
    config = write_config(directory, listeners=listeners)
    service = activated(config, ports, "other:pop3:other")
    wait_until(lambda: "Listening on" in service.log.read_text(), "systemd-socket-activate")
    try:
        check = process("check", "--offline", "-c", str(config))
        assert b"can be bound" in check.stdout
        banners = ["the other", "the first", "the other", "bound by popproxy"]
        for port, banner in zip([*ports, own], banners, strict=True):
            assert banner in greeting(port)
        config.write_text(config.read_text().replace("the first", "after a reload"))
        service.signal(signal.SIGHUP)
        wait_until(lambda: "serving with the new configuration" in service.log.read_text(), "the reload")
        # the earlier worker may take a last client before it hears that it is retired
        wait_until(lambda: "after a reload" in greeting(ports[1]), "the new banner")
        for port, banner in zip([ports[0], ports[2], own], [banners[0], banners[2], banners[3]], strict=True):
            assert banner in greeting(port)
    finally:
        assert service.stop() == 0, service.log.read_text()


@pytest.mark.long
def test_a_port_that_systemd_holds_is_in_order(directory: Path) -> None:
    port = free_port()
    config = write_config(directory, listeners=[{"name": "pop3", "listen": [f"127.0.0.1:{port}"]}])
    service = activated(config, [port], None)
    wait_until(lambda: "Listening on" in service.log.read_text(), "systemd-socket-activate")
    try:
        run = process("check", "--offline", "-c", str(config))
        assert b"is held by systemd: its socket unit must say FileDescriptorName=pop3" in run.stdout
        with LineClient(port) as client:  # one listener needs no name
            assert client.line().startswith(b"+OK")
    finally:
        assert service.stop() == 0, service.log.read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ("pop3:pop3s", "systemd has passed a socket named 'pop3s', but the listeners are pop3, other;"),
        (None, "systemd has passed 2 sockets, and names for 0; name each socket after its listener"),
    ],
)
def test_names_that_do_not_match_are_refused(directory: Path, names: str | None, complaint: str) -> None:
    listeners = [{"name": name, "listen": [f"127.0.0.1:{free_port()}"]} for name in ("pop3", "other")]
    config = write_config(directory, listeners=listeners)
    ports = [free_port(), free_port()]
    service = activated(config, ports, names)
    wait_until(lambda: "Listening on" in service.log.read_text(), "systemd-socket-activate")
    with socket.create_connection(("127.0.0.1", ports[0])):
        wait_until(lambda: service.exit_status is not None, "popproxy to give up")
    assert service.stop() == 78
    assert f"{config}:" in service.log.read_text()
    assert complaint in service.log.read_text()


@pytest.mark.long
def test_what_does_not_listen_is_refused(directory: Path) -> None:
    config = write_config(directory, listeners=[{"name": "pop3", "listen": [f"127.0.0.1:{free_port()}"]}])
    code = (
        "import os, socket, sys\n"
        "made = socket.socket(type=socket.SOCK_DGRAM); made.bind(('127.0.0.1', 0))\n"
        "os.dup2(made.fileno(), 9); os.dup2(9, 3)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='pop3')\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(POPPROXY), "serve", "-c", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 78
    assert "systemd has passed a socket for pop3 that does not listen on TCP; it takes ListenStream=" in ended.stderr


# ---- the units ----


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text())
    return parser


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units, with a program that exists here."""
    copies = [Path(shutil.copy(path, tmp_path)) for path in sorted(UNITS.iterdir())]
    for path in copies:
        path.write_text(path.read_text().replace("/opt/popproxy/bin/popproxy", str(POPPROXY)))
    return copies


@pytest.mark.real
def test_systemd_finds_nothing_wrong_with_the_units(installed: list[Path]) -> None:
    assert judge("verify", "--man=no", *map(str, installed)) == (0, "")
    service = next(path for path in installed if path.suffix == ".service")
    service.write_text(service.read_text().replace("RestrictRealtime", "RestrictRealtim"))
    assert "Unknown key 'RestrictRealtim'" in judge("verify", "--man=no", str(service))[1]


@pytest.mark.real
def test_systemd_calls_the_service_safe(installed: list[Path]) -> None:
    service = next(path for path in installed if path.suffix == ".service")
    status, text = judge("security", "--offline=yes", "--threshold=20", str(service))
    assert status == 0, text


def test_units_and_recipe_go_together() -> None:
    config = load_file(RECIPE).config
    ports = {listener.name: str(listener.listen[0].port) for listener in config.listeners}
    sockets = [unit(path.name)["Socket"] for path in UNITS.glob("*.socket")]
    assert {one["FileDescriptorName"]: one["ListenStream"] for one in sockets} == ports
    service = unit("popproxy.service")["Service"]
    assert all(one["Service"] == "popproxy.service" for one in sockets)
    credential = service["LoadCredential"].partition(":")[0]
    assert config.tls.certificates[0].key == Path("/run/credentials/popproxy.service") / credential
    assert config.process.user is None, "it never was root"
    assert str(config.audit.file).startswith(f"/var/log/{service['LogsDirectory']}/")
    assert str(config.control.socket).startswith(f"/run/{service['RuntimeDirectory']}/")
    assert int(service["LimitNOFILE"]) >= 2 * config.limits.connections + 100
    assert float(service["TimeoutStopSec"].rstrip("s")) > config.timeouts.drain


@pytest.mark.real
def test_the_service_needs_nothing_that_its_unit_forbids(directory: Path) -> None:
    """strace sees the start, a login, what a child process does, a command of an operator, and the end."""
    trace = traced_service(directory)
    calls = set(re.findall(r"^\d+ +([a-z0-9_]+)\(", trace, re.MULTILINE))
    assert {"accept4", "connect", "listen", "setsockopt"} <= calls, "strace has not seen it serve"
    as_root = {"setgroups", "setgid", "setuid"}  # the unit's User= is there instead
    forbidden = calls - allowed_calls() - as_root
    assert not forbidden, f"popproxy.service forbids {', '.join(sorted(forbidden))}"
    executable = [
        line for line in trace.splitlines() if re.search(r"PROT_WRITE\|PROT_EXEC|mprotect\(.*PROT_EXEC", line)
    ]
    assert not executable, "MemoryDenyWriteExecute= forbids:\n" + "\n".join(executable)
    families = set(re.findall(r" socket\((AF_[A-Z0-9]+)", trace))
    assert families <= set(unit("popproxy.service")["Service"]["RestrictAddressFamilies"].split())


def traced_service(directory: Path) -> str:
    """A start, a session and an end; what strace has written."""
    port, trace = free_port(), directory / "trace"
    with in_thread(ScriptedBackend()) as backend:
        config = write_config(
            directory,
            listeners=[{"name": "pop3", "listen": [f"127.0.0.1:{port}"], "cleartext_networks": ["127.0.0.1"]}],
            pools={"main": {"servers": [backend.address], "tls": "none", "allow_cleartext": True}},
            http={"listen": f"127.0.0.1:{free_port()}"},
            control={"socket": str(directory / "control.sock")},
        )
        command: list[str | Path] = [require("strace"), "-D", "-f", "-q", "-o", trace, POPPROXY, "serve", "-c", config]
        service = Process("strace", command, directory / "strace.log", directory)
        service.wait_for(lambda: accepts(port), "popproxy to listen", 60)
        with LineClient(port, seconds=60) as client:
            assert client.line().startswith(b"+OK")
            assert client.command("USER alice").startswith(b"+OK")
            assert client.command(f"PASS {canary()}").startswith(b"+OK")
            assert client.command("QUIT").startswith(b"+OK")
        run = process("penalties", "list", "--socket", str(directory / "control.sock"))
        assert run.returncode == 0, run.stderr
        assert service.stop(60) == 0, service.log.read_text()
    end = re.compile(rf"^{service.pid} +\+\+\+ exited", re.MULTILINE)  # strace pads short process ids
    wait_until(lambda: end.search(trace.read_text()) is not None, "strace to have seen the end")
    return trace.read_text()


def allowed_calls() -> set[str]:
    """What SystemCallFilter= comes to: sets that are added and, with ~, taken away, in their order."""
    text = (UNITS / "popproxy.service").read_text()
    allowed: set[str] = set()
    for value in re.findall(r"^SystemCallFilter=(.*)$", text, re.MULTILINE):
        calls = members(value.lstrip("~"))
        allowed = allowed - calls if value.startswith("~") else allowed | calls
    return allowed


def members(group: str) -> set[str]:
    names = {line.strip() for line in judge("syscall-filter", group)[1].splitlines()[1:]}
    nested = {name for name in names if name.startswith("@")}
    plain = {name for name in names if name and not name.startswith(("@", "#"))}
    return plain.union(*map(members, nested)) if nested else plain


def judge(*arguments: str) -> tuple[int, str]:
    """Exit status and output of systemd-analyze."""
    ended = subprocess.run(
        [require("systemd-analyze"), *arguments], capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
    )  # fmt: skip
    return ended.returncode, ended.stdout + ended.stderr
