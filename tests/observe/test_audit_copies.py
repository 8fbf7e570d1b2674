"""Copies of the audit log elsewhere, at real servers: every record, octet for octet, also after they were away."""

from __future__ import annotations

import asyncio
import fcntl
import os
import ssl
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from popproxy.net.tls import client_context
from popproxy.observe.audit import AuditLog, FileSink
from popproxy.observe.audit_copy import Copy, JournalCopy, StdoutCopy
from popproxy.observe.audit_keys import SigningKey, generate, read_public
from popproxy.observe.audit_syslog import SyslogCopy
from popproxy.observe.audit_verify import Verifier
from popproxy.observe.metrics import Metrics
from popproxy.types import Address, Secret
from tests.observe.conftest import new_trail
from tests.peers.canaries import canary
from tests.peers.certs import Authority
from tests.peers.line_client import LineClient
from tests.peers.process import wait_until
from tests.peers.proxy import StartProxy, settings
from tests.peers.rsyslog import journald, rsyslog
from tests.peers.scripted import ScriptedBackend, in_thread

KEY = SigningKey(Secret(generate()))


def make_log(path: Path, metrics: Metrics, *copies: Copy) -> AuditLog:
    log = AuditLog(
        FileSink(path), metrics, on_error="closed", flush_interval=0.01, log_unknown_users=False, version="1",
        signer=KEY, copies=copies,
    )  # fmt: skip
    log.start()
    return log


def some(log: AuditLog, count: int) -> None:
    for number in range(count):
        new_trail(log).dele(number, b"u%d" % number)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.real
async def test_syslog_by_tls_and_the_journal_have_what_the_file_has(tmp_path: Path, metrics: Metrics) -> None:
    authority = Authority(tmp_path)
    with rsyslog(authority.server(), authority.ca) as server, journald() as journal:
        tls = client_context(ca=authority.ca)
        syslog = SyslogCopy(metrics, Address("127.0.0.1", server.port), tls, "localhost")
        log = make_log(tmp_path / "audit.jsonl", metrics, syslog, JournalCopy(metrics, journal.socket))
        some(log, 300)
        new_trail(log).update("committed", [(number, b"u" * 60) for number in range(500)])  # a long record
        log.close()
        await log.settle()
        expected = (tmp_path / "audit.jsonl").read_bytes().splitlines()
        assert len(expected) == 303
        await until(lambda: len(server.lines()) >= 303)
        assert server.lines() == expected
        await until(lambda: len(journal.lines("popproxy-audit")) >= 303)
        assert journal.lines("popproxy-audit") == expected
        for sink in ("file", "syslog", "journald"):
            assert metrics.audit_records[sink, "written"] == 303


@pytest.mark.real
async def test_a_record_that_no_datagram_holds_gets_into_the_journal_and_so_do_later_ones(
    tmp_path: Path, metrics: Metrics
) -> None:
    with journald() as journal:
        log = make_log(tmp_path / "audit.jsonl", metrics, JournalCopy(metrics, journal.socket))
        new_trail(log).update("committed", [(number, b"\x01" * 250) for number in range(500)])
        some(log, 3)
        log.close()
        await log.settle()
        expected = (tmp_path / "audit.jsonl").read_bytes().splitlines()
        assert max(map(len, expected)) > 500_000
        await until(lambda: len(journal.lines("popproxy-audit")) >= 6)
        assert journal.lines("popproxy-audit") == expected


@pytest.mark.real
async def test_a_syslog_server_that_was_away_gets_what_it_missed(tmp_path: Path, metrics: Metrics) -> None:
    with rsyslog() as server:
        log = make_log(
            tmp_path / "audit.jsonl", metrics, SyslogCopy(metrics, Address("127.0.0.1", server.port), None)
        )  # fmt: skip
        some(log, 50)
        await until(lambda: len(server.lines()) >= 51)
        await asyncio.to_thread(server.stop)
        some(log, 50)
        await until(lambda: metrics.audit_write_failures["syslog"] > 0)
        await log.commit()  # nobody waits for it
        await asyncio.to_thread(server.start)
        await until(lambda: len(server.lines()) >= 101)
        log.close()
        await log.settle()
        await until(lambda: b'"audit_stop"' in server.log.read_bytes())  # some may have come twice
        public = tmp_path / "key.pub"
        public.write_bytes(KEY.public_pem())
        verifier = Verifier(read_public([public]), copy=True)
        found = [finding for number, line in enumerate(server.log.read_bytes().splitlines(keepends=True), 1)
                 for finding in verifier.take(server.log, number, line)]  # fmt: skip
        assert [*found, *verifier.finish()] == []
        assert verifier.records == 102


