"""``popproxy demo`` as its audience runs it: as a process, with real ports, TLS and signals."""

from __future__ import annotations

import contextlib
import io
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from popproxy.demo import kdc
from popproxy.demo.check import check_demo
from popproxy.demo.client import Client
from popproxy.demo.kdc import REALM
from popproxy.demo.realm import LOCAL_USER, SAMPLE, Ports
from popproxy.demo.scenarios import KERBEROS_SCENARIOS, scenarios
from popproxy.demo.stage import staged
from popproxy.demo.tour import tour
from popproxy.types import Address, Secret
from tests.cli.helpers import popproxy
from tests.peers.process import public_directory

PROGRAM = [sys.executable, "-m", "popproxy", "demo"]
FREE_PORTS = ["--pop3-port", "0", "--pop3s-port", "0", "--http-port", "0", "--kpop-port", "0"]


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory for temporary files with a short name: those of pytest leave no room for that of a Unix socket."""
    with public_directory("room") as directory:
        yield directory


@pytest.mark.long
def test_a_long_name_of_the_directory_for_temporary_files(tmp_path: Path) -> None:
    room = tmp_path / ("long" * 25)
    room.mkdir()
    with running(room, *FREE_PORTS) as demo:
        ca = Path(demo.until(r"Trust +(\S+),")[1])
        assert room not in ca.parents
        assert demo.stop() == 0
    assert not ca.parent.exists()


@pytest.mark.long
def test_check_plays_every_session_and_exits_0(room: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(room)}
    run = subprocess.run(
        [*PROGRAM, "--check"], capture_output=True, text=True, timeout=110, env=environment, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("    ok\n") == len(scenarios(kerberos=kdc.missing() is None))
    assert "FAILED" not in run.stdout
    assert not re.search(r"demo-[0-9a-f]{8}", run.stdout + run.stderr), "a password was printed"
    assert list(room.iterdir()) == []


class Demo:
    """A running demo; `text` is what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.text = ""
        assert process.stdout is not None
        self._output = process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)

    def until(self, pattern: str) -> re.Match[str]:
        """Read on until `pattern` has been printed."""
        give_up = time.monotonic() + 60
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < give_up, f"{pattern} was not printed, but: {self.text}"
            if self._selector.select(1):
                octets = os.read(self._output.fileno(), 65536)
                assert octets, f"the demo ended: {self.text}"
                self.text += octets.decode()
        return found

    def stop(self) -> int:
        """Press Ctrl-C and read the rest."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=60)
        self.text += rest.decode()
        return self.process.returncode


@contextlib.contextmanager
def running(directory: Path, *options: str) -> Iterator[Demo]:
    environment = {**os.environ, "TMPDIR": str(directory), "NO_COLOR": "1"}
    process = subprocess.Popen([*PROGRAM, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    try:
        yield Demo(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.long
def test_tour_works_as_printed_and_the_audit_log_is_shown_live(room: Path) -> None:
    with running(room, *FREE_PORTS) as demo:
        demo.until("Ctrl-C ends the demo")
        pop3 = int(demo.until(r"POP3 with STLS +localhost:(\d+)")[1])
        password = demo.until(r"alice, password (\S+):")[1]
        ca = Path(demo.until(r"Trust +(\S+),")[1])
        with Client(Address("127.0.0.1", pop3), ca) as client:
            client.stls()
            client.log_in("alice", Secret(password))
            client.ask("RETR 3")
            client.body()
            client.ask("DELE 3")
            client.ask("QUIT")
        demo.until(r"\d\d:\d\d:\d\d  alice +auth +success +USER  TLS 1")
        demo.until(r"alice +retr +success +message 3, \d+ octets")
        demo.until(r"alice +update +success +3 deleted")
        demo.until(r"alice +session_end +success")
        live = demo.text.partition("Ctrl-C ends the demo")[2]
        assert password not in live
        assert ca.parent.stat().st_mode & 0o077 == 0, "other users can look into the demo's directory"
        assert demo.stop() == 0
        assert "Sessions: 1. Logins: 1, refused: 0. Messages fetched: 1, deleted: 1, deletions undone: 0." in demo.text
    assert list(room.iterdir()) == []


@pytest.mark.real
def test_printed_commands_work(room: Path) -> None:
    with running(room, *FREE_PORTS) as demo:
        demo.until("Ctrl-C ends the demo")
        commands = [line for line in re.findall(r"^  (curl .*)$", demo.text, re.MULTILINE) if "GSSAPI" not in line]
        assert len(commands) == 6
        expected = {0: "8 ", 1: "minutes.pdf", 2: "", 4: "popproxy_auth_attempts_total", 5: "dots at the beginning"}
        for number, command in enumerate(commands):
            run = subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=60, check=False)
            if number == 3:
                assert run.returncode == 67, "curl's code for a refused login"
                continue
            assert run.returncode == 0, (command, run.stderr)
            assert expected[number] in run.stdout.decode("latin-1")
        openssl = demo.until(r"  (openssl .*)")[1]
        password = demo.until(r"alice, password (\S+):")[1]
        dialogue = f"USER alice\nPASS {password}\nRETR 3\nQUIT\n".encode()
        run = subprocess.run(["/bin/sh", "-c", openssl], input=dialogue, capture_output=True, timeout=60, check=False)
        assert run.returncode == 0, run.stderr
        assert b"dots at the beginning" in run.stdout
        demo.until(r"bob +update +success +1 deleted")
        demo.until(r"alice +auth +success +APOP")
        assert demo.stop() == 0


@pytest.mark.real
def test_printed_commands_for_tickets_work(room: Path) -> None:
    directory = room / "a b"
    directory.mkdir()
    with running(directory, *FREE_PORTS) as demo:
        demo.until("Ctrl-C ends the demo")
        export = demo.until(r"  (export KRB5_CONFIG=.* KRB5CCNAME=.*)")[1]
        curl = demo.until(r"  (curl .*GSSAPI.*)")[1]
        run = subprocess.run(["/bin/sh", "-c", f"{export}\n{curl}"], capture_output=True, timeout=60, check=False)
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith(b"1 ")
        demo.until(r"alice@POPPROXY.DEMO auth +success +GSSAPI  TLS 1")
        kpop = demo.until(r"  (\S+ -m popproxy.demo.kpop .*)")[1]
        run = subprocess.run(["/bin/sh", "-c", f"{export}\n{kpop}"], capture_output=True, timeout=60, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        assert b"S: AP-REP" in run.stdout
        assert run.stdout.endswith(b"S: +OK 0 messages deleted\n")
        demo.until(r"alice@POPPROXY.DEMO auth +success +KPOP")
        assert demo.stop() == 0
    assert list(directory.iterdir()) == []


def kdcs(directory: Path) -> list[int]:
    """Process ids of the KDCs whose files are below `directory`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if Path(process / "cwd").readlink().is_relative_to(directory):
                found.append(int(process.name))
    return found


