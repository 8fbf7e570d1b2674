"""``popproxy audit search``, ``follow`` and ``report``: over what popproxy has written, and over damaged logs."""

from __future__ import annotations

import gzip
import ipaddress
import json
import os
import random
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from popproxy.app.audit import open_audit, read_signing_key
from popproxy.cli.audit import _row, _with_its_end
from popproxy.cli.exits import ExitCode
from popproxy.config.loader import load_file
from popproxy.observe import audit_export
from popproxy.observe.audit import AuditLog
from popproxy.observe.audit_export import cef, ecs
from popproxy.observe.audit_file import FileSink
from popproxy.observe.audit_files import follow, lines, log_files
from popproxy.observe.audit_keys import SigningKey
from popproxy.observe.audit_lost import LostSessions
from popproxy.observe.audit_query import NotARecord, Query, parse
from popproxy.observe.audit_render import MAX_RECORD
from popproxy.observe.audit_report import Report
from popproxy.observe.metrics import Metrics
from popproxy.types import Secret
from tests.cli.helpers import PROGRAM, popproxy, write_config
from tests.observe.conftest import new_trail
from tests.peers.process import REPOSITORY, wait_until
from tests.session.rig import running


def record(when: str, action: str, **fields: Any) -> str:
    names = {key.replace("__", "."): value for key, value in fields.items()}
    return json.dumps({"@timestamp": f"{when}.000001Z", "event.action": action, **names}, separators=(",", ":"))


def login(when: str, user: str, address: str, mechanism: str = "USER", tls: str | None = "1.3") -> str:
    more = {} if tls is None else {"tls__version": tls}
    return record(
        when, "login", event__outcome="success", user__name=user, source__ip=address, auth__mechanism=mechanism,
        popproxy__listener="pop3", popproxy__pool="old", destination__address="192.0.2.10",
        destination__port=110, **more,
    )  # fmt: skip


