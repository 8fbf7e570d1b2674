"""Deaths, stalls and cuts of either side at every point after the login: rules R1 to R7 of the relay.

`C:` client sends, `S:` client receives, `B:` backend receives, `R:` backend sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.session.rig import PATIENCE, Peer, Rig, Transcript, running, until

pytestmark = [pytest.mark.every_loop, pytest.mark.long]

GONE = b"-ERR [SYS/TEMP] the mail server is gone, nothing was deleted\r\n"
UNKNOWN = b"-ERR [SYS/TEMP] update outcome unknown, the server did not answer QUIT\r\n"


def leave(peer: Peer, how: str) -> None:
    """End a connection."""
    {"fin": peer.close, "rst": peer.reset}[how]()


async def noticed(rig: Rig) -> None:
    """Wait until the proxy has seen the backend go."""
    failures = rig.metrics.backend_errors
    await until(lambda: any(count for key, count in failures.items() if key[1] in ("relay", "update")), "the loss")


BACKEND_ENDS = ("fin", "rst")


@pytest.mark.parametrize("how", BACKEND_ENDS)
async def test_backend_dies_between_commands(tmp_path: Path, how: str) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("""
            C: DELE 1
            B: DELE 1
            R: +OK
            S: +OK
        """)
        leave(backend, how)
        await noticed(rig)
        assert await client.silent()
        await client.send("NOOP\r\n")
        assert await client.rest() == GONE
        (end,) = await rig.ends("backend_lost")
        assert end["pop3.committed"] is False
        assert end["pop3.abandoned"] == [{"number": 1}]
        assert rig.metrics.deletions["abandoned"] == 1


@pytest.mark.parametrize("how", BACKEND_ENDS)
@pytest.mark.parametrize("line", ["QUIT", "LAST", "nonsense", "RETR 1", "x" * 600])
async def test_next_command_after_the_backends_death_is_told(tmp_path: Path, how: str, line: str) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        leave(backend, how)
        await noticed(rig)
        await client.send(line + "\r\n")
        assert await client.rest() == GONE
        await rig.ends("backend_lost")


@pytest.mark.parametrize("how", BACKEND_ENDS)
@pytest.mark.parametrize("command", ["STAT", "DELE 1", "RETR 1", "UIDL", "CAPA", "NOOP\r\nNOOP"])
async def test_backend_dies_with_a_command_in_flight(tmp_path: Path, how: str, command: str) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await client.send(command + "\r\n")
        await backend.line()
        leave(backend, how)
        assert await client.rest() == GONE
        await rig.ends("backend_lost")


@pytest.mark.parametrize("how", BACKEND_ENDS)
@pytest.mark.parametrize("body", ["", "half a li", "a line\r\n", "a line\r\n.", "a line\r\n.\r"])
@pytest.mark.parametrize("command", ["RETR 1", "TOP 1 5", "UIDL", "LIST"])
async def test_backend_dies_inside_a_body(tmp_path: Path, how: str, body: str, command: str) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await client.send(command + "\r\n")
        await backend.expect(command)
        reply = f"+OK here\r\n{body}"
        await backend.send(reply)
        assert await client.take(len(reply)) == reply.encode()
        leave(backend, how)
        assert await client.rest() == b""
        await rig.ends("backend_lost")
        if command.startswith(("RETR", "TOP")):
            verb = command.partition(" ")[0]
            (record,) = rig.audit(verb.lower())
            assert record["pop3.complete"] is False
            assert record["pop3.octets"] == len(body)
            assert rig.metrics.truncated[verb] == 1
            assert rig.metrics.messages[verb] == 0


@pytest.mark.parametrize("how", BACKEND_ENDS)
async def test_backend_dies_after_quit_was_sent(tmp_path: Path, how: str) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("""
            C: DELE 2
            B: DELE 2
            R: +OK
            S: +OK
            C: QUIT
            B: QUIT
        """)
        leave(backend, how)
        assert await client.rest() == UNKNOWN
        (end,) = await rig.ends("update_unknown")
        assert end["pop3.committed"] == "unknown"
        (update,) = rig.audit("update")
        assert update["event.outcome"] == "unknown"
        assert update["pop3.deleted"] == [{"number": 2}]
        assert rig.metrics.update["unknown"] == 1


async def test_backend_hangs_after_quit(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"update": "200ms"}) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("C: QUIT\nB: QUIT")
        await backend.send("+OK half an answ")
        assert await client.rest() == UNKNOWN
        assert await backend.rest() == b""
        assert backend.ended == "reset"
        await rig.ends("update_unknown")


async def test_refused_quit_is_relayed_with_its_code(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("""
            C: QUIT
            B: QUIT
            R: -ERR [SYS/PERM] some deleted messages not removed
        """)
        assert await client.rest() == b"-ERR [SYS/PERM] some deleted messages not removed\r\n"
        await rig.ends("update_refused")
        (update,) = rig.audit("update")
        assert update["pop3.committed"] == "partial"


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        ("garbage\r\n", "backend_protocol"),
        ("+OK" + "x" * 9000 + "\r\n", "backend_protocol"),
        ("+OK " + "x" * 9000, "backend_protocol"),
        ("\r\n", "backend_protocol"),
        ("\0\0\0\0\n", "backend_protocol"),
    ],
)
async def test_broken_status_line(tmp_path: Path, octets: str, reason: str) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await client.send("STAT\r\n")
        await backend.expect("STAT")
        await backend.send(octets)
        assert await client.rest() == GONE
        assert await backend.rest() == b""
        assert backend.ended == "reset"
        await rig.ends(reason)


async def test_unsolicited_octets_are_never_handed_on(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await backend.send("+OK who asked?\r\n")
        assert await backend.rest() == b""
        assert await client.silent()
        await client.send("STAT\r\n")
        assert await client.rest() == GONE
        client, backend = await rig.logged_in()
        await client.send("STAT\r\n")
        await backend.expect("STAT")
        await backend.send("+OK 1 2\r\n+OK and more\r\n")
        await client.expect("+OK 1 2")
        assert await backend.rest() == b""
        await client.send("NOOP\r\n")
        assert await client.rest() == GONE
        await rig.ends("backend_protocol", "backend_protocol")


@pytest.mark.parametrize("reply", ["+OK bye\r\n+OK again\r\n", "+OK bye\r\ngarbage"])
async def test_octets_behind_the_answer_to_quit(tmp_path: Path, reply: str) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("C: QUIT\nB: QUIT")
        await backend.send(reply)
        assert await client.rest() == b"+OK bye\r\n"
        await rig.ends("logout")


# ---- the client's end ----


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize(
    "before", ["", "C: DELE 1\nB: DELE 1\nR: +OK\nS: +OK", "C: STAT\nB: STAT", "C: RETR 1\nB: RETR 1\nR: +OK\nR: half"]
)
async def test_client_that_goes_without_quit(tmp_path: Path, how: str, before: str) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play(before)
        if "half" in before:
            await client.take(11)
        leave(client, how)
        if how == "fin" and before.startswith(("C: STAT", "C: RETR")):
            # it might still read: its replies are delivered, which shows that it does not
            with contextlib.suppress(ConnectionError):
                for _ in range(3):
                    await backend.send("+OK 1 2\r\n" if before.startswith("C: STAT") else "more\r\n")
                    await asyncio.sleep(0.02)
        assert await backend.rest() == b"", "the proxy has sent something of its own (R1)"
        (end,) = await rig.ends("client_lost")
        assert end["pop3.committed"] is False


async def test_quit_without_line_end_is_no_quit(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        for last in ("QUIT", "QUIT\r", "QUI"):
            client, backend = await rig.logged_in()
            await client.send(last)
            client.half_close()
            assert await client.rest() == b""
            assert await backend.rest() == b""
            assert backend.ended == "reset"
        await rig.ends(*["client_lost"] * 3)


async def test_half_close_with_commands_outstanding_gets_all_replies(tmp_path: Path) -> None:
    for capa in ("TOP UIDL", "TOP UIDL PIPELINING"):
        async with running(tmp_path) as rig:
            client, backend = await rig.logged_in(capa)
            await client.send("STAT\r\nLIST 1\r\nnonsense\r\nLAST\r\nRETR 1\r\n")
            client.half_close()
            await Transcript(client, backend).play("""
                B: STAT
                R: +OK 1 2
                B: LIST 1
                R: +OK 1 2
                B: RETR 1
                R: +OK
                R: text
                R: .
            """)
            replies = b"+OK 1 2\r\n+OK 1 2\r\n-ERR unknown command\r\n+OK 0\r\n+OK\r\ntext\r\n.\r\n"
            assert await client.rest() == replies
            assert await backend.rest() == b""
            assert rig.audit("retr")[-1]["pop3.complete"] is True


async def test_half_close_behind_quit_commits(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await client.send("DELE 1\r\nQUIT\r\n")
        client.half_close()
        await Transcript(client, backend).play("""
            B: DELE 1
            R: +OK
            B: QUIT
            R: +OK bye
        """)
        assert await client.rest() == b"+OK\r\n+OK bye\r\n"
        await rig.ends("logout")


async def test_client_that_resets_after_quit_does_not_undo_it(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("C: QUIT\nB: QUIT")
        client.reset()
        await asyncio.sleep(0.05)
        await backend.send("+OK bye\r\n")
        (end,) = await rig.ends("logout")
        assert end["pop3.committed"] is True


async def test_quit_waits_until_the_message_before_it_is_with_the_client(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in("TOP UIDL PIPELINING", receive=4096)
        await client.send("RETR 1\r\nDELE 1\r\nQUIT\r\n")
        await backend.expect("RETR 1")
        await backend.expect("DELE 1")
        message = b"x" * 998 + b"\r\n"
        sending = asyncio.create_task(backend.send(b"+OK\r\n" + message * 12000 + b".\r\n+OK\r\n", seconds=30))
        await asyncio.sleep(0.3)
        assert not sending.done(), "nobody reads, and everything was taken"
        (session,) = rig.service.sessions
        relay: Any = session._relay
        assert relay._client.pending < 1 << 20
        assert await backend.silent()
        client.reset()
        assert await backend.rest() == b"", "QUIT for messages that never arrived (R7)"
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        (end,) = await rig.ends("client_lost")
        assert end["pop3.committed"] is False
        (record,) = rig.audit("retr")
        assert record["pop3.complete"] is False
        assert rig.audit("update") == []


# ---- time ----


async def test_idle_client_is_left_without_quit_and_without_a_word(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"idle": "200ms"}) as rig:
        client, backend = await rig.logged_in()
        assert await client.rest() == b""
        assert await backend.rest() == b""
        assert backend.ended == "reset"
        await rig.ends("idle")


async def test_stalled_backend(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"stall": "500ms"}) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("C: STAT\nB: STAT")
        assert await client.rest() == GONE
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("C: RETR 1\nB: RETR 1\nR: +OK\nR: half")
        assert await client.rest() == b"+OK\r\nhalf\r\n"
        await rig.ends("backend_stall", "backend_stall")
        assert [record["pop3.complete"] for record in rig.audit("retr")] == [False]


async def test_client_that_reads_nothing_is_left(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"stall": "1s"}) as rig:
        client, backend = await rig.logged_in(receive=4096)
        await Transcript(client, backend).play("C: RETR 1\nB: RETR 1\nR: +OK")
        with pytest.raises((ConnectionError, TimeoutError)):
            await backend.send(b"x" * (64 << 20), seconds=5)
        await rig.ends("client_stall")
        assert [record["pop3.complete"] for record in rig.audit("retr")] == [False]


@pytest.mark.long
async def test_client_that_reads_slowly_is_not_left(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"stall": "3s"}) as rig:
        client, backend = await rig.logged_in(receive=32768)
        (session,) = rig.service.sessions
        relay: Any = session._relay
        await Transcript(client, backend).play("C: RETR 1\nB: RETR 1")
        body = b"x" * 998 + b"\r\n"
        sending = asyncio.create_task(backend.send(b"+OK\r\n" + body * 12000 + b".\r\n", seconds=60))
        await until(lambda: relay._client.pending, "back-pressure")
        got = 0
        for _ in range(45):  # longer than the stall and the deadlines' interval together
            got += len(await client.take(10_000))
            assert not sending.done(), "too fast for this test"
            await asyncio.sleep(0.1)
        await client.take(5 + 12_000_000 + 3 - got)
        await sending
        await Transcript(client, backend).play("C: NOOP\nB: NOOP\nR: +OK\nS: +OK")


# ---- shutdown ----


@pytest.mark.parametrize(
    ("state", "said", "reason"),
    [
        ("", b"-ERR [SYS/TEMP] shutting down, nothing was deleted\r\n", "shutdown"),
        ("C: STAT\nB: STAT", b"-ERR [SYS/TEMP] shutting down, nothing was deleted\r\n", "shutdown"),
        ("C: RETR 1\nB: RETR 1\nR: +OK\nR: half", b"+OK\r\nhalf\r\n", "shutdown"),
        ("C: QUIT\nB: QUIT", UNKNOWN, "update_unknown"),
    ],
)
async def test_shutdown_in_each_state(tmp_path: Path, state: str, said: bytes, reason: str) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play(state)
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(rig.service.stop())
        assert await client.rest() == said
        assert await backend.rest() == b""
        client.close()
        await stopping
        await rig.ends(reason)


async def test_drain_lets_a_session_end_by_itself(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        stopping = asyncio.create_task(rig.service.stop(100))
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionError):
            await rig.client()
        await Transcript(client, backend).play("""
            C: QUIT
            B: QUIT
            R: +OK bye
            S: +OK bye
        """)
        client.close()
        await asyncio.wait_for(stopping, PATIENCE)
        await rig.ends("logout")


async def test_shutdown_before_the_login(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        waiting = await rig.greeted()
        await waiting.send("USER alice\r\nPASS canary-pw-alice\r\n")
        backend = await rig.backend.greeted()
        assert await backend.line() == b"CAPA\r\n"
        stopping = asyncio.create_task(rig.service.stop())
        assert await client.rest() == b"-ERR [SYS/TEMP] shutting down, try again later\r\n"
        assert (await waiting.rest()).endswith(b"-ERR [SYS/TEMP] shutting down, try again later\r\n")
        assert await backend.rest() == b""
        client.close()
        waiting.close()
        await stopping
        await rig.ends("shutdown", "shutdown")


# ---- bugs of ours ----


async def test_exception_in_a_handler_ends_that_session_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        rig.expected_errors.append("a connection's handler failed")
        one, one_backend = await rig.logged_in()
        (session,) = rig.service.sessions
        two, two_backend = await rig.logged_in()
        relay: Any = session._relay
        relay._exchange._lines = 5
        await one.send("STAT\r\n")
        assert await one.rest() == b""
        await Transcript(two, two_backend).play("C: STAT\nB: STAT\nR: +OK 1 2\nS: +OK 1 2")
        assert await one_backend.rest() == b""
        assert [record["event.reason"] for record in rig.audit("session_end")] == ["internal"]
        (session,) = rig.service.sessions
        relay = session._relay
        relay._exchange._waiting_for = 2
        relay._exchange._outstanding = 5
        await two_backend.send("garbage\r\n")
        assert await two.rest() == GONE
        await rig.ends("internal", "internal")


async def test_exception_before_the_login_ends_that_session_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        rig.expected_errors.append("a connection's handler failed")
        client = await rig.greeted()
        (session,) = rig.service.sessions
        assert session._authorization is not None
        core: Any = session._authorization._dialogue.core
        core._lines = None
        await client.send("NOOP\r\n")
        assert await client.rest() == b""
        await rig.ends("internal")


# ---- everything at once ----


@pytest.mark.parametrize("capa", ["TOP UIDL", "TOP UIDL PIPELINING"])
async def test_whole_session_in_one_segment_and_fin(tmp_path: Path, capa: str) -> None:
    async with running(tmp_path) as rig:
        client = await rig.client()
        await client.send("USER alice\r\nPASS canary-pw-alice\r\nSTAT\r\nDELE 1\r\nQUIT\r\n")
        client.half_close()
        backend = await rig.backend.logged_in(capa)
        await Transcript(client, backend).play("""
            B: STAT
            R: +OK 1 2
            B: DELE 1
            R: +OK
            B: QUIT
            R: +OK bye
            S: +OK POP3 ready
            S: +OK send PASS
            S: +OK Logged in
            S: +OK 1 2
            S: +OK
            S: +OK bye
        """)
        assert await client.rest() == b""
        (end,) = await rig.ends("logout")
        assert end["pop3.committed"] is True


async def test_backend_that_resets_while_the_login_is_recorded(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        await client.send("USER alice\r\nPASS canary-pw-alice\r\n")
        backend = await rig.backend.logged_in()
        backend.reset()
        await client.expect("+OK send PASS")
        await client.expect("+OK Logged in")
        await client.send("STAT\r\n")
        assert await client.rest() == GONE
        await rig.ends("backend_lost")


async def test_quit_waits_for_a_whole_reply_that_the_client_has_not_taken(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in(receive=4096)
        (session,) = rig.service.sessions
        relay: Any = session._relay
        relay._client._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await client.send("RETR 1\r\nQUIT\r\n")
        await backend.expect("RETR 1")
        relay._backend.pause()  # so that the whole reply is there at once
        reply = b"+OK\r\n" + (b"x" * 98 + b"\r\n") * 600 + b".\r\n"
        await backend.send(reply)
        relay._backend.resume()
        await until(lambda: relay._client.pending, "back-pressure")
        assert relay._exchange.awaiting is None, "the reply is not complete"
        assert await backend.silent(), "QUIT before the client has its message (R7)"
        assert await client.take(len(reply)) == reply
        await backend.expect("QUIT")
        await backend.send("+OK bye\r\n")
        await client.expect("+OK bye")
        await rig.ends("logout")


async def test_client_that_resets_in_the_moment_of_its_login(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        audit = rig.parts.audit
        commit = audit.commit

        async def commit_and_lose() -> None:
            await commit()
            client.reset()

        audit.commit = commit_and_lose
        await client.send("USER alice\r\nPASS canary-pw-alice\r\n")
        backend = await rig.backend.logged_in()
        assert await backend.rest() == b""
        assert backend.ended == "reset"
        await rig.ends("client_lost")


async def test_client_that_resets_while_its_login_is_recorded(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()

        async def never_written() -> None:
            client.reset()
            await asyncio.sleep(3600)

        rig.parts.audit.commit = never_written
        await client.send("USER alice\r\nPASS canary-pw-alice\r\n")
        backend = await rig.backend.logged_in()
        assert await backend.rest() == b""
        assert backend.ended == "reset"
        await rig.ends("client_lost")


async def test_what_is_sent_behind_quit_costs_nobody_the_answer(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await client.send("QUIT\r\n")
        await backend.expect("QUIT")
        await client.send("NOOP\r\nSTAT\r\n")
        await backend.send("+OK bye\r\n")
        assert await client.rest() == b"+OK bye\r\n"
        assert client.ended == "eof", "closing on unread octets is a RST"
        await rig.ends("logout")
