"""Starting, and failing to start without leaving anything; becoming an ordinary user; signals."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pwd
import random
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from popproxy.app.service import Service
from popproxy.config.model_abuse import Control
from popproxy.errors import ConfigError
from popproxy.observe import logs
from popproxy.vault.format import generate_key
from tests.peers.certs import CertificateFiles
from tests.peers.process import free_port, public_directory, wait_until
from tests.peers.proxy import POPPROXY, StartProxy, settings, workers_of
from tests.session.rig import configuration, descriptors, loaded, running, until

pytestmark = pytest.mark.long

# ---- failing to start ----


def broken(directory: Path, what: str, certificate: CertificateFiles) -> dict[str, Any]:
    """Sections that pass the configuration's own checks and fail in the environment."""
    match what:
        case "certificate":
            (directory / "bad.pem").write_text("no certificate")
            pairs = [{"cert": str(directory / "bad.pem"), "key": str(certificate.key)}]
            return {"listener": {"tls": "stls"}, "tls": {"certificates": pairs}}
        case "key of another certificate":
            pairs = [{"cert": str(certificate.cert), "key": str(directory / "none.key")}]
            return {"listener": {"tls": "stls"}, "tls": {"certificates": pairs}}
        case "vault key":
            (directory / "vault.key").write_text("short")
            return {"vault": {"file": str(directory / "vault"), "key": {"file": str(directory / "vault.key")}}}
        case "vault":
            (directory / "vault.key").write_text(generate_key())
            (directory / "vault").write_text("no vault")
            return {"vault": {"file": str(directory / "vault"), "key": {"file": str(directory / "vault.key")}}}
        case "users":
            (directory / "users").write_text("alice\n")
            return {"users": {"file": str(directory / "users")}, "listener": {"authenticate": ["users"]}}
        case "map":
            return {"routing": {"rules": [{"file": str(directory / "missing"), "pool": "main"}]}}
        case "ca":
            (directory / "ca.pem").write_text("no certificate")
            return {"pool": {"tls": "stls", "ca": str(directory / "ca.pem"), "allow_cleartext": False}}
        case "audit":
            return {"audit": {"file": str(directory / "missing" / "audit.jsonl")}}
        case "user":
            return {"process": {"user": "no-such-user"}}
        case "http":
            return {"http": {"listen": "192.0.2.1:9"}}
        case "control":
            (directory / "control.sock").write_text("no socket")
            return {"control": {"socket": str(directory / "control.sock")}}
    raise AssertionError(what)


@pytest.mark.parametrize(
    "what",
    [
        "certificate",
        "key of another certificate",
        "vault key",
        "vault",
        "users",
        "map",
        "ca",
        "audit",
        "user",
        "http",
        "control",
    ],
)
async def test_start_that_fails_leaves_nothing(tmp_path: Path, server_certificate: CertificateFiles, what: str) -> None:
    sections = broken(tmp_path, what, server_certificate)
    before, threads, tasks = descriptors(), set(threading.enumerate()), asyncio.all_tasks()
    service = Service(loaded(tmp_path, configuration(tmp_path, "127.0.0.1:1", **sections)))
    with pytest.raises(ConfigError) as caught:
        await service.start()
    assert str(caught.value)
    assert "Traceback" not in str(caught.value)
    await asyncio.sleep(0)
    assert descriptors() <= before, caught  # which keeps alive what nobody has closed
    assert set(threading.enumerate()) <= threads
    assert asyncio.all_tasks() == tasks
    await service.stop()


