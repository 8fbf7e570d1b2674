"""The control socket: its permissions, who may give commands, what is on record, and what it does with nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.admin import control_client
from popproxy.admin.commands import Commands
from popproxy.admin.control import CONNECTIONS, Allowed, ControlServer
from popproxy.admin.control_socket import ControlSocket, Peer, bind_control, peer_of
from popproxy.admin.desk import Desk
from popproxy.admin.frames import MAX_REQUEST, CommandFailed, Reason, encode
from popproxy.app.plan import ControlPlan, Plan
from popproxy.app.sockets import allowed
from popproxy.errors import ConnectFailed, Unavailable
from popproxy.observe.audit import AuditLog, FileSink
from popproxy.observe.metrics import Metrics
from tests.peers.process import REPOSITORY, public_directory

NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Pytest's own are too long for the name of a socket, and closed to others."""
    with public_directory("control") as made:
        yield made


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLog]:
    sink = FileSink(tmp_path / "audit.jsonl")
    log = AuditLog(
        sink, Metrics(["pop3"], []), on_error="closed", flush_interval=0.01, log_unknown_users=False, version="1"
    )
    yield log
    log.close()


def recorded(tmp_path: Path, audit: AuditLog) -> list[dict[str, Any]]:
    audit.flush()
    records = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    return [record for record in records if record["event.action"] == "admin"]


async def echo(*, text: str, times: int = 1, loud: bool = False, tail: str | None = None) -> object:
    return {"said": (text.upper() if loud else text) * times + (tail or "")}


async def refuse() -> object:
    raise CommandFailed(Reason.REFUSED, "not today")


async def broken() -> object:
    raise RuntimeError("canary-pw-in-a-bug")


def commands() -> Commands:
    made = Commands()
    made.add("echo", echo)
    made.add("refuse", refuse)
    made.add("broken", broken)
    return made


@pytest.fixture
async def path(directory: Path, audit: AuditLog) -> AsyncIterator[Path]:
    bound = bind_control(directory / "control.sock", None, None)
    server = ControlServer(
        bound,
        Desk(commands(), audit, Metrics(["pop3"], []).operator_commands),
        Allowed(frozenset({os.geteuid()}), frozenset()),
    )
    await server.start()
    yield bound.path
    await server.stop()
    assert not bound.path.exists()


async def ask(path: Path, command: str, **arguments: object) -> Any:
    return await asyncio.to_thread(control_client.ask, path, command, **arguments)


# ---- commands ----


async def test_a_command_is_answered_and_recorded(path: Path, tmp_path: Path, audit: AuditLog) -> None:
    assert await ask(path, "echo", text="ä", times=3, loud=True, tail=None) == {"said": "ÄÄÄ"}
    (record,) = recorded(tmp_path, audit)
    assert record["event.outcome"] == "success"
    assert record["popproxy.command"] == "echo"
    assert record["popproxy.arguments"] == {"text": "ä", "times": 3, "loud": True, "tail": None}
    assert (record["user.name"], record["user.id"]) == (pwd.getpwuid(os.geteuid()).pw_name, str(os.geteuid()))
    assert record["popproxy.operator_pid"] == os.getpid()