LOG = [
    login("2026-01-01T08:00:00", "alice", "192.0.2.7", tls=None),
    login("2026-01-02T08:00:00", "alice", "192.0.2.8", tls=None),
    login("2026-01-02T09:00:00", "bob", "2001:db8::7", "APOP"),
    login("2026-01-03T08:00:00", "carol", "192.0.2.9"),
    login("2026-01-03T09:00:00", "dave", "192.0.2.9", "KPOP", tls=None),
    record("2026-01-03T10:00:00", "auth", event__outcome="failure", event__reason="bad_credentials",
           user__hash="ab12cd"),
    record("2026-01-04T08:00:00", "dele", event__outcome="success", user__name="bob", pop3__unique_id="u1",
           pop3__message_number=1),
    record("2026-01-04T08:00:01", "update", event__outcome="success", user__name="bob", pop3__deleted_total=1,
           pop3__deleted=[{"number": 1, "unique_id": "u1"}]),
    record("2026-01-04T08:00:02", "login", event__outcome="success", user__name="\u202eevil", source__ip="192.0.2.1"),
]  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Rotated twice, the first compressed; the last line is torn."""
    path = tmp_path / "audit.jsonl"
    (tmp_path / "audit.jsonl.2.gz").write_bytes(gzip.compress(("\n".join(LOG[:2]) + "\n").encode()))
    (tmp_path / "audit.jsonl.1").write_text("\n".join([*LOG[2:5], "not json", ""]))
    path.write_text("\n".join(LOG[5:]) + "\n" + LOG[0][:40])
    (tmp_path / "audit.jsonl.bak").write_text("somebody's own\n")
    for age, name in enumerate(("audit.jsonl", "audit.jsonl.1", "audit.jsonl.2.gz")):
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    return path


def found(log: Path, *arguments: str) -> list[dict[str, Any]]:
    config = write_config(log.parent, audit={"file": str(log)})
    run = popproxy("audit", "search", *arguments, "--json", "-c", str(config))
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_all_files_are_read_in_order_and_what_is_damaged_is_left_out(log: Path) -> None:
    assert [path.name for path in log_files(log)] == ["audit.jsonl.2.gz", "audit.jsonl.1", "audit.jsonl"]
    assert found(log) == [json.loads(line) for line in LOG]
    run = popproxy("audit", "search", "-c", str(log.parent / "popproxy.yaml"))
    assert run.stderr == f"popproxy: {log}.1: 1 line left out: not audit records\n".encode()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--user", "ALICE"], [0, 1]),
        (["--address", "192.0.2.8/31"], [1, 3, 4]),
        (["--address", "2001:db8::/32"], [2]),
        (["--message", "u1"], [6, 7]),
        (["--outcome", "failure"], [5]),
        (["--reason", "bad_credentials", "--action", "auth"], [5]),
        (["--action", "dele", "--action", "update", "--user", "bob"], [6, 7]),
        (["--since", "2026-01-03", "--until", "2026-01-03T09:30"], [3, 4]),
        (["--since", "1h"], []),
        (["--user", "al"], []),
    ],
)
def test_a_search_finds_what_fits_everything(log: Path, arguments: list[str], expected: list[int]) -> None:
    assert found(log, *arguments) == [json.loads(LOG[number]) for number in expected]


def test_a_table_for_people_cannot_steer_their_terminal(log: Path) -> None:
    run = popproxy("audit", "search", str(log))
    lines_ = run.stdout.decode().splitlines()
    assert lines_[0].split() == ["TIME", "USER", "ADDRESS", "ACTION", "OUTCOME", "WHAT"]
    assert lines_[1].split() == ["2026-01-03T10:00:00", "(ab12cd)", "-", "auth", "failure", "bad_credentials"]
    assert "message 1 u1" in lines_[2]
    assert "1 deleted" in lines_[3]
    assert r"\u202eevil" in lines_[4]


def test_the_report_names_who_still_uses_what_should_end(log: Path) -> None:
    config = write_config(log.parent, audit={"file": str(log)})
    result = json.loads(popproxy("audit", "report", "--until", "2026-01-04", "--json", "-c", str(config)).stdout)
    assert result["logins"] == 5
    assert {way: total["users"] for way, total in result["ways"].items()} == {"APOP": 1, "KPOP": 1, "no TLS": 2}
    assert [(use["way"], use["user"], use["logins"]) for use in result["uses"]] == [
        ("APOP", "bob", 1), ("KPOP", "dave", 1), ("no TLS", "dave", 1), ("no TLS", "alice", 2),
    ]  # fmt: skip
    assert result["uses"][-1]["addresses"] == {"192.0.2.7": 1, "192.0.2.8": 1}
    assert result["uses"][-1]["last"] == "2026-01-02T08:00:00.000001Z"
    text = popproxy("audit", "report", "-c", str(config)).stdout.decode()
    assert "no TLS  alice       2       2026-01-02T08:00:00  pop3      192.0.2.7, 192.0.2.8  192.0.2.10:110\n" in text
    text = popproxy("audit", "report", "--since", "2030-01-01", "-c", str(config)).stdout.decode()
    assert text == "0 logins\nnobody uses what should end\n"


ODD: list[Any] = [
    None, True, -1, 10**400, 1.5, "", "\ud800", "\x1b[2J\n|=\\", "9" * 300, [], [None], [[]], {}, {"unique_id": []},
    [{"unique_id": {}, "number": None}], {"a": {"b": [{}]}},
]  # fmt: skip


def test_no_value_of_any_type_stops_a_search_a_report_or_an_export() -> None:
    names = set(re.findall(r'"([a-z0-9_]+\.[a-z0-9_.]+)"', Path(audit_export.__file__).read_text()))
    names |= {name for line in LOG for name in json.loads(line)} | {"message", "user", "event", "a..b", "", "." * 5000}
    assert len(names) > 40
    query = Query(user="alice", network=ipaddress.ip_network("::/0"), message="u1")
    made, lost = Report(), LostSessions()
    dice = random.Random(1)
    for action in (
        "login",
        "auth",
        "session_end",
        "update",
        "admin",
        "worker_lost",
        "dele",
        "audit_start",
        "backend_connect",
        "x",
    ):
        for _ in range(10):
            fields = {name: dice.choice(ODD) for name in names}
            fields |= {"@timestamp": "2026-01-01T00:00:00.000001Z", "event.action": action}
            fields["event.outcome"] = dice.choice(["success", dice.choice(ODD)])
            fields["auth.mechanism"] = dice.choice(["APOP", dice.choice(ODD)])
            record = parse(json.dumps(fields).encode())
            query.wants(record)
            made.add(record)
            for form in audit_export.FORMATS.values():
                assert form(record).isprintable()
            assert _row(record).isprintable()
            list(_with_its_end(iter([record]), []))
            list(lost.take(record))
    assert made.logins
    assert made.uses()
    assert made.totals()


def test_what_has_no_time_or_is_no_json_of_others_is_no_record() -> None:
    when, action = '"@timestamp":"2026-01-01T00:00:00Z"', '"event.action":"x"'
    assert parse(f"{{{when},{action}}}".encode())["event.action"] == "x"
    for bad in (
        f'"@timestamp":null,{action}', f'"@timestamp":"yesterday",{action}',
        f'"@timestamp":"2026-13-01T00:00:00Z",{action}', f'"@timestamp":["2026-01-01T00:00:00Z"],{action}',
        f'{when},"event.action":["x"]', f"{when},{action},\"x\":NaN",
        f'{when},{action},"x":1e999', f'{when},{action},"x":{"9" * 5000}', f'{when},{action},"x":{"[" * 20}{"]" * 20}',
        f'{when},{action},"x":{"[" * 10**5}{"]" * 10**5}', f'{when},{action},"x":"{"y" * (1 << 20)}"',
    ):  # fmt: skip
        with pytest.raises(NotARecord):
            parse(f"{{{bad}}}".encode())
    with pytest.raises(NotARecord):
        parse(b"[1]")


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--since", "yesterday"], ExitCode.USAGE, "--since yesterday: is no time; write 2026-11-23"),
        (["--since", "2026-13-01"], ExitCode.USAGE, "is no time"),
        (["--address", "everywhere"], ExitCode.USAGE, "--address: 'everywhere' does not appear to be"),
        (["--outcome", "bad"], ExitCode.USAGE, "write success, failure or unknown"),
        (["/nonexistent/audit.jsonl"], ExitCode.NOINPUT, "/nonexistent/audit.jsonl: No such file"),
    ],
)
def test_wrong_questions_are_answered_in_words(arguments: list[str], code: int, complaint: str) -> None:
    run = popproxy("audit", "search", *arguments)
    assert run.returncode == code
    assert complaint in run.stderr.decode()


def test_a_compressed_file_that_was_cut_short_gives_what_is_there(tmp_path: Path) -> None:
    octets = gzip.compress(
        "".join(login("2026-01-01T00:00:00", f"user{n}", "::1") + "\n" for n in range(5000)).encode()
    )
    path = tmp_path / "audit.jsonl.1.gz"
    path.write_bytes(octets[: len(octets) // 2])
    seen: list[tuple[int, int]] = []
    assert 1000 < sum(1 for _ in lines(path, lambda _, done, total: seen.append((done, total)))) < 5000


def test_following_goes_on_in_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text("before\n")
    steps: Iterator[Any] = iter([
        lambda: path.open("a").write("one\ntw"),
        lambda: path.open("a").write("o\nthree\n"),
        lambda: path.rename(tmp_path / "audit.jsonl.1"),
        lambda: (tmp_path / "audit.jsonl.1").open("a").write("four\n"),
        lambda: path.write_text("five\n"),
    ])  # fmt: skip

    def wait(_: float) -> None:
        next(steps)()

    following = follow(path, wait=wait)
    assert [next(following) for _ in range(5)] == [b"one\n", b"two\n", b"three\n", b"four\n", b"five\n"]


def test_a_line_without_end_is_followed_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.touch()
    pieces = [b"x" * 700_000, b"x" * 700_000, b"x" * 700_000 + b"\n" + b"whole\n", b"torn"]

    def more(_: float) -> None:
        if pieces:
            with path.open("ab") as file:
                file.write(pieces.pop(0))
        else:
            path.rename(tmp_path / "audit.jsonl.1")
            path.write_bytes(b"new\n")

    following = follow(path, wait=more)
    read = [next(following) for _ in range(4)]
    assert (len(read[0]), read[0][-3:]) == (MAX_RECORD + 1, b"xx\n")
    assert read[1:] == [b"whole\n", b"torn", b"new\n"]


def test_the_shortcut_past_lines_never_hides_a_record() -> None:
    for line in LOG:
        parsed = json.loads(line)
        for query in (
            Query(user=parsed.get("user.name")),
            Query(message=parsed.get("pop3.unique_id")),
            Query(outcome="success"),
        ):
            assert (query.take(line.encode()) is not None) == query.wants(parsed)


async def test_what_popproxy_writes_is_found(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, _ = await rig.logged_in()
        client.close()
        await rig.ends("client_lost")
        (file,) = tmp_path.glob("*.jsonl")
        run = popproxy("audit", "search", "--user", "alice", "--action", "login", str(file))
        assert run.stdout.decode().splitlines()[1].split()[1:6] == ["alice", "127.0.0.1", "login", "success", "USER"]
        report = json.loads(popproxy("audit", "report", "--json", str(file)).stdout)
        uses = [(use["way"], use["user"]) for use in report["uses"]]
        assert uses == [("no TLS", "alice"), ("no TLS to the server", "alice")]


@pytest.mark.long
def test_follow_prints_at_once_and_ends_quietly(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text("")
    # an interrupt is ignored in what a shell runs in the background
    command = ["env", "--default-signal=INT", *PROGRAM, "audit", "follow", "--user", "bob", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"TIME")
    lines_: list[bytes] = []
    reader = threading.Thread(target=lambda: lines_.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        with path.open("a") as file:
            wait_until(lambda: wrote(file) and bool(lines_), "a line", 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    reader.join(20)
    assert all(b"bob" in line for line in lines_)


def wrote(file: TextIO) -> bool:
    """Two more records, of which one is wanted: until the program has found the end of the file they may be skipped."""
    file.write(f"{LOG[0]}\n{LOG[2]}\n")
    file.flush()
    return True


# ---- is it whole? ----


def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A configuration with a key, and what popproxy writes in one session."""
    config = write_config(tmp_path, audit={"file": "audit.jsonl", "key": {"file": "audit.key"}})
    made = popproxy("audit", "key", "-c", str(config))
    assert made.returncode == 0, made.stderr
    key = SigningKey(Secret((tmp_path / "audit.key").read_bytes()))
    assert key.public_pem() == (tmp_path / "audit.key.pub").read_bytes()
    assert key.key_id.encode() in made.stdout
    path = tmp_path / "audit.jsonl"
    log = AuditLog(
        FileSink(path), Metrics(["pop3"], []), on_error="closed", flush_interval=0.05, log_unknown_users=False,
        version="1", signer=key,
    )  # fmt: skip
    log.start()
    for number in range(20):
        new_trail(log).dele(number, b"u%d" % number)
    log.close()
    return config, path


