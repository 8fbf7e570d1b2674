"""Who changes the log is found, with the place; what a crash or a full disk leaves is told from that."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from popproxy.observe import audit_verify
from popproxy.observe.audit import AuditLog
from popproxy.observe.audit_file import FileSink
from popproxy.observe.audit_files import LogFile, held, lines, log_files
from popproxy.observe.audit_findings import NOTES, TAMPERING, Finding, Kind
from popproxy.observe.audit_keys import PublicKeys, SigningKey, generate, read_public
from popproxy.observe.audit_verify import Verifier
from popproxy.observe.metrics import Metrics
from popproxy.types import Outcome, Secret
from tests.observe.conftest import new_trail

KEY = SigningKey(Secret(generate()))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> PublicKeys:
    path = tmp_path_factory.mktemp("keys") / "audit.key.pub"
    path.write_bytes(KEY.public_pem())
    return read_public([path])


def open_log(path: Path, key: SigningKey | None = KEY, **options: Any) -> AuditLog:
    log = AuditLog(
        FileSink(path, **options), Metrics(["pop3"], []), on_error="closed", flush_interval=60,
        log_unknown_users=False, version="0", signer=key, checkpoint_records=20,
    )  # fmt: skip
    log.start()
    return log


def some(log: AuditLog, count: int) -> None:
    for number in range(count):
        new_trail(log).dele(number, b"u%d" % number)
        log.flush()


def kill(log: AuditLog) -> None:
    """What SIGKILL leaves of it."""
    log._sink.close()


def verify(
    files: Sequence[Path | LogFile], keys: PublicKeys | None, *, copy: bool = False,
    running: frozenset[str] = frozenset(),
) -> list[Finding]:  # fmt: skip
    verifier = Verifier(keys, copy=copy)
    found: list[Finding] = []
    paths = [file.path if isinstance(file, LogFile) else file for file in files]
    for path, file in zip(paths, files, strict=True):
        for number, line in enumerate(lines(file), 1):
            found += verifier.take(path, number, line)
    found += verifier.finish(running)
    return sorted(found, key=lambda finding: (paths.index(finding.place.path), finding.place.line))


def kinds(findings: list[Finding]) -> list[Kind]:
    return [finding.kind for finding in findings]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files: a segment that ends; two that are written side by side and go on in the second file."""
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    first = open_log(path)
    some(first, 30)
    first.close()
    one, two = open_log(path), open_log(path)
    for _ in range(10):
        some(one, 2)
        some(two, 3)
    path.rename(path.with_name("audit.jsonl.1"))
    for log in (one, two):
        log.reopen()
    for _ in range(15):
        some(two, 2)
        some(one, 3)
    two.close()
    one.close()
    return [path.with_name("audit.jsonl.1"), path]


def test_an_intact_log_has_no_findings(base: list[Path], keys: PublicKeys, tmp_path: Path) -> None:
    assert verify(base, keys) == []
    compressed = tmp_path / "audit.jsonl.2.gz"
    compressed.write_bytes(gzip.compress(base[0].read_bytes()))
    assert verify([compressed, base[1]], keys) == []
    assert kinds(verify(base[1:], keys)) == [Kind.EARLIER, Kind.EARLIER]


# ---- tampering ----

Lines = list[bytes]


@dataclass(frozen=True)
class Tamper:
    """What was done to a file, and the lines of the result, counted from 0, of which one must be named first."""

    lines: Lines
    first: int
    last: int


def segment(line: bytes) -> str:
    try:
        return str(json.loads(line).get("chain.segment"))
    except ValueError:
        return ""


def following(rest: Lines, start: int, segments: set[str]) -> int:
    """The next line from `start` on that belongs to one of these segments."""
    return next((n for n in range(start, len(rest)) if segment(rest[n]) in segments), len(rest))


def flip_a_bit(old: Lines, dice: random.Random) -> Tamper:
    number = dice.randrange(len(old))
    line = bytearray(old[number])
    line[dice.randrange(len(line))] ^= 1 << dice.randrange(8)
    new = b"".join([*old[:number], bytes(line), *old[number + 1 :]]).splitlines(keepends=True)
    new = [part for whole in new for part in whole.splitlines(keepends=True)]
    return Tamper(new, number, following(new, number + 1, {segment(old[number])}))


def delete(old: Lines, dice: random.Random) -> Tamper:
    start = dice.randrange(len(old) - 1)
    end = min(len(old) - 1, start + dice.choice((1, 1, 2, 10)))
    new = old[:start] + old[end:]
    gone = {segment(line) for line in old[start:end]}
    return Tamper(new, start, following(new, start, gone))