async def test_taken_port_leaves_the_other_ports_free(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = [f"127.0.0.1:{port}", f"127.0.0.1:{taken.getsockname()[1]}"]
        config = loaded(tmp_path, configuration(tmp_path, "127.0.0.1:1", listener={"listen": listen}))
        before = descriptors()
        with pytest.raises(ConfigError, match=r"listeners\[0\].listen\[1\]") as caught:
            await Service(config).start()
        assert descriptors() <= before, caught  # which keeps alive what nobody has closed


async def test_stopping_twice_and_before_the_start(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        client.close()
        await until(lambda: not rig.service.sessions, "the end")
        await rig.service.stop()
        await rig.service.stop()
        assert [record["event.action"] for record in rig.audit()][-1] == "audit_stop"
    await Service(loaded(tmp_path, configuration(tmp_path, "127.0.0.1:1"))).stop()


# ---- processes ----


@contextlib.contextmanager
def serving(directory: Path, **sections: Any) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """popproxy as it is started, and its port; its log is in `directory`/stderr."""
    port = free_port()
    config = configuration(directory, "127.0.0.1:1", listener={"listen": [f"127.0.0.1:{port}"]}, **sections)
    (directory / "popproxy.yaml").write_text(json.dumps(config))
    with (directory / "stderr").open("wb") as errors:
        proxy = subprocess.Popen([POPPROXY, "serve", "-c", str(directory / "popproxy.yaml")], stderr=errors)
        try:
            wait_until(lambda: '"serving"' in (directory / "stderr").read_text(), "popproxy to serve")
            yield proxy, port
        finally:
            if proxy.poll() is None:
                proxy.kill()
            proxy.wait()


def test_signals_that_come_while_it_ends_do_not_kill_it(tmp_path: Path) -> None:
    with serving(tmp_path) as (proxy, _):
        while proxy.poll() is None:
            proxy.send_signal(random.choice((signal.SIGTERM, signal.SIGINT)))
            time.sleep(0.0002)
        assert proxy.returncode == 0, (tmp_path / "stderr").read_text()


def test_privileges_are_dropped_for_good() -> None:
    assert os.geteuid() == 0, "only root has privileges to drop: run the tests as root"
    with public_directory("drop") as directory:
        directory.chmod(0o777)
        with serving(directory, process={"user": "nobody"}) as (proxy, port):
            status = Path(f"/proc/{workers_of(proxy.pid)[0]}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert set(fields["Uid"].split()) == {"65534"}
            assert set(fields["Gid"].split()) == {"65534"}
            assert "0" not in fields["Groups"].split()
            assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
            assert os.stat(directory / "audit.jsonl").st_uid == 65534
            with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                assert client.recv(100).startswith(b"+OK")
            proxy.send_signal(signal.SIGTERM)
            assert proxy.wait(60) == 0


def test_sigterm_drains_and_a_second_one_ends_it(tmp_path: Path) -> None:
    with serving(tmp_path, timeouts={"drain": "60s"}) as (proxy, port):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            assert client.recv(100).startswith(b"+OK")
            proxy.send_signal(signal.SIGTERM)
            wait_until(lambda: _refused(port), "the port to be closed")
            client.send(b"NOOP\r\n")
            assert client.recv(100) == b"+OK\r\n"
            proxy.send_signal(signal.SIGTERM)
            assert client.recv(100) == b"-ERR [SYS/TEMP] shutting down, try again later\r\n"
        assert proxy.wait(60) == 0
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    records = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    actions = [(record["event.action"], record.get("event.reason")) for record in records]
    assert actions[-2:] == [("session_end", "shutdown"), ("audit_stop", None)]


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


def test_sigusr1_starts_a_new_audit_file(tmp_path: Path) -> None:
    with serving(tmp_path) as (proxy, port):
        os.rename(tmp_path / "audit.jsonl", tmp_path / "audit.1")
        proxy.send_signal(signal.SIGUSR1)
        wait_until((tmp_path / "audit.jsonl").exists, "a new audit file")
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.recv(100)
        wait_until(lambda: "session_end" in (tmp_path / "audit.jsonl").read_text(), "the record in the new file")
        assert "session_end" not in (tmp_path / "audit.1").read_text()
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(60) == 0


# ---- the control socket ----


async def test_without_the_default_control_socket_mail_is_served_and_the_log_says_why(tmp_path: Path) -> None:
    taken = tmp_path / "control.sock"
    taken.write_text("somebody else's")
    made = loaded(tmp_path, configuration(tmp_path, "127.0.0.1:1"))
    by_default = Control.model_construct(set(), socket=taken, group=None, users=[], groups=[])
    log = io.StringIO()
    logs.configure("info", "json", log)
    service = Service(replace(made, config=made.config.model_copy(update={"control": by_default})))
    await service.start()
    try:
        assert service.addresses["pop3"]
        assert "is no socket" in log.getvalue()
        assert "control.socket" in log.getvalue()
    finally:
        await service.stop()
    assert taken.read_text() == "somebody else's"


def test_the_control_socket_of_a_service_that_gave_up_root(start_proxy: StartProxy) -> None:
    proxy = start_proxy(settings("127.0.0.1:1"))
    path = Path(proxy.configuration["control"]["socket"])
    assert (os.lstat(path).st_uid, stat.S_IMODE(os.lstat(path).st_mode)) == (pwd.getpwnam("nobody").pw_uid, 0o660)
    run = proxy.command("penalties", "list")
    assert (run.returncode, run.stdout) == (0, "nobody is slowed down\n"), run.stderr
    wait_until(lambda: bool(proxy.audit("admin")), "the record of the command")  # nobody waits for it to be written
    assert proxy.audit("admin")[0]["user.name"] == "root"
    proxy.stop()
    assert not path.exists()
    run = proxy.command("penalties", "list")
    assert run.returncode == 69
    assert "is it running" in run.stderr