def test_verify_names_the_first_bad_record_and_tells_programs_by_its_status(tmp_path: Path) -> None:
    config, path = signed(tmp_path)
    assert (tmp_path / "audit.key").stat().st_mode & 0o777 == 0o600
    intact = popproxy("audit", "verify", "-c", str(config))
    assert (intact.returncode, intact.stdout.decode().splitlines()[-1]) == (0, "intact"), intact.stdout
    assert b"22 records of 1 segment in 1 file, signed with " in intact.stdout
    octets = path.read_bytes()
    path.write_bytes(octets.replace(b'"u7"', b'"u8"'))
    bad = popproxy("audit", "verify", "-c", str(config))
    assert bad.returncode == 1
    assert bad.stdout.decode().splitlines()[-1] == f"TAMPERED WITH, first at {path}:9, record 9 (altered 1)"
    told = json.loads(popproxy("audit", "verify", "--json", "-c", str(config)).stdout)
    assert (told["status"], told["findings"][0]["line"], told["findings"][0]["sequence"]) == ("tampered", 9, 9)
    alone = b'{"@timestamp":"2026-11-23T08:07:09.971327Z","event.sequence":1,"event.action":"audit_start",'
    alone += b'"chain.segment":"%016x","chain.previous":"' + b"0" * 64 + b'"}\n'
    path.write_bytes(b"".join(alone % number for number in range(1100)) + octets.replace(b'"u7"', b'"u8"'))
    flooded = popproxy("audit", "verify", "-c", str(config))
    assert (flooded.returncode, b"(altered 1, " in flooded.stdout) == (1, True), flooded.stdout[-300:]
    path.write_bytes(octets[:-100])
    torn = popproxy("audit", "verify", "--public-key", str(tmp_path / "audit.key.pub"), str(path))
    assert torn.returncode == 3
    assert b"incomplete, first at" in torn.stdout
    unknown = popproxy("audit", "verify", str(path), "-c", str(tmp_path / "none.yaml"))
    assert (unknown.returncode, b"--public-key" in unknown.stderr) == (ExitCode.USAGE, True)
    assert popproxy("audit", "verify", "--no-key", str(path)).returncode == 3