async def test_no_more_is_on_its_way_to_a_server_that_does_not_read_than_could_be_sent_again(
    tmp_path: Path, metrics: Metrics
) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        connected.set()

    connected = asyncio.Event()
    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    copy = SyslogCopy(metrics, Address("127.0.0.1", server.sockets[0].getsockname()[1]), None)
    log = make_log(tmp_path / "audit.jsonl", metrics, copy)
    await asyncio.wait_for(connected.wait(), 20)
    sent = -1.0
    while sent != metrics.audit_records["syslog", "written"] or not copy.lines:
        sent = metrics.audit_records["syslog", "written"]
        for _ in range(50):
            copy.take(b"x" * 60_000 + b"\n", 1)
            copy.octets = 0  # as many as it takes to fill the way
        await asyncio.sleep(0.2)
    transport = copy._transport
    assert transport is not None
    octets = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    on_its_way = int.from_bytes(octets, sys.byteorder) + transport.get_write_buffer_size()
    assert 0 < on_its_way <= copy._window_octets
    transport.abort()
    server.close()
    log.close()
    copy.close()


@pytest.mark.real
async def test_an_impostor_gets_nothing(tmp_path: Path, metrics: Metrics) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    with rsyslog(authority.server(), authority.ca) as server:
        tls: ssl.SSLContext = client_context(ca=other.ca)
        log = make_log(
            tmp_path / "audit.jsonl", metrics,
            SyslogCopy(metrics, Address("127.0.0.1", server.port), tls, "localhost"),
        )  # fmt: skip
        await until(lambda: metrics.audit_write_failures["syslog"] > 0)
        assert server.lines() == []
        log.close()
        await log.settle()


async def test_what_a_slow_copy_cannot_hold_is_named_by_a_gap_with_its_name(tmp_path: Path, metrics: Metrics) -> None:
    read, write = os.pipe()
    copy = StdoutCopy(metrics, write)
    copy._limit = 100_000
    log = make_log(tmp_path / "audit.jsonl", metrics, copy)
    some(log, 2000)
    await log.commit()  # the file has all of them, whatever the copy does
    await until(lambda: metrics.audit_records["stdout", "dropped"] > 0)
    octets = bytearray()
    os.set_blocking(read, False)

    def gap() -> bool:
        try:
            octets.extend(os.read(read, 1 << 20))
        except BlockingIOError:
            new_trail(log).reset(1)  # the next record brings the gap with it
        return b'"audit_gap"' in octets

    await until(gap)
    log.close()
    await log.settle()
    octets.extend(os.read(read, 1 << 20))
    os.close(read)
    os.close(write)
    verifier = Verifier(None, copy=True)
    found = [finding for number, line in enumerate(bytes(octets).splitlines(keepends=True), 1)
             for finding in verifier.take(tmp_path, number, line)]  # fmt: skip
    assert {finding.kind for finding in found} == {"gap"}
    whole = Verifier(None)
    intact = [finding for number, line in enumerate((tmp_path / "audit.jsonl").open("rb"), 1)
              for finding in whole.take(tmp_path, number, line)]  # fmt: skip
    assert intact == []
    assert b'"popproxy.audit.sink":"stdout"' in octets
    there = set(bytes(octets).splitlines(keepends=True))
    cut = Verifier(None)  # what the copy has lost was removed from the file, too
    removed = [finding for number, line in enumerate((tmp_path / "audit.jsonl").open("rb"), 1) if line in there
               for finding in cut.take(tmp_path, number, line)]  # fmt: skip
    assert {finding.kind for finding in removed} == {"removed"}


@pytest.mark.real
def test_popproxy_sends_all_it_has_before_it_ends(start_proxy: StartProxy) -> None:
    with in_thread(ScriptedBackend()) as backend, rsyslog() as server:
        syslog = {"server": f"127.0.0.1:{server.port}", "tls": False}
        proxy = start_proxy(settings(backend.address, audit={"syslog": syslog}))
        with LineClient(proxy.port()) as client:
            client.line()
            client.command("USER alice")
            assert client.command(f"PASS {canary()}").startswith(b"+OK")
            client.command("QUIT")
        proxy.stop()
        written = Path(proxy.configuration["audit"]["file"]).read_bytes().splitlines()
        wait_until(lambda: len(server.lines()) >= len(written), "the last record")
        assert server.lines() == written
        assert b'"audit_stop"' in written[-1]
