"""``popproxy top`` and ``popproxy trace`` against a running popproxy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from popproxy.admin.frames import encode
from popproxy.admin.screens import top_screen
from popproxy.cli.exits import ExitCode
from popproxy.net.tapped import TappedChannel
from popproxy.session.session import Session
from tests.cli.test_sessions import command, proxy
from tests.peers.console import Terminal
from tests.session.rig import Rig, Transcript, until


def tapped(session: Session) -> bool:
    assert session._relay is not None
    return isinstance(session._relay._client, TappedChannel)


class Stream:
    """A command that streams, asked over the control socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def ask(cls, rig: Rig, name: str, **arguments: Any) -> Stream:
        path = rig.service._loaded.config.control.socket
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(encode({"command": name, "arguments": arguments}))
        return cls(reader, writer)

    async def answer(self) -> Any:
        async with asyncio.timeout(30):
            size = int.from_bytes(await self.reader.readexactly(4), "big")
            return json.loads(await self.reader.readexactly(size))

    async def event(self) -> Any:
        return (await self.answer())["event"]

    async def texts(self, count: int) -> list[str]:
        return [event["text"] or f"({event['octets']})" for event in [await self.event() for _ in range(count)]]


async def test_a_trace_shows_the_dialogue_of_running_and_new_sessions_and_of_nobody_else(tmp_path: Path) -> None:
    async with proxy(tmp_path) as rig:
        client, backend = await rig.logged_in()
        (session,) = rig.service.sessions
        stream = await Stream.ask(rig, "trace", user="ALICE")
        begin = await stream.event()
        assert (begin["kind"], begin["user"], begin["sessions"]) == ("begin", "alice", [session.id])
        await Transcript(client, backend).play("""
            C: RETR 1
            B: RETR 1
            R: +OK 24 octets
            R: Subject: canary-pw-body
            R: .
            S: +OK 24 octets
            S: Subject: canary-pw-body
            S: .
            C: hunter2
            S: -ERR unknown command
        """)
        texts = ["RETR 1", "+OK 24 octets", "(25)", "(not a command)", "-ERR unknown command"]
        assert await stream.texts(5) == texts

        wrong = await rig.greeted()
        await wrong.send("USER alice\r\nPASS canary-pw-wrong\r\n")
        refusing = await rig.backend.greeted()
        while (line := await refusing.line()) != b"PASS canary-pw-wrong\r\n":
            await refusing.send("+OK\r\n.\r\n" if line == b"CAPA\r\n" else "+OK\r\n")
        await refusing.send("-ERR [AUTH] no\r\n")
        assert await stream.texts(2) == ["(login by USER)", "-ERR [AUTH] authentication failed"]

        second, second_backend = await rig.logged_in()
        other = await rig.greeted()
        await other.send("USER bob\r\nPASS canary-pw-bob\r\n")
        await rig.backend.logged_in()
        await second.send("DELE 1\r\nQUIT\r\n")
        await second_backend.expect("DELE 1")
        await second_backend.send("+OK gone\r\n")
        await second_backend.expect("QUIT")
        await second_backend.send("+OK bye\r\n")
        assert await second.rest() == b"+OK gone\r\n+OK bye\r\n"
        # the client has pipelined; its answers come in their order, and the end is told
        told = await stream.texts(5)
        assert sorted(told) == sorted(["DELE 1", "QUIT", "+OK gone", "+OK bye", "the session has ended: logout"])
        assert told.index("+OK gone") < told.index("+OK bye")

        assert tapped(session)
        stream.writer.close()
        await until(lambda: not rig.parts.tracing.active, "the end of the trace", 60)
        assert not tapped(session)
        await Transcript(client, backend).play("""
            C: NOOP
            B: NOOP
            R: +OK
            S: +OK
        """)
        await until(lambda: len(rig.audit("admin")) == 2, "both ends of the trace on record")
        begun, ended = rig.audit("admin")
        assert begun["popproxy.arguments"] == ended["popproxy.arguments"] == {"user": "ALICE"}
        assert (begun["popproxy.stream"], ended["popproxy.stream"], ended["popproxy.events"]) == ("begun", "ended", 13)