@pytest.mark.long
def test_what_verify_has_found_is_told_also_if_nobody_reads_it(tmp_path: Path) -> None:
    config, path = signed(tmp_path)
    read, write = os.pipe()
    os.close(read)
    command = [*PROGRAM, "audit", "verify", "-c", str(config)]
    for status in (0, 1):
        ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
        assert (ended.returncode, ended.stderr) == (status, b"")
        path.write_bytes(path.read_bytes().replace(b'"u7"', b'"u8"'))
    os.close(write)


def test_a_log_without_signatures_or_records_is_not_what_a_key_vouches_for(tmp_path: Path) -> None:
    config, path = signed(tmp_path)
    path.write_bytes(b"")
    empty = popproxy("audit", "verify", "-c", str(config))
    assert (empty.returncode, b"there is no record at all" in empty.stdout) == (3, True)
    path.unlink()
    log = AuditLog(
        FileSink(path), Metrics(["pop3"], []), on_error="closed", flush_interval=0.05, log_unknown_users=False,
        version="1",
    )  # fmt: skip
    log.start()
    log.close()
    anew = popproxy("audit", "verify", "-c", str(config))
    assert anew.returncode == 1
    assert anew.stdout.decode().splitlines()[-1] == f"TAMPERED WITH, first at {path}:1, record 1 (unsigned 1)"
    assert popproxy("audit", "verify", "--allow-unsigned", "-c", str(config)).returncode == 3
    assert popproxy("audit", "verify", "--no-key", "-c", str(config)).returncode == 0