def swap(old: Lines, dice: random.Random) -> Tamper:
    while True:
        one, other = sorted(dice.sample(range(len(old)), 2))
        between = {segment(line) for line in old[one + 1 : other + 1]}
        if (
            segment(old[one]) in between
        ):  # else only the interleaving of two processes changes, which nobody vouches for
            break
    new = list(old)
    new[one], new[other] = old[other], old[one]
    return Tamper(new, one, other + 1)


def insert(old: Lines, dice: random.Random) -> Tamper:
    place = dice.randrange(1, len(old))
    line = dice.choice(old)
    if dice.random() < 0.5:
        line = line.replace(b'"user.name"', b'"user.nane"').replace(b"dele", b"retr")
    return Tamper([*old[:place], line, *old[place:]], place, following(old, place, {segment(line)}) + 1)


def truncate(old: Lines, dice: random.Random) -> Tamper:
    """Before a checkpoint, or anywhere, perhaps in a line."""
    signed = [n for n, line in enumerate(old) if b'"audit_checkpoint"' in line]
    place = dice.choice([*signed, dice.randrange(3, len(old))])
    new = old[:place]
    if dice.random() < 0.5:
        new.append(old[place][: dice.randrange(1, len(old[place]))])
    ends = [max((n for n, line in enumerate(new) if segment(line) == name), default=0)
            for name in {segment(line) for line in old[place:]}]  # fmt: skip
    return Tamper(new, min(ends), place)


TAMPERS: tuple[Callable[[Lines, random.Random], Tamper], ...] = (flip_a_bit, delete, swap, insert, truncate)


def tampered(base: list[Path], directory: Path, keys: PublicKeys, seeds: range) -> Iterator[str]:
    """What is not found, or not at its place."""
    intact = [path.read_bytes().splitlines(keepends=True) for path in base]
    files = [directory / path.name for path in base]
    for seed in seeds:
        dice = random.Random(seed)
        number = 1 if (act := TAMPERS[seed % len(TAMPERS)]) is truncate else dice.randrange(len(files))
        tamper = act(intact[number], dice)
        for n, path in enumerate(files):
            path.write_bytes(b"".join(tamper.lines if n == number else intact[n]))
        found = [finding for finding in verify(files, keys) if finding.kind not in NOTES]
        what = f"seed {seed}: {act.__name__} in lines {tamper.first + 1} to {tamper.last + 1} of {files[number].name}"
        if not found:
            yield f"{what}: not found"
            continue
        first = next((finding for finding in found if finding.kind in TAMPERING), found[0])
        if first.place.path != files[number] or not tamper.first <= first.place.line - 1 <= tamper.last:
            yield f"{what}: said {first}"
        if act is not truncate and first.kind not in TAMPERING:
            yield f"{what}: not called tampering: {first}"


def test_random_tampering_is_found_and_located(base: list[Path], keys: PublicKeys, tmp_path: Path) -> None:
    assert list(tampered(base, tmp_path, keys, range(50))) == []


@pytest.mark.long
def test_a_thousand_random_tampers_are_all_found_and_located(
    base: list[Path], keys: PublicKeys, tmp_path: Path
) -> None:
    assert list(tampered(base, tmp_path, keys, range(1000, 2000)))[:12] == []


# ---- what is no tampering ----