@pytest.mark.parametrize(
    ("command", "arguments", "reason", "text"),
    [
        ("nonsense", {}, Reason.UNKNOWN_COMMAND, "broken, echo, refuse"),
        ("echo", {}, Reason.BAD_ARGUMENTS, "echo needs text"),
        ("echo", {"text": 1}, Reason.BAD_ARGUMENTS, "text must be str"),
        ("echo", {"text": "a", "times": "3"}, Reason.BAD_ARGUMENTS, "times must be int"),
        ("echo", {"text": "a", "times": True}, Reason.BAD_ARGUMENTS, "times must be int"),
        ("echo", {"text": "a", "tail": 1}, Reason.BAD_ARGUMENTS, "tail must be str | None"),
        ("echo", {"text": "a", "colour": "red"}, Reason.BAD_ARGUMENTS, "no argument colour"),
        ("refuse", {}, Reason.REFUSED, "not today"),
        ("broken", {}, Reason.INTERNAL, "popproxy's log"),
    ],
)
async def test_a_command_that_fails_says_why_and_is_recorded(
    path: Path, tmp_path: Path, audit: AuditLog, command: str, arguments: dict[str, Any], reason: Reason, text: str
) -> None:
    with pytest.raises(CommandFailed) as caught:
        await ask(path, command, **arguments)
    assert caught.value.reason is reason
    assert text in str(caught.value)
    (record,) = recorded(tmp_path, audit)
    assert (record["event.outcome"], record["event.reason"]) == ("failure", reason.value)
    assert await ask(path, "echo", text="still there") == {"said": "still there"}


async def test_several_commands_on_one_connection(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"".join(encode({"command": "echo", "arguments": {"text": str(number)}}) for number in range(5)))
    for number in range(5):
        size = int.from_bytes(await reader.readexactly(4), "big")
        assert json.loads(await reader.readexactly(size)) == {"result": {"said": str(number)}}
    writer.close()