def test_a_process_that_has_host_and_number_of_a_dead_one_does_not_vouch_for_it(tmp_path: Path) -> None:
    """As in containers: each has a process 1, and some have one name."""
    path = tmp_path / "audit.jsonl"
    arguments = ["audit", "verify", "--no-key", "--json", str(path)]
    for origin, status, kind in (({}, 0, "running"), ({"process.entity_id": f"{'0' * 8}-1"}, 3, "no end")):
        path.unlink(missing_ok=True)
        log = AuditLog(
            FileSink(path), Metrics(["pop3"], []), on_error="closed", flush_interval=0.05, log_unknown_users=False,
            version="1", origin=origin,
        )  # fmt: skip
        log.start()
        log.flush()
        run = popproxy(*arguments)
        told = json.loads(run.stdout)
        assert (run.returncode, [one["kind"] for one in told["findings"]]) == (status, [kind])
        assert told["segments"][0]["process.pid"] == os.getpid()
        log.close()


@pytest.mark.long
def test_lines_without_end_and_damaged_archives_take_no_memory_and_hide_nothing(tmp_path: Path) -> None:
    """A line of 200 megabytes, compressed to 200 kB, between good ones; then the archive is cut."""
    import resource

    config, path = signed(tmp_path)
    whole = path.read_bytes().splitlines(keepends=True)
    bomb = tmp_path / "audit.jsonl.1.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.writelines(whole[:11])
        for _ in range(200):
            file.write(b" " * 1_000_000)
        file.writelines([b"\n", *whole[11:15]])
    path.write_bytes(b"".join(whole[15:]))
    os.utime(bomb, (1, 1))
    os.mkfifo(tmp_path / "audit.jsonl.2")
    (tmp_path / "audit.jsonl.3").symlink_to("nothing")
    arguments = ["audit", "verify", "--json", "-c", str(config)]
    run = subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, check=False, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (250 << 20, 250 << 20)),
    )  # fmt: skip
    told = json.loads(run.stdout)
    findings = [(one["kind"], one["line"]) for one in told["findings"]]
    assert (run.returncode, told["records"], findings) == (1, 22, [("foreign", 12)]), run.stderr
    found = popproxy("audit", "search", "--action", "dele", "--json", "-c", str(config))
    assert len(found.stdout.splitlines()) == 20
    assert found.stderr == f"popproxy: {bomb}: 1 line left out: not audit records\n".encode()
    bomb.write_bytes(gzip.compress(b"".join(whole[:15]))[:-9])
    told = json.loads(popproxy(*arguments).stdout)
    assert "unreadable" in told["counts"]
    bomb.write_bytes(gzip.compress(b"".join(whole[:15])) + b"no archive")
    told = json.loads(popproxy(*arguments).stdout)
    assert (told["status"], told["counts"]) == ("incomplete", {"unreadable": 1})
    assert b"the rest is left out: Not a gzipped file" in popproxy("audit", "report", "-c", str(config)).stderr


