"""When records are written, who waits for them, and what happens if the disk or the reader fails."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from popproxy.errors import AuditError
from popproxy.observe.audit import FileSink, StdoutSink
from popproxy.observe.metrics import Metrics
from popproxy.types import Outcome
from tests.observe.conftest import MakeLog, new_trail, read_records

SOON = 60.0  # seconds; what is waited for comes in milliseconds


class WatchedSink(FileSink):
    """A real file that remembers each write."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.writes: list[int] = []

    def write(self, data: memoryview) -> int:
        self.writes.append(super().write(data))
        return self.writes[-1]


def sequences(path: Path) -> list[int]:
    return [record["event.sequence"] for record in read_records(path)]


@contextlib.contextmanager
def file_size_limit(octets: int) -> Iterator[None]:
    """Writes beyond this size are cut short or fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(directory: Path) -> Path:
    """Use up the disk, whole pages at a time."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    assert os.statvfs(directory).f_bavail == 0
    return filler


async def test_commit_returns_only_after_the_record_is_written(make_log: MakeLog, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = make_log(FileSink(path))
    new_trail(log).dele(1, None)
    waiting = asyncio.ensure_future(log.commit())
    assert path.stat().st_size == 0
    await waiting
    assert [record["event.action"] for record in read_records(path)] == ["dele"]


async def test_all_that_wait_in_one_turn_share_one_write(make_log: MakeLog, tmp_path: Path) -> None:
    sink = WatchedSink(tmp_path / "audit.log")
    log = make_log(sink)
    called: list[bool] = []

    async def login(number: int) -> None:
        new_trail(log, f"S{number}").dele(number, None)
        await log.commit()
        assert f'"S{number}"' in (tmp_path / "audit.log").read_text()

    async def logout() -> None:
        new_trail(log).reset(1)
        log.commit_then(called.append)

    await asyncio.gather(logout(), *map(login, range(50)))
    assert called == [True]
    assert len(sink.writes) == 1
    assert sequences(tmp_path / "audit.log") == list(range(1, 52))


async def test_commit_then_calls_back_exactly_once(make_log: MakeLog) -> None:
    log = make_log()
    called: list[bool] = []
    log.commit_then(called.append)
    assert called == [True]  # nothing was pending
    new_trail(log).reset(1)
    log.commit_then(called.append)
    assert called == [True]
    log.flush()
    await asyncio.sleep(0.01)
    log.flush()
    assert called == [True, True]


async def test_a_callback_that_fails_does_not_keep_the_others_waiting(make_log: MakeLog) -> None:
    def fail(_written: bool) -> None:
        raise RuntimeError("a bug in a callback")

    log = make_log()
    called: list[bool] = []
    new_trail(log).reset(1)
    log.commit_then(fail)
    log.commit_then(called.append)
    log.flush()
    assert called == [True]


async def test_records_nobody_waits_for_are_written_by_the_timer(make_log: MakeLog, tmp_path: Path) -> None:
    sink = WatchedSink(tmp_path / "audit.log")
    log = make_log(sink, flush_interval=0.02)
    for number in range(10):
        new_trail(log).dele(number, None)
    assert not sink.writes
    async with asyncio.timeout(SOON):
        while not sink.writes:
            await asyncio.sleep(0.005)
    assert len(read_records(tmp_path / "audit.log")) == 10
    assert len(sink.writes) == 1


async def test_a_full_batch_does_not_wait_for_the_timer(make_log: MakeLog, tmp_path: Path) -> None:
    log = make_log()
    for number in range(1000):
        new_trail(log).dele(number, None)
    async with asyncio.timeout(SOON):
        while (tmp_path / "audit.log").stat().st_size == 0:
            await asyncio.sleep(0.005)


def test_without_a_loop_records_are_written_at_once(make_log: MakeLog, tmp_path: Path) -> None:
    log = make_log(version="1.2.3")
    log.start()
    (record,) = read_records(tmp_path / "audit.log")
    assert record["event.action"] == "audit_start"
    assert record["observer.version"] == "1.2.3"
    assert record["process.pid"] == os.getpid()


async def test_close_writes_what_is_left_and_says_so(make_log: MakeLog, tmp_path: Path) -> None:
    log = make_log()
    new_trail(log).dele(1, b"u1")
    log.close()
    log.close()
    assert [record["event.action"] for record in read_records(tmp_path / "audit.log")] == ["dele", "audit_stop"]


@pytest.mark.parametrize("policy", ["closed", "open"])
async def test_a_failing_disk_is_an_error_only_where_the_log_is_closed(
    policy: str, make_log: MakeLog, metrics: Metrics
) -> None:
    log = make_log(FileSink(Path("/dev/full")), on_error=policy)
    called: list[bool] = []
    new_trail(log).dele(1, None)
    log.commit_then(called.append)
    if policy == "closed":
        with pytest.raises(AuditError):
            await log.commit()
    else:
        await log.commit()
    assert called == [policy == "open"]
    assert not log.healthy
    assert metrics.audit_healthy == 0
    assert metrics.audit_write_failures["file"] == 1
    assert metrics.audit_records["file", "written"] == 0


async def test_a_full_disk_tears_no_record_and_loses_none(make_log: MakeLog, metrics: Metrics, tiny_disk: Path) -> None:
    path = tiny_disk / "audit.log"
    log = make_log(FileSink(path))
    new_trail(log).dele(1, b"u1")
    await log.commit()
    filler = fill(tiny_disk)
    for number in range(2, 100):  # more than what is left of the file's page
        new_trail(log).dele(number, b"u%d" % number)
    with pytest.raises(AuditError):
        await log.commit()
    with pytest.raises(AuditError):
        await log.commit()
    assert 0 < len(read_records(path)) < 99  # what the kernel took of a record is cut back: the case under test
    assert (log.healthy, metrics.audit_healthy) == (False, 0)
    filler.unlink()
    await log.commit()
    assert (log.healthy, metrics.audit_healthy) == (True, 1)
    assert metrics.audit_write_failures["file"] == 2
    assert metrics.audit_records["file", "written"] == 99
    assert [record["pop3.message_number"] for record in read_records(path)] == list(range(1, 100))
    assert sequences(path) == list(range(1, 100))


async def test_records_beyond_the_buffer_are_dropped_and_named_by_a_gap(
    make_log: MakeLog, metrics: Metrics, tiny_disk: Path
) -> None:
    path = tiny_disk / "audit.log"
    log = make_log(FileSink(path), buffer_octets=8192)
    filler = fill(tiny_disk)
    for number in range(1, 101):
        new_trail(log).dele(number, None)
    with pytest.raises(AuditError):
        await log.commit()
    dropped = metrics.audit_records["file", "dropped"]
    assert 0 < dropped < 100
    filler.unlink()
    with pytest.raises(AuditError):  # the disk works again, but records of ours are among the lost
        await log.commit()
    new_trail(log).dele(101, None)
    await log.commit()
    *kept, gap, last = read_records(path)
    assert [record["pop3.message_number"] for record in kept] == list(range(1, 101 - int(dropped)))
    assert gap["event.action"] == "audit_gap"
    assert gap["popproxy.audit.lost"] == dropped
    assert (gap["popproxy.audit.lost_from"], gap["popproxy.audit.lost_to"]) == (len(kept) + 1, 100)
    assert (gap["event.sequence"], last["event.sequence"]) == (101, 102)
    assert last["pop3.message_number"] == 101


async def test_a_record_larger_than_the_buffer_is_named_by_a_gap_at_once(make_log: MakeLog, tmp_path: Path) -> None:
    log = make_log(buffer_octets=4096)
    new_trail(log).update("committed", [(number, b"u" * 70) for number in range(400)])
    new_trail(log).reset(1)
    log.flush()
    gap, reset = read_records(tmp_path / "audit.log")
    assert (gap["popproxy.audit.lost_from"], gap["popproxy.audit.lost_to"], gap["event.sequence"]) == (1, 1, 2)
    assert reset["event.action"] == "rset"


async def test_the_timer_writes_again_once_the_disk_has_room(
    make_log: MakeLog, metrics: Metrics, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("popproxy.observe.audit._RETRY_INTERVAL", 0.02)
    path = tiny_disk / "audit.log"
    log = make_log(FileSink(path), flush_interval=0.02)
    filler = fill(tiny_disk)
    for number in range(100):
        new_trail(log).dele(number, None)
    async with asyncio.timeout(SOON):
        while not metrics.audit_write_failures["file"]:
            await asyncio.sleep(0.005)
        filler.unlink()
        while metrics.audit_records["file", "written"] < 100:
            await asyncio.sleep(0.005)
    assert log.healthy
    assert len(read_records(path)) == 100


def test_rotation_in_the_middle_of_a_record_leaves_whole_records_in_both_files(
    make_log: MakeLog, tmp_path: Path
) -> None:
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    log = make_log()
    with file_size_limit(5000):
        for number in range(1, 21):
            new_trail(log).dele(number, None)
        assert 4000 < path.stat().st_size < 5000
        path.rename(old)
        log.reopen()
    records = read_records(old) + read_records(path)
    assert [record["event.sequence"] for record in records] == list(range(1, 23))
    assert [record["event.action"] for record in records[-2:]] == ["audit_checkpoint", "audit_rotate"]


async def test_rotation_goes_on_in_a_new_file(make_log: MakeLog, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = make_log(FileSink(path))
    new_trail(log).dele(1, None)
    path.rename(tmp_path / "audit.log.1")
    log.reopen()
    actions = [record["event.action"] for record in read_records(tmp_path / "audit.log.1")]
    assert actions == ["dele", "audit_checkpoint"]
    assert [record["event.action"] for record in read_records(path)] == ["audit_rotate"]


async def test_a_failed_rotation_goes_on_with_the_old_file(make_log: MakeLog, tmp_path: Path) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    log = make_log(FileSink(directory / "audit.log"))
    directory.rename(tmp_path / "moved")
    with pytest.raises(AuditError, match=r"cannot open the audit file .*audit\.log: No such file"):
        log.reopen()
    new_trail(log).dele(1, None)
    assert log.flush()
    assert [record["event.action"] for record in read_records(tmp_path / "moved" / "audit.log")][-1] == "dele"


def test_a_new_file_is_not_readable_by_everybody_and_an_old_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    FileSink(path).close()
    assert stat.S_IMODE(path.stat().st_mode) & ~0o640 == 0
    path.write_bytes(b"{}\n")
    sink = FileSink(path)
    sink.write(memoryview(b"{}\n"))
    sink.close()
    sink.close()
    assert path.read_bytes() == b"{}\n{}\n"


@pytest.mark.parametrize("half", [1, 10, 200_000])
def test_half_a_line_of_a_killed_process_is_cut_off_and_said(half: int, make_log: MakeLog, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(b'{"event.sequence":1}\n' + b"x" * half)
    make_log(FileSink(path)).start()
    _whole, start, torn = read_records(path)
    assert start["event.action"] == "audit_start"
    assert (torn["event.action"], torn["popproxy.audit.torn"]) == ("audit_torn", half)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"cannot open the audit file /nowhere/audit\.log: No such file or directory"):
        FileSink(Path("/nowhere/audit.log"))


def test_a_limit_on_file_size_tears_no_record(make_log: MakeLog, tmp_path: Path) -> None:
    log = make_log()
    with file_size_limit(5000):
        for number in range(100):
            new_trail(log).dele(number, None)
        assert 4000 < (tmp_path / "audit.log").stat().st_size <= 5000
    assert log.flush()
    assert len(read_records(tmp_path / "audit.log")) == 100


class Reader:
    """Reads the other end of standard output in a thread, from when it is started."""

    def __init__(self, fd: int) -> None:
        self.octets = b""
        self._fd = fd
        self._thread = threading.Thread(target=self._read)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> list[bytes]:
        self._thread.join(SOON)
        os.close(self._fd)
        return self.octets.splitlines()

    def _read(self) -> None:
        while chunk := os.read(self._fd, 65536):
            self.octets += chunk


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_a_slow_reader_of_standard_output_delays_commit_but_not_the_loop(kind: str, make_log: MakeLog) -> None:
    if kind == "pipe":
        read_fd, write_fd = os.pipe()
    else:
        ours, theirs = socket.socketpair()
        read_fd, write_fd = ours.detach(), theirs.detach()
    log = make_log(StdoutSink(write_fd), flush_interval=0.01)
    for number in range(5000):  # far more than a pipe or a socket holds
        new_trail(log).dele(number, None)
    waiting = asyncio.ensure_future(log.commit())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    assert log.healthy
    assert os.get_blocking(write_fd)
    reader = Reader(read_fd)
    reader.start()
    await asyncio.wait_for(waiting, SOON)
    log.close()
    os.close(write_fd)
    assert len(reader.finish()) == 5001


async def test_a_reader_that_takes_nothing_is_a_failure_in_the_end(
    make_log: MakeLog, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("popproxy.observe.audit._STALL_LIMIT", 0.1)
    monkeypatch.setattr("popproxy.observe.audit._CLOSE_LIMIT", 0.1)
    read_fd, write_fd = os.pipe()
    log = make_log(StdoutSink(write_fd), flush_interval=0.01)
    for number in range(5000):
        new_trail(log).dele(number, None)
    with pytest.raises(AuditError):
        await asyncio.wait_for(log.commit(), SOON)
    assert not log.healthy
    log.close()
    assert metrics.audit_records["stdout", "dropped"] + metrics.audit_records["stdout", "written"] == 5001
    os.close(read_fd)
    os.close(write_fd)


async def test_a_reader_that_is_gone_is_a_failure(make_log: MakeLog, metrics: Metrics) -> None:
    read_fd, write_fd = os.pipe()
    log = make_log(StdoutSink(write_fd))
    os.close(read_fd)
    new_trail(log).dele(1, None)
    with pytest.raises(AuditError):
        await log.commit()
    assert metrics.audit_write_failures["stdout"] == 1
    os.close(write_fd)


async def test_a_sink_that_takes_nothing_without_an_error_does_not_hang(make_log: MakeLog, tmp_path: Path) -> None:
    class NothingSink(FileSink):
        def write(self, data: memoryview) -> int:
            return 0

    log = make_log(NothingSink(tmp_path / "audit.log"))
    log.event("audit_start", Outcome.SUCCESS)
    with pytest.raises(AuditError):
        await log.commit()


async def test_short_writes_at_every_length_give_the_same_lines(make_log: MakeLog, tmp_path: Path) -> None:
    class ShortSink(StdoutSink):
        """Takes 1 octet, then 2, then 3 ..., and fails between."""

        size = 0

        def write(self, data: memoryview) -> int:
            self.size += 1
            if self.size % 3 == 0:
                raise OSError(errno.EIO, "between two writes")
            return super().write(data[: self.size])

    with (tmp_path / "audit.log").open("wb") as file:
        log = make_log(ShortSink(file.fileno()))
    for number in range(100):
        new_trail(log).dele(number, None)
        log.flush()
    while not log.flush():
        pass
    assert sequences(tmp_path / "audit.log") == list(range(1, 101))


def test_who_may_read_the_log_cannot_stop_its_writers(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    sink = FileSink(path)
    with path.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_EX)
        assert sink.write(memoryview(b"{}\n")) == 3
    sink.close()
    assert stat.S_IMODE((tmp_path / ".audit.log.lock").stat().st_mode) == 0o600


def test_a_lock_that_cannot_be_had_is_done_without(tmp_path: Path) -> None:
    (tmp_path / ".audit.log.lock").symlink_to(tmp_path / "elsewhere")
    sink = FileSink(tmp_path / "audit.log")
    assert sink.write(memoryview(b"{}\n")) == 3
    sink.close()
    assert not (tmp_path / "elsewhere").exists()