async def test_a_trace_that_begins_inside_a_message_shows_the_next_command_and_nothing_of_the_message(
    tmp_path: Path,
) -> None:
    async with proxy(tmp_path, pool={"splice": True}) as rig:
        client, backend = await rig.logged_in()
        body = b"+OK canary-pw-in-a-message\r\n" * 20_000
        await client.send("RETR 1\r\n")
        await backend.expect("RETR 1")
        sending = asyncio.ensure_future(backend.send(b"+OK 560000 octets\r\n" + body[:200_000]))
        await client.take(150_000)
        await sending
        stream = await Stream.ask(rig, "trace", user="alice")
        await stream.event()
        sending = asyncio.ensure_future(backend.send(body[200_000:] + b".\r\n"))
        await client.take(len(b"+OK 560000 octets\r\n" + body + b".\r\n") - 150_000)
        await sending
        await client.send("RETR 2\r\n")
        await backend.expect("RETR 2")
        sending = asyncio.ensure_future(backend.send(b"+OK 560000 octets\r\n" + body + b".\r\n"))
        await client.take(len(b"+OK 560000 octets\r\n" + body + b".\r\n"))
        await sending
        assert await stream.texts(3) == ["RETR 2", "+OK 560000 octets", f"({len(body)})"]
        stream.writer.close()
        await until(lambda: not rig.parts.tracing.active, "the end of the trace", 60)
        await client.send("RETR 3\r\n")
        await backend.expect("RETR 3")
        await backend.send(b"+OK\r\nthere\r\n.\r\n")
        assert await client.take(15) == b"+OK\r\nthere\r\n.\r\n"[:15]


async def test_a_trace_ends_in_time_and_refuses_what_is_no_name_or_too_long(tmp_path: Path) -> None:
    async with proxy(tmp_path) as rig:
        run = await command(rig, "trace", "alice", "--for", "10ms")
        assert (run.returncode, run.stdout) == (0, b"-- tracing alice for 1s, no running session\n")
        run = await command(rig, "trace", "alice", "--for", "2h")
        assert (run.returncode, run.stderr) == (ExitCode.USAGE, b"popproxy: a trace may run for 1h at most\n")
        assert (await command(rig, "trace", "\x00")).returncode == ExitCode.USAGE
        assert not rig.parts.tracing.active
        outcomes = [(one["event.outcome"], one.get("popproxy.stream")) for one in rig.audit("admin")]
        assert outcomes == [("success", "begun"), ("success", "ended"), ("failure", None), ("failure", None)]


@pytest.mark.long
async def test_top_sums_up_sorts_and_says_how_fast(tmp_path: Path) -> None:
    async with proxy(tmp_path) as rig:
        client, backend = await rig.logged_in()
        stream = await Stream.ask(rig, "top", seconds=0.2, sort="octets")
        first = await stream.event()
        assert (first["total"], first["sessions"][0]["rate"], first["rates"]["octets"]) == (1, 0, 0)
        await client.send("NOOP\r\n")
        await backend.expect("NOOP")
        await backend.send("+OK\r\n")
        while not (look := await stream.event())["sessions"][0]["rate"]:
            pass
        assert look["rates"]["octets"] > 0
        screen = top_screen(look, fancy=False, width=60, height=12)
        assert max(map(len, screen)) <= 60 < 80
        assert len(screen) <= 12
        stream.writer.write(b"?")  # whatever is said ends it
        while "event" in (answer := await stream.reader.read(1 << 20)).decode():
            pass
        assert answer == b""
        stream.writer.close()
        text = (await command(rig, "top")).stdout.decode()
        assert f"{rig.backend.address}  up" in text
        assert "alice" in text
        looks = (await command(rig, "top", "--json", "--times", "2", "--every", "200ms")).stdout.splitlines()
        assert [json.loads(line)["total"] for line in looks] == [1, 1]
        assert b"sorted by one of" in (await command(rig, "top", "--sort", "luck")).stderr


@pytest.mark.long
async def test_ctrl_c_ends_a_trace_quietly(tmp_path: Path) -> None:
    async with proxy(tmp_path) as rig:
        path = rig.service._loaded.config.control.socket
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "popproxy", "trace", "alice", "--json", "--socket", str(path)),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # these tests may run in the background
        )  # fmt: skip
        assert process.stdout is not None
        assert json.loads(await process.stdout.readline())["kind"] == "begin"
        process.send_signal(signal.SIGINT)
        output, errors = await process.communicate()
        assert (process.returncode, output, errors) == (0, b"", b"")
        await until(lambda: not rig.parts.tracing.active, "the end of the trace", 60)


@pytest.mark.long
async def test_top_fills_a_terminal_until_q(tmp_path: Path) -> None:
    async with proxy(tmp_path) as rig:
        await rig.logged_in()
        path = rig.service._loaded.config.control.socket
        terminal = Terminal([sys.executable, "-m", "popproxy", "top", "--every", "200ms", "--socket", str(path)])
        await terminal.sees("\x1b\\[\\?1049h.*alice.*octets/s.*alice")
        terminal.type("q")
        await terminal.sees("\x1b\\[\\?1049l")  # and the cursor is back
        assert await terminal.ends() == 0