def test_messages_are_found_by_their_unique_ids_where_the_log_has_hashes(tmp_path: Path) -> None:
    settings = {"file": "audit.jsonl", "key": {"file": "audit.key"}, "unique_ids": "hashed"}
    config = write_config(tmp_path, audit=settings)
    assert popproxy("audit", "key", "-c", str(config)).returncode == 0
    loaded = load_file(config)
    log = open_audit(loaded, read_signing_key(loaded.config.audit, ""), Metrics(["pop3"], []))
    new_trail(log).dele(1, b"u1")
    new_trail(log).update("committed", [(1, b"u1"), (2, b"u2")])
    log.close()
    assert '"u1"' not in (tmp_path / "audit.jsonl").read_text()
    run = popproxy("audit", "search", "--message", "u1", "--json", "-c", str(config))
    assert [json.loads(line)["event.action"] for line in run.stdout.splitlines()] == ["dele", "update"]
    config = write_config(tmp_path, audit={"file": "other.jsonl", "unique_ids": "omitted"})
    log = open_audit(load_file(config), None, Metrics(["pop3"], []))
    new_trail(log).dele(1, b"u1")
    new_trail(log).update("committed", [(1, b"u1")])
    log.close()
    assert "unique_id" not in (tmp_path / "other.jsonl").read_text()


