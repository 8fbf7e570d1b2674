"""When a server dies or misbehaves, the client never takes half a message for a whole one, and nothing is deleted."""

from __future__ import annotations

import asyncio

import pytest

from tests.peers.canaries import canary
from tests.peers.messages import multiline
from tests.peers.proxy import StartProxy, settings
from tests.peers.raw import RawClient
from tests.peers.scripted import Cut, Reaction, ScriptedBackend

MESSAGE = b"Subject: x\r\n\r\n" + b"x" * 4000 + b"\r\n"
REPLY = b"+OK\r\n" + multiline(MESSAGE)


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
@pytest.mark.parametrize("left", [1, 2, 3, 4, 5, 500])
async def test_death_in_a_message_is_no_end_of_the_message(start_proxy: StartProxy, left: int, reset: bool) -> None:
    async with ScriptedBackend([MESSAGE], on_command={"RETR 1": Cut(REPLY[:-left], reset=reset)}) as backend:
        proxy = await asyncio.to_thread(start_proxy, settings(backend.address))
        async with RawClient(proxy.port()) as client:
            await client.login("alice", canary())
            await client.command("DELE 1")
            backend.maildrop.append(MESSAGE)
            await client.send(b"RETR 1\r\nQUIT\r\n")
            received = await client.rest()
        [records] = await asyncio.to_thread(proxy.sessions)

    assert not received.endswith(b"\r\n.\r\n")
    assert b"-ERR" not in received
    assert REPLY.startswith(received)
    assert reset or received == REPLY[:-left]
    assert backend.sessions[0].verbs.count("QUIT") == 0
    [retrieval] = [record for record in records if record["event.action"] == "retr"]
    assert (retrieval["pop3.complete"], retrieval["event.outcome"]) == (False, "failure")
    assert records[-1]["event.reason"] == "backend_lost"
    assert records[-1]["pop3.abandoned"] == [{"number": 1}]


@pytest.mark.parametrize(
    ("answer", "reply", "committed", "reason"),
    [
        (b"+OK bye\r\n", b"+OK", True, "logout"),
        (b"-ERR some messages not removed\r\n", b"-ERR", "partial", "update_refused"),
        (Cut(), b"-ERR [SYS/TEMP]", "unknown", "update_unknown"),
        (Cut(reset=True), b"-ERR [SYS/TEMP]", "unknown", "update_unknown"),
        (Cut(b"+O"), b"-ERR [SYS/TEMP]", "unknown", "update_unknown"),
    ],
    ids=["committed", "refused", "end", "reset", "half a reply"],
)
async def test_outcome_of_quit_is_told_as_it_is(
    start_proxy: StartProxy, answer: Reaction, reply: bytes, committed: bool | str, reason: str
) -> None:
    async with ScriptedBackend([MESSAGE], on_command={"QUIT": answer}) as backend:
        proxy = await asyncio.to_thread(start_proxy, settings(backend.address))
        async with RawClient(proxy.port()) as client:
            await client.login("alice", canary())
            await client.command("DELE 1")
            assert (await client.command("QUIT")).startswith(reply)
        [records] = await asyncio.to_thread(proxy.sessions)

    [update] = [record for record in records if record["event.action"] == "update"]
    assert update["pop3.committed"] == committed
    assert update["pop3.deleted"] == [{"number": 1}]
    assert records[-1]["event.reason"] == reason


@pytest.mark.parametrize("ending", [b"", b"QUIT", b"QUIT\r", b"QUI"], ids=["nothing", "quit", "quit-cr", "qui"])
async def test_client_that_vanishes_commits_nothing(start_proxy: StartProxy, ending: bytes) -> None:
    async with ScriptedBackend([MESSAGE]) as backend:
        proxy = await asyncio.to_thread(start_proxy, settings(backend.address))
        async with RawClient(proxy.port()) as client:
            await client.login("alice", canary())
            await client.command("DELE 1")
            await client.send(ending)
        session = await backend.ended()
        [records] = await asyncio.to_thread(proxy.sessions)

    assert not session.updated
    assert "QUIT" not in session.verbs
    assert records[-1]["pop3.abandoned_total"] == 1


@pytest.mark.parametrize(
    "greeting",
    [b"-ERR [SYS/PERM] go away\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x01\x02", Cut(), b"+OK" * 10_000],
    ids=["refusal", "http", "tls", "end", "endless"],
)
async def test_backend_with_an_odd_greeting_is_never_a_wrong_password(
    start_proxy: StartProxy, greeting: Reaction
) -> None:
    async with ScriptedBackend([MESSAGE], greeting=greeting) as backend:
        configuration = settings(backend.address, timeouts={"backend_login": "1s", "drain": "1s"})
        proxy = await asyncio.to_thread(start_proxy, configuration)
        async with RawClient(proxy.port()) as client:
            answer = await client.login("alice", canary())
        records = await asyncio.to_thread(proxy.settled)

    assert answer.startswith((b"-ERR [SYS/TEMP]", b"-ERR [SYS/PERM]"))
    assert b"go away" not in answer
    assert "PASS" not in backend.sessions[0].verbs
    assert "bad_credentials" not in str(records)
