"""What `helm test` runs in the cluster, run here: as the rendered pod has it, against a real popproxy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helm.rendering import CHART, only, rendered
from tests.peers.canaries import canary
from tests.peers.certs import CertificateFiles
from tests.peers.process import free_port
from tests.peers.proxy import Proxy, StartProxy, settings
from tests.peers.scripted import ScriptedBackend, in_thread

pytestmark = pytest.mark.real


def login(proxy: Proxy, user: str, password: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The program of the test's pod, told of this popproxy's ports instead of the Service's."""
    (container,) = only(rendered(CHART / "ci/minimal-values.yaml"), "Pod", "login")["spec"]["containers"]
    environment = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    listeners = [{**one, "port": proxy.port(one["name"])} for one in json.loads(environment["POPPROXY_LISTENERS"])]
    assert [(one["name"], one["tls"]) for one in listeners] == [("pop3", "stls"), ("pop3s", "implicit")]
    environment |= {"POPPROXY_HOST": "127.0.0.1", "POPPROXY_LISTENERS": json.dumps(listeners), "POPPROXY_USER": user}
    command = [sys.executable, "-c", *container["args"]]
    environment |= {"POPPROXY_PASSWORD": password, **more}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_it_logs_in_at_every_listener(start_proxy: StartProxy, server_certificate: CertificateFiles) -> None:
    with in_thread(ScriptedBackend([b"x" * 100] * 3)) as backend:
        proxy = start_proxy(settings(backend.address, server_certificate))
        ended = login(proxy, "alice", canary())
        assert (ended.returncode, ended.stderr) == (0, "")
        assert [line.partition(") ")[2] for line in ended.stdout.splitlines()] == [
            "has let alice in: 3 messages, 300 octets",
            "has let alice in: 3 messages, 300 octets",
        ]
        ended = login(proxy, "", "")
        assert ended.returncode == 0
        assert "greets, and can do" in ended.stdout
        ended = login(proxy, "alice", canary(), POPPROXY_SERVER_NAME="mail.example.com")
        assert ended.returncode == 1
        assert ended.stdout.count("certificate verify failed") == 2  # nobody knows the test's authority


def test_it_fails_if_the_servers_are_away_and_prints_no_password(
    start_proxy: StartProxy, server_certificate: CertificateFiles
) -> None:
    password = canary()
    proxy = start_proxy(settings(f"127.0.0.1:{free_port()}", server_certificate))
    ended = login(proxy, "alice", password)
    assert ended.returncode == 1
    assert ended.stdout.count("problem  ") == 2
    assert "[SYS/TEMP]" in ended.stdout
    assert password not in ended.stdout + ended.stderr


def test_it_says_if_there_is_nothing_that_it_could_try() -> None:
    (container,) = only(rendered(CHART / "ci/minimal-values.yaml"), "Pod", "login")["spec"]["containers"]
    environment = {"POPPROXY_HOST": "popproxy", "POPPROXY_LISTENERS": "[]"}
    command = [sys.executable, "-c", *container["args"]]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.partition(":")[0]) == (0, "nothing to try")


def test_the_program_is_the_file_of_the_chart() -> None:
    (container,) = only(rendered(CHART / "ci/minimal-values.yaml"), "Pod", "login")["spec"]["containers"]
    assert container["args"] == [Path(CHART / "files/login.py").read_text()]
