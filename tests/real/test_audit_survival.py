"""What is acknowledged is on record: when popproxy is killed, and when the disk is full."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.canaries import canary
from tests.peers.line_client import LineClient
from tests.peers.process import public_directory, wait_until
from tests.peers.proxy import Proxy, StartProxy, settings
from tests.peers.scripted import ScriptedBackend, in_thread
from tests.real.audit_survival import survive, well_told

pytestmark = pytest.mark.real


def test_what_was_acknowledged_before_a_kill_is_in_the_log() -> None:
    survived = survive(2, seed=7)
    assert survived.missing == []
    assert well_told(survived), survived.counts
    assert survived.halves == 1


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A directory of nobody's on a file system of 512 KiB."""
    if os.geteuid() != 0:
        pytest.fail("mounting a tmpfs needs root: run the tests as root, or as `unshare -rm make test`")
    with public_directory("small-disk") as directory:
        options = "size=512k,uid=65534,gid=65534,mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", directory], check=True)
        try:
            yield directory
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


def fill(directory: Path) -> Path:
    """Use up the disk."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return path
    raise AssertionError("the disk is not full")


def log_in(port: int, user: str, acknowledged: set[str]) -> bytes:
    with LineClient(port) as client:
        client.line()
        client.command(f"USER {user}")
        answer = client.command(f"PASS {canary()}")
        if answer.startswith(b"+OK"):
            acknowledged.add(user)
        return answer


def fetch_again_and_again(client: LineClient, times: int) -> None:
    """One session that goes on while nothing can be written: 500 commands at a time."""
    for _ in range(times // 500):
        client.send(b"RETR 1\r\n" * 500)
        for _ in range(500):
            assert client.line().startswith(b"+OK")
            assert client.body()


def test_no_login_goes_unlogged_while_the_disk_is_full_and_a_gap_says_what_was_lost(
    start_proxy: StartProxy, small_disk: Path
) -> None:
    log = small_disk / "audit.jsonl"
    acknowledged: set[str] = set()
    refused: list[bytes] = []
    with in_thread(ScriptedBackend([b"x"])) as backend:
        proxy = start_proxy(settings(backend.address, audit={"file": str(log)}))
        with LineClient(proxy.port()) as running:
            running.line()
            running.command("USER early")
            assert running.command(f"PASS {canary()}").startswith(b"+OK")
            filler = fill(small_disk)

            def many(start: int) -> None:
                for number in range(start, start + 25):
                    answer = log_in(proxy.port(), f"u{number}", acknowledged)
                    if not answer.startswith(b"+OK"):
                        refused.append(answer)

            threads = [threading.Thread(target=many, args=(start,)) for start in (0, 100, 200, 300)]
            for thread in threads:
                thread.start()
            fetch_again_and_again(running, 10_000)  # the session that is open goes on; its records overflow the buffer
            for thread in threads:
                thread.join(60)
            logged = {record["user.name"] for record in proxy.audit("login")}
            assert acknowledged <= logged  # what fitted into the last page of the disk
            assert len(refused) >= 90
            assert all(answer.startswith(b"-ERR [SYS/TEMP]") for answer in refused), set(refused)
            assert proxy.get("/readyz")[0] == 503
            assert proxy.metrics()['popproxy_audit_records_total{outcome="dropped",sink="file"}'] > 0
            subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
            filler.unlink()
            wait_until(lambda: proxy.get("/readyz")[0] == 200, "the audit log to be written again")
            assert log_in(proxy.port(), "late", acknowledged).startswith(b"+OK")
            assert running.command("QUIT").startswith(b"+OK")
        wait_until(lambda: bool(proxy.audit("audit_gap")), "the gap")
        gaps(proxy)
        proxy.stop()
        verified = proxy.command("audit", "verify", "--no-key")
        assert verified.returncode == 3, verified.stdout
        assert "incomplete, first at" in verified.stdout
        assert "(gap " in verified.stdout.splitlines()[-1]


def gaps(proxy: Proxy) -> None:
    """Every number is there, or named by a gap."""
    records = proxy.audit()
    expected = 1
    for record in records:
        if record["event.action"] == "audit_gap":
            assert record["popproxy.audit.lost_from"] == expected
            expected = record["popproxy.audit.lost_to"] + 1
        assert record["event.sequence"] == expected
        expected += 1
