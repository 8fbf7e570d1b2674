"""The examples for logrotate and fail2ban in config/, with the real programs and what a real popproxy has written."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from popproxy.observe.audit import AuditLog, FileSink
from popproxy.observe.audit_files import lines, log_files
from popproxy.observe.metrics import Metrics
from popproxy.types import Address, AuthFailure, Mechanism, Outcome, SessionId
from tests.peers.canaries import canary
from tests.peers.line_client import LineClient
from tests.peers.process import REPOSITORY, require, wait_until
from tests.peers.proxy import Proxy, StartProxy, settings
from tests.peers.scripted import ScriptedBackend, in_thread

pytestmark = pytest.mark.real
FAIL2BAN = REPOSITORY / "config" / "fail2ban"


def log_in(proxy: Proxy, *, wrong: bool) -> None:
    with LineClient(proxy.port()) as client:
        client.line()
        client.command("USER alice")
        answer = client.command(f"PASS {canary()}")
        assert answer.startswith(b"-ERR" if wrong else b"+OK"), answer
        client.command("QUIT")


def rotate(proxy: Proxy, state: Path) -> None:
    """What cron does each day, with the names and the signal of this test."""
    text = (REPOSITORY / "config" / "logrotate" / "popproxy").read_text()
    assert "systemctl kill --signal=USR1 --kill-who=main popproxy.service" in text
    text = text.replace("/var/log/popproxy/audit.jsonl", proxy.configuration["audit"]["file"])
    text = text.replace("su popproxy popproxy", "su nobody nogroup")
    text = re.sub(r"systemctl kill .*", f"kill -USR1 {proxy.pid}", text)
    config = state.parent / "logrotate.conf"
    config.write_text(text)
    config.chmod(0o644)
    command = [require("logrotate"), "--force", "--state", str(state), str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_logrotate_loses_no_record_and_popproxy_audit_reads_on(start_proxy: StartProxy, tmp_path: Path) -> None:
    with in_thread(ScriptedBackend()) as backend:
        proxy = start_proxy(settings(backend.address))
        log = Path(proxy.configuration["audit"]["file"])
        for number in range(3):
            log_in(proxy, wrong=False)
            wait_until(lambda: bool(proxy.audit("session_end")), "the end of the session")
            rotate(proxy, tmp_path / "state")
            wait_until(lambda: bool(proxy.audit("audit_rotate")), "a new file")
            # logrotate names files by the second, and will not overwrite one
            assert len(log_files(log)) == number + 2
            wait_until(lambda: next_second(log), "the next second")
    files = log_files(log)
    assert [path.suffix for path in files[:2]] == [".gz", ".gz"]
    assert gzip.decompress(files[0].read_bytes()).startswith(b'{"@timestamp"')
    records = [json.loads(line) for path in files for line in lines(path)]
    assert [record["event.sequence"] for record in records] == list(range(1, len(records) + 1))
    found = proxy.command("audit", "search", "--user", "alice", "--action", "session_end", "--json")
    assert len(found.stdout.splitlines()) == 3, found.stderr


def next_second(log: Path) -> bool:
    newest = max(int(path.name.removesuffix(".gz").rpartition("-")[2]) for path in log_files(log) if path != log)
    return int(time.time()) > newest + 1


def test_fail2ban_counts_wrong_passwords_and_nothing_else(start_proxy: StartProxy) -> None:
    with in_thread(ScriptedBackend(on_command={"PASS": b"-ERR [AUTH] no\r\n"})) as backend:
        proxy = start_proxy(settings(backend.address))
        for _ in range(3):
            log_in(proxy, wrong=True)
    log_in(proxy, wrong=True)  # the server is gone: that is ours
    wait_until(lambda: len(proxy.audit("session_end")) == 4, "the ends of all sessions")
    assert [record["event.outcome"] for record in proxy.audit("auth")] == [*["failure"] * 3, "unknown"]
    text = matched(Path(proxy.configuration["audit"]["file"]))
    assert "Failregex: 3 total" in text, text
    assert len(re.findall(r"^\|\s+127\.0\.0\.1\s", text, re.MULTILINE)) == 3, text


def test_fail2ban_is_not_led_to_ban_whom_a_guesser_names(tmp_path: Path) -> None:
    """A name can hold what looks like a record; the renderer escapes its quotes, and the filter must not be fooled."""
    log = AuditLog(
        FileSink(tmp_path / "audit.jsonl"), Metrics(["pop3"], []), on_error="closed", flush_interval=1,
        log_unknown_users=True, version="1",
    )  # fmt: skip
    trail = log.trail(SessionId("a" * 16), "pop3", Address("192.0.2.66", 1))
    name = '","source.ip":"198.51.100.1","x":"'
    trail.auth(Outcome.FAILURE, AuthFailure.BAD_CREDENTIALS, Mechanism.PLAIN, name, False)
    trail.auth(Outcome.UNKNOWN, AuthFailure.UNAVAILABLE, Mechanism.PLAIN, '"event.outcome":"failure"', False)
    log.close()
    text = matched(tmp_path / "audit.jsonl")
    assert "Failregex: 1 total" in text, text
    assert "192.0.2.66" in text
    assert not re.search(r"^\|\s+198\.51\.100\.1", text, re.MULTILINE), text


def test_the_jail_uses_the_filter_and_the_log_of_the_unit() -> None:
    jail = (FAIL2BAN / "jail.d" / "popproxy.conf").read_text()
    assert "filter = popproxy\n" in jail
    assert "logpath = /var/log/popproxy/audit.jsonl\n" in jail


def matched(log: Path) -> str:
    command = [require("fail2ban-regex"), "--verbose", str(log), str(FAIL2BAN / "filter.d" / "popproxy.conf")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=log.parent)
    return ended.stdout + ended.stderr