def test_a_new_key_takes_the_place_of_the_old_one_whose_signatures_stay_good(tmp_path: Path) -> None:
    config, _ = signed(tmp_path)
    assert popproxy("audit", "key", "-c", str(config)).returncode == ExitCode.CANTCREAT
    old = (tmp_path / "audit.key").read_bytes()
    assert popproxy("audit", "key", "--rotate", "-c", str(config)).returncode == 0
    assert (tmp_path / "audit.key").read_bytes() != old
    assert (tmp_path / "audit.key.pub").read_bytes().count(b"BEGIN PUBLIC KEY") == 2
    assert popproxy("audit", "verify", "-c", str(config)).returncode == 0
    checked = popproxy("check", "--offline", "--json", "-c", str(config)).stdout.decode()
    assert "is signed with the key" in checked
    assert "lacks the public half" not in checked
    (tmp_path / "audit.key.pub").unlink()
    assert "lacks the public half" in popproxy("check", "--offline", "-c", str(config)).stdout.decode()
    (tmp_path / "audit.key").write_text("no key\n")
    assert "is not a private key in PEM" in popproxy("check", "--offline", "-c", str(config)).stdout.decode()
    assert popproxy("audit", "key", "--rotate", str(tmp_path / "nothing")).returncode == ExitCode.NOINPUT


# ---- for other programs ----


def test_export_speaks_ecs_ocsf_and_cef(log: Path) -> None:
    config = write_config(log.parent, audit={"file": str(log)})

    def exported(form: str) -> list[str]:
        run = popproxy("audit", "export", "--format", form, "-c", str(config))
        assert run.returncode == 0, run.stderr
        return run.stdout.decode().splitlines()

    ecs = [json.loads(line) for line in exported("ecs")]
    assert ecs[0]["ecs"]["version"] == "8.17.0"
    assert ecs[0]["event"]["category"] == ["authentication"]
    assert (ecs[0]["source"]["ip"], ecs[0]["destination"]["ip"]) == ("192.0.2.7", "192.0.2.10")
    assert ecs[7]["pop3"]["deleted"] == [{"number": 1, "unique_id": "u1"}]
    ocsf = [json.loads(line) for line in exported("ocsf")]
    assert all(one["type_uid"] == one["class_uid"] * 100 + one["activity_id"] for one in ocsf)
    assert [one["class_uid"] for one in ocsf] == [3002] * 6 + [6005] * 2 + [3002]
    assert (ocsf[0]["time"], ocsf[0]["status_id"], ocsf[0]["is_cleartext"]) == (1767254400000, 1, True)
    assert (ocsf[4]["auth_protocol_id"], ocsf[4]["user"]) == (2, {"name": "dave"})
    assert (ocsf[5]["status_id"], ocsf[5]["user"], ocsf[5]["status_detail"]) == (
        2,
        {"uid": "ab12cd"},
        "bad_credentials",
    )
    assert (ocsf[7]["activity_id"], ocsf[7]["databucket"]["name"]) == (7, "bob")
    cef = exported("cef")
    assert cef[0].startswith("CEF:0|popproxy|popproxy|")
    assert "|login|Login|2|rt=1767254400000 " in cef[0]
    assert " suser=alice src=192.0.2.7 dst=192.0.2.10 dpt=110 " in cef[0]
    assert "c6a2=2001:db8::7 c6a2Label=Source IPv6 Address" in cef[2]
    assert "suser=?evil" in cef[8]
    assert popproxy("audit", "export", "--format", "xml", str(log)).returncode == ExitCode.USAGE


def test_no_name_breaks_out_of_a_field_of_cef() -> None:
    hostile = {
        "@timestamp": "2026-01-01T00:00:00.000001Z",
        "event.action": "a|b",
        "user.name": "x=1 src=6.6.6.6\nCEF:0\\",
    }
    line = cef(hostile)
    assert r"|a\|b|a\|b|" in line
    assert r"suser=x\=1 src\=6.6.6.6?CEF:0\\" in line
    assert "\n" not in line
    assert json.loads(ecs({**hostile, "user.name.more": 1}))["user"]["name"] == hostile["user.name"]