# ---- nonsense ----


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        (MAX_REQUEST + 1).to_bytes(4, "big"),
        b"\0\0\0\5hello",
        b"\0\0\0\2[]",
        b"\0\0\0\4\xff\xfe\xfd\xfc",
        (60_000).to_bytes(4, "big") + b"[" * 60_000,
        b"\0\0\0\2",
        b"",
    ],
)
async def test_what_is_no_request_ends_the_connection_and_nothing_else(path: Path, octets: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(octets)
    writer.write_eof()
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    writer.close()
    assert await ask(path, "echo", text="a") == {"said": "a"}


@pytest.mark.parametrize(
    "request_", [{}, {"command": None}, {"command": ["echo"]}, {"command": "echo", "arguments": 1}]
)
async def test_what_is_no_command_gets_an_error(path: Path, request_: dict[str, Any]) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(encode(request_))
    size = int.from_bytes(await reader.readexactly(4), "big")
    assert "error" in json.loads(await reader.readexactly(size))
    writer.close()


async def test_what_is_nested_too_deep_for_a_record_is_on_record_all_the_same(
    path: Path, tmp_path: Path, audit: AuditLog
) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    octets = b'{"command":"echo","arguments":{"text":' + b"[" * 900 + b"]" * 900 + b"}}"
    writer.write(len(octets).to_bytes(4, "big") + octets)
    async with asyncio.timeout(30):
        size = int.from_bytes(await reader.readexactly(4), "big")
        assert json.loads(await reader.readexactly(size))["error"]["reason"] == "bad_arguments"
    writer.close()
    (record,) = recorded(tmp_path, audit)
    assert (record["popproxy.command"], record["event.reason"]) == ("echo", "bad_arguments")


async def test_connections_are_limited_and_those_there_go_on(path: Path) -> None:
    held = [await asyncio.open_unix_connection(path) for _ in range(CONNECTIONS)]
    with pytest.raises(Unavailable):
        await ask(path, "echo", text="a")
    for _, writer in held:
        writer.close()
    async with asyncio.timeout(30):
        while True:
            try:
                assert await ask(path, "echo", text="a") == {"said": "a"}
                break
            except Unavailable:
                await asyncio.sleep(0.01)


# ---- who ----


async def test_somebody_else_is_refused_and_recorded(directory: Path, tmp_path: Path, audit: AuditLog) -> None:
    assert os.geteuid() == 0, "only root can become somebody else: run the tests as root"
    bound = bind_control(directory / "control.sock", None, "nogroup")
    server = ControlServer(
        bound, Desk(commands(), audit, Metrics(["pop3"], []).operator_commands), Allowed(frozenset({0}), frozenset())
    )
    await server.start()
    try:
        ended = await asyncio.to_thread(as_nobody, bound.path)
        assert ended.stdout == "denied: nobody may not give commands; see control in the configuration\n", ended.stderr
    finally:
        await server.stop()
    (record,) = recorded(tmp_path, audit)
    assert (record["event.outcome"], record["event.reason"]) == ("failure", "denied")
    assert (record["user.name"], record["popproxy.command"]) == ("nobody", "echo")


async def test_who_may_not_takes_no_place_from_those_who_may(directory: Path, audit: AuditLog) -> None:
    bound = bind_control(directory / "control.sock", None, None)
    desk = Desk(commands(), audit, Metrics(["pop3"], []).operator_commands)
    server = ControlServer(bound, desk, Allowed(frozenset(), frozenset()))
    await server.start()
    held = [await asyncio.open_unix_connection(bound.path) for _ in range(CONNECTIONS)]
    reader, _ = await asyncio.open_unix_connection(bound.path)
    assert await reader.read() == b"", "one more of them is turned away"
    server.admit(Allowed(frozenset({os.geteuid()}), frozenset()))
    assert await ask(bound.path, "echo", text="here") == {"said": "here"}
    for _, writer in held:
        writer.close()
    await server.stop()


def test_who_the_workers_become_may_not() -> None:
    control = ControlPlan(None, chosen=False, group=None, users=("mail",), groups=("adm",))
    plan = Plan("0", "file", (), None, control, None, "nobody", None, 1, 1.0, 1.0, "info", "json", "")
    assert allowed(plan).users == {0, os.geteuid(), pwd.getpwnam("mail").pw_uid}


async def test_members_of_a_named_group_may(directory: Path, audit: AuditLog) -> None:
    assert os.geteuid() == 0, "only root can become somebody else: run the tests as root"
    bound = bind_control(directory / "control.sock", None, "nogroup")
    desk = Desk(commands(), audit, Metrics(["pop3"], []).operator_commands)
    server = ControlServer(bound, desk, Allowed.named(["no-such-user"], ["nogroup"]))
    await server.start()
    try:
        ended = await asyncio.to_thread(as_nobody, bound.path)
        assert ended.stdout == "{'said': 'a'}\n", ended.stderr
    finally:
        await server.stop()


async def test_who_is_not_in_the_sockets_group_cannot_even_connect(directory: Path, audit: AuditLog) -> None:
    assert os.geteuid() == 0, "only root can become somebody else: run the tests as root"
    bound = bind_control(directory / "control.sock", None, None)
    ended = await asyncio.to_thread(as_nobody, bound.path)
    assert "may not be used by this user" in ended.stdout, ended.stderr
    bound.close()


def as_nobody(path: Path) -> subprocess.CompletedProcess[str]:
    """A client that the kernel knows as somebody else. It imports first: nobody may read the sources."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from popproxy.admin.control_client import ask\n"
        "from popproxy.admin.frames import CommandFailed\n"
        f"os.setgroups([]); os.setgid({NOBODY.pw_gid}); os.setuid({NOBODY.pw_uid})\n"
        "try: print(ask(Path(sys.argv[1]), 'echo', text='a'))\n"
        "except CommandFailed as error: print(f'{error.reason}: {error}')\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)


def test_supplementary_groups_count() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        peer = peer_of(one)
    assert peer.pid == os.getpid()
    assert peer.groups == {os.getegid(), *os.getgroups()}
    assert Allowed(frozenset(), frozenset({5})).may(Peer(1, 1, frozenset({4, 5})))
    assert not Allowed(frozenset(), frozenset({6})).may(Peer(1, 1, frozenset({4, 5})))


# ---- the file ----


def test_owner_group_and_mode(directory: Path) -> None:
    bound = bind_control(directory / "made" / "control.sock", "nobody", "nogroup")
    found = os.lstat(bound.path)
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert (found.st_uid, found.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert os.stat(directory / "made").st_uid == NOBODY.pw_uid
    bound.close()
    assert list((directory / "made").iterdir()) == []


@pytest.mark.parametrize("instead", [os.symlink, os.link])
def test_a_file_put_in_its_place_is_not_given_away(
    directory: Path, monkeypatch: pytest.MonkeyPatch, instead: Callable[[str, str], None]
) -> None:
    """The user that popproxy runs as owns the directory: whoever has taken him over must not become root that way."""
    secret = directory.parent / f"{directory.name}.secret"
    secret.write_text("root's own\n")
    secret.chmod(0o600)
    before = secret.stat()
    real = socket.socket.bind

    def bind(sock: socket.socket, path: str) -> None:
        real(sock, path)
        os.unlink(path)
        instead(str(secret), path)

    monkeypatch.setattr(socket.socket, "bind", bind)
    try:
        with pytest.raises(ConnectFailed, match="replaced"):
            bind_control(directory / "control.sock", "nobody" if os.geteuid() == 0 else None, None)
        after = secret.stat()
        assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
        assert list(directory.iterdir()) == []
    finally:
        secret.unlink()


def test_what_a_killed_one_left_is_replaced(directory: Path) -> None:
    path = directory / "control.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    bound = bind_control(path, None, None)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    bound.close()


def test_a_running_ones_is_left_alone(directory: Path) -> None:
    bound = bind_control(directory / "control.sock", None, None)
    with pytest.raises(ConnectFailed, match=rf"running process \(pid {os.getpid()}\)"):
        bind_control(bound.path, None, None)
    assert_listens(bound)
    bound.close()


def test_what_is_no_socket_is_left_alone(directory: Path) -> None:
    path = directory / "control.sock"
    path.write_text("precious")
    with pytest.raises(ConnectFailed, match="is no socket"):
        bind_control(path, None, None)
    assert path.read_text() == "precious"


def test_another_users_dead_socket_is_left_alone(directory: Path) -> None:
    path = directory / "control.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    os.chown(path, 12345, -1)
    with pytest.raises(ConnectFailed, match=r"another user \(id 12345\)"):
        bind_control(path, None, None)
    assert path.exists()


def test_a_successors_socket_is_not_taken_away(directory: Path) -> None:
    first = bind_control(directory / "control.sock", None, None)
    first.path.unlink()
    second = bind_control(first.path, None, None)
    first.close()
    assert_listens(second)
    second.close()


@pytest.mark.parametrize("where", ["missing/deeper/control.sock", "file/control.sock"])
def test_a_socket_that_cannot_be_made_is_an_error_in_words(directory: Path, where: str) -> None:
    (directory / "file").write_text("")
    with pytest.raises(ConnectFailed, match="no control socket at"):
        bind_control(directory / where, None, None)
    assert {entry.name for entry in directory.rglob("*")} == {"file"}


def assert_listens(bound: ControlSocket) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(bound.path))


# ---- the client ----


@pytest.mark.parametrize("answer", [b"", b"\0\0\0\2", b"\0\0\0\2[]", b"\0\0\0\5hello", b"\xff\xff\xff\xff"])
async def test_a_server_that_answers_nonsense_is_unavailable(directory: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, directory / "other.sock")
    with pytest.raises(Unavailable):
        await ask(directory / "other.sock", "echo", text="a")
    server.close()


async def test_nobody_there_is_said_in_words(directory: Path) -> None:
    with pytest.raises(Unavailable, match="is it running"):
        await ask(directory / "none.sock", "echo")


async def test_who_waits_in_vain_is_told_that_it_may_be_done_yet(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(control_client.LONG, "reload", 0.05)
    bound = bind_control(directory / "control.sock", None, None)  # where nobody accepts
    with pytest.raises(Unavailable, match=r"no answer to reload within 0.05 s; it may be carried out yet"):
        await ask(bound.path, "reload")
    bound.close()