@pytest.mark.real
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("options", [FREE_PORTS, ["--check"]])
def test_no_signal_leaves_a_kdc_behind(room: Path, options: list[str], number: signal.Signals) -> None:
    with running(room, *options) as demo:
        demo.until("Ctrl-C ends the demo" if options is FREE_PORTS else "1. Password over STLS")
        assert len(kdcs(room)) == 1
        demo.process.send_signal(number)
        demo.process.communicate(timeout=60)
        assert demo.process.returncode == (0 if options is FREE_PORTS else 128 + number)
    assert kdcs(room) == []
    assert list(room.iterdir()) == []


async def test_without_a_kdc_the_demo_says_how_to_get_one_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, room: Path
) -> None:
    monkeypatch.setattr(kdc, "_PACKAGES", {"no-such-program": "krb5-kdc"})
    monkeypatch.setenv("TMPDIR", str(room))
    async with staged(Ports(0, 0, 0, 0)) as stage:
        assert stage.kpop is None
        assert "make demo" in stage.left_out
        assert "apt-get install krb5-kdc" in stage.left_out
        text = tour(stage).plain
    assert "Kerberos is left out: there is no KDC on this machine" in text
    assert "KRB5_CONFIG" not in text


@pytest.mark.long
async def test_check_without_a_kdc_plays_the_rest_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdc, "_PACKAGES", {"no-such-program": "krb5-kdc"})
    stream = io.StringIO()
    assert await check_demo(stream) == 0
    text = stream.getvalue()
    assert "Kerberos is left out: there is no KDC on this machine; install it with make demo" in text
    assert text.count("    ok\n") == len(scenarios(kerberos=False))
    assert "A ticket by" not in text


@pytest.mark.real
async def test_check_plays_tickets_by_gssapi_and_kpop() -> None:
    stream = io.StringIO()
    assert await check_demo(stream) == 0
    text = stream.getvalue()
    assert len(KERBEROS_SCENARIOS) == 3
    for scenario in KERBEROS_SCENARIOS:
        session, ok, _ = text.partition(f". {scenario.title}\n")[2].partition("    ok\n")
        assert ok
        assert f"    - the audit log names {LOCAL_USER}@{REALM}: no password anywhere" in session
    assert "left out" not in text


@pytest.mark.real
async def test_a_kdc_that_does_not_begin_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kdc, "_KDC_CONF", kdc._KDC_CONF.replace("kdc_tcp_listen = 127.0.0.1", "kdc_tcp_listen = 192.0.2.1")
    )
    monkeypatch.setattr(kdc, "_SECONDS", 3.0)
    async with staged(Ports(0, 0, 0, 0)) as stage:
        assert stage.left_out.startswith("the KDC does not begin")
        assert stage.tickets is None


@pytest.mark.parametrize("option", ["--pop3-port", "--pop3s-port", "--http-port"])
def test_taken_port_names_the_option(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = [port if FREE_PORTS[index - 1] == option else text for index, text in enumerate(FREE_PORTS)]
        run = popproxy("demo", *options)
    assert run.returncode == 69
    assert port.encode() in run.stderr
    assert option.encode() in run.stderr
    assert run.stderr.count(b"\n") == 1


def test_wheel_holds_the_sample_maildrop(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    run = subprocess.run(build, cwd=root, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, f"{run.stderr}: is hatchling there? make setup"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = {name: wheel.read(name) for name in wheel.namelist() if name.startswith("popproxy/demo/maildir/")}
    stored = {
        f"popproxy/demo/maildir/{path.relative_to(SAMPLE)}": path.read_bytes()
        for path in SAMPLE.rglob("*")
        if path.is_file()
    }
    assert packed == stored
    assert len(packed) == 8