def test_a_process_that_was_killed_is_told_from_tampering(keys: PublicKeys, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    killed = open_log(path)
    some(killed, 5)
    kill(killed)
    (alone,) = verify([path], keys)
    assert (alone.kind, alone.place.line, alone.sequence) == (Kind.NO_END, 6, 6)
    assert "its last 5 records are not signed" in alone.text
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    assert kinds(verify([path], keys)) == [Kind.NO_END, Kind.TORN]
    log = open_log(path)
    log.close()
    found = verify([path], keys)
    assert kinds(found) == [Kind.KILLED, Kind.MENDED]
    assert "audit.jsonl:7 vouches for its end" in found[0].text
    assert "100 octets" in found[1].text


def test_who_says_that_a_worker_died_is_quoted_at_the_end_of_its_segment(keys: PublicKeys, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    killed, other = open_log(path), open_log(path)
    some(killed, 2)
    kill(killed)
    fields = {"popproxy.lost.segment": killed.segment, "popproxy.lost.sessions": 7}
    other.event("worker_lost", Outcome.FAILURE, **fields)
    other.close()
    (found,) = verify([path], keys)
    assert found.segment == killed.segment
    assert "its worker died with 7 sessions, says" in found.text
    assert "audit.jsonl:5" in found.text


def test_what_the_next_process_has_seen_cannot_be_cut_off(keys: PublicKeys, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    killed = open_log(path)
    some(killed, 5)
    kill(killed)
    open_log(path).close()
    rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rest[:4] + rest[6:]))
    (found,) = verify([path], keys)
    assert (found.kind, found.place.line, found.sequence) == (Kind.CUT, 5, 4)
    path.write_bytes(b"".join(rest[6:]))
    assert kinds(verify([path], keys)) == [Kind.REMOVED]


def test_a_process_that_is_killed_between_two_files_is_vouched_for(keys: PublicKeys, tmp_path: Path) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    killed = open_log(path)
    some(killed, 5)
    kill(killed)
    path.rename(old)
    open_log(path).close()
    assert kinds(verify([old, path], keys)) == [Kind.KILLED]
    assert verify([path], keys) == []


def test_a_gap_is_what_popproxy_itself_says_and_no_more(keys: PublicKeys, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = open_log(path)
    some(log, 1)
    log._buffer._limit = 4000
    write, log._sink.write = log._sink.write, full  # type: ignore[method-assign]
    for number in range(20):
        new_trail(log).dele(number, None)
    log._sink.write = write  # type: ignore[method-assign]
    log.flush()
    log.close()
    (found,) = verify([path], keys)
    assert found.kind is Kind.GAP
    assert f"numbers {found.place.line} to {found.sequence - 1} could not be written" in found.text
    rest = path.read_bytes().splitlines(keepends=True)
    gap = found.place.line - 1
    path.write_bytes(b"".join(rest[: gap - 1] + rest[gap:]))  # one more is gone, before the gap
    assert kinds(verify([path], keys)) == [Kind.REMOVED]


def full(data: memoryview) -> int:
    raise OSError(errno.ENOSPC, "full")


def test_missing_files_are_told_from_missing_records(keys: PublicKeys, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = open_log(path)
    names = []
    for number in range(3):
        some(log, 3)
        names.append(path.rename(tmp_path / f"audit.jsonl.{3 - number}"))
        log.reopen()
    log.close()
    assert verify([*names, path], keys) == []
    (found,) = verify([names[0], names[2], path], keys)
    assert (found.kind, found.place.path, found.place.line) == (Kind.MISSING_FILE, names[2], 1)
    other = open_log(tmp_path / "other.jsonl")
    other.close()
    found = verify([tmp_path / "other.jsonl", names[1], names[2], path], keys)[0]
    assert (found.kind, found.place.path) == (Kind.MISSING_FILE, names[1])


def test_signatures_are_asked_for_only_with_keys_and_must_be_known_ones(keys: PublicKeys, tmp_path: Path) -> None:
    unsigned, path = tmp_path / "unsigned.jsonl", tmp_path / "audit.jsonl"
    log = open_log(unsigned, None)
    some(log, 30)
    log.close()
    assert verify([unsigned], None) == []
    assert kinds(verify([unsigned], keys)) == [Kind.UNSIGNED]
    other = SigningKey(Secret(generate()))
    log = open_log(path, other)
    log.close()
    assert kinds(verify([path], keys)) == [Kind.FORGED] * 2
    both = tmp_path / "both.pub"
    both.write_bytes(KEY.public_pem() + other.public_pem())
    log = open_log(path)
    log.close()
    assert verify([path], read_public([both])) == []


def test_whoever_writes_the_whole_chain_anew_lacks_the_key(base: list[Path], keys: PublicKeys, tmp_path: Path) -> None:
    from popproxy.observe.audit_chain import Chain, read_link

    chain, new = Chain(), []
    chain.segment = segment(base[0].read_bytes().splitlines()[0])
    chain._link = chain._link[:18] + chain.segment + chain._link[34:]
    for line in base[0].read_bytes().splitlines(keepends=True):
        link = read_link(line)
        assert link is not None
        if link.segment == chain.segment and link.sequence != 7:
            text = line.decode()
            fields = text[text.index('"event.action"') : text.index(',"chain.segment"')]
            new.append(chain.seal(fields))
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(new))
    assert verify([path], None) == []
    assert kinds(verify([path], keys)) == [Kind.UNSIGNED]


def test_a_copy_may_repeat_records_and_have_text_before_them(
    base: list[Path], keys: PublicKeys, tmp_path: Path
) -> None:
    path = tmp_path / "copy.log"
    old = base[0].read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(b"<110>1 - host popproxy - - - " + line for line in [*old[:20], *old[10:], *old[-3:]]))
    found = verify([path], keys, copy=True)
    assert {finding.kind for finding in found} <= {Kind.NO_END, Kind.KILLED}  # they go on in the second file
    path.write_bytes(b"".join([*old[:20], *old[21:]]))
    assert Kind.REMOVED in kinds(verify([path], keys, copy=True))


def test_many_processes_write_one_log_and_rotate_it(keys: PublicKeys, tmp_path: Path) -> None:
    """Side by side, as workers do: no record is torn or lost, and all go on in the new files."""
    import multiprocessing

    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_much, args=(path,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    files = log_files(path)
    assert len(files) > 1
    assert verify(files, keys) == []
    records = [json.loads(line) for file in files for line in lines(file)]
    assert sum(record["event.action"] == "dele" for record in records) == 4 * 400


def test_rotation_while_the_log_is_read_is_not_taken_for_tampering(keys: PublicKeys, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    busy, idle = open_log(path), open_log(path)
    some(busy, 5)
    some(idle, 5)
    rotations = 0

    def rotate() -> None:
        nonlocal rotations
        rotations += 1
        path.rename(tmp_path / f"audit.jsonl-20261123-00000{rotations}")
        busy.reopen()
        some(busy, 5)

    def found() -> list[Path]:
        files = log_files(path)
        if rotations < 2:  # after the look, before the files are opened
            rotate()
        return files

    with held(found, path) as files:
        assert [file.path.name[-1] for file in files] == ["1", "2", "l"]
        rotate()
        older = path.with_name("audit.jsonl-20261123-000001")
        older.with_name(f"{older.name}.gz").write_bytes(gzip.compress(older.read_bytes()))
        older.unlink()
        idle._sink._look_again = 0  # type: ignore[attr-defined]
        some(idle, 5)  # not to the file that it has begun in, which is gone
        running = frozenset({busy.segment, idle.segment})
        assert kinds(verify(files, keys, running=running)) == [Kind.RUNNING] * 2, "others vouch for the idle one, too"
        assert sum(1 for file in files for _ in lines(file)) == 13 + 7 + 6
    for log in (busy, idle):
        log.close()
    with held(lambda: log_files(path), path) as files:
        assert verify(files, keys) == []


def test_a_copy_with_other_times_of_change_is_read_in_its_order(
    base: list[Path], keys: PublicKeys, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    first, second = (file.read_bytes() for file in base)
    (tmp_path / "audit.jsonl.2.gz").write_bytes(gzip.compress(first))
    (tmp_path / "audit.jsonl.1").write_bytes(second)
    path.touch()
    os.utime(tmp_path / "audit.jsonl.1", (0, 0))
    with held(lambda: log_files(path), path) as files:
        assert verify(files, keys) == []


def write_much(path: Path) -> None:
    log = open_log(path, rotate_size=1 << 17)
    for _ in range(10):
        some(log, 40)
        log._sink._look_again = 0  # type: ignore[attr-defined]
    log.close()


def test_what_anybody_can_write_takes_bounded_memory(
    base: list[Path], keys: PublicKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_verify, "SEGMENTS", 10)
    alone = b'{"@timestamp":"2026-11-23T08:07:09.971327Z","event.sequence":1,"event.action":"audit_start",'
    alone += b'"chain.segment":"%016x","chain.previous":"' + b"0" * 64 + b'","chain.key":"%016x",'
    alone += b'"chain.signature":"' + b"A" * 86 + b'=="}\n'
    path = tmp_path / "audit.jsonl"
    path.write_bytes(base[0].read_bytes() + b"".join(alone % (number, number) for number in range(100)))
    verifier = Verifier(keys)
    found = [one for number, line in enumerate(lines(path), 1) for one in verifier.take(path, number, line)]
    assert kinds(found).count(Kind.FOREIGN) == 93
    assert (len(verifier.segments), verifier.used) == (10, {KEY.key_id})
    ended = [segment for segment in verifier.segments.values() if segment.ended]
    assert all(len(segment.recent) <= audit_verify.LATE for segment in ended)


@pytest.mark.parametrize(
    "members",
    ['"x":' + "[" * 100_000 + "]" * 100_000, '"observer.hostname":[],"process.pid":{}'],
    ids=["deep", "types"],
)
def test_a_line_made_to_break_the_tool_does_not_keep_it_from_the_rest(
    base: list[Path], keys: PublicKeys, tmp_path: Path, members: str
) -> None:
    path = tmp_path / "audit.jsonl"
    start = f'{{"@timestamp":"2026-11-23T08:07:09.971327Z","event.sequence":1,"event.action":"audit_start",{members}'
    end = f',"chain.segment":"{"a" * 16}","chain.previous":"{"0" * 64}"}}\n'
    rest = base[0].read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([(start + end).encode(), *rest[:5], *rest[6:]]))
    found = kinds(verify([path], keys))
    assert Kind.UNSIGNED in found
    assert Kind.REMOVED in found
