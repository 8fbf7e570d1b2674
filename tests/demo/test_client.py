"""The demo's own client must see every difference, and must not show a secret."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from popproxy.demo.backend import Account, MaildirServer, read_maildrop
from popproxy.demo.certificates import make_authority
from popproxy.demo.client import Client, MismatchError
from popproxy.demo.realm import SAMPLE
from popproxy.demo.tour import audit_line, farewell
from popproxy.types import Address, Secret


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    path.write_bytes(make_authority().certificate_pem())
    return path


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Address]:
    maildir = Path(shutil.copytree(SAMPLE, tmp_path / "alice"))
    server = MaildirServer({"alice": Account(Secret("canary"), maildir)})
    yield await server.start()
    await server.stop()


async def test_pipelined_bodies_come_back_without_stuffing(backend: Address, ca: Path, tmp_path: Path) -> None:
    def play() -> list[bytes]:
        with Client(backend, ca) as client:
            client.log_in("alice", Secret("canary"))
            client.send("RETR 3", "RETR 7", "TOP 3 1", "QUIT")
            bodies = []
            for _ in range(3):
                client.expect(b"+OK")
                bodies.append(client.body())
            client.expect(b"+OK")
            client.ended()
            return bodies

    stored = [message.content for message in read_maildrop(tmp_path / "alice")]
    bodies = await asyncio.to_thread(play)
    assert bodies[:2] == [stored[2], stored[6]]
    assert stored[2].startswith(bodies[2])


async def test_transcript_shows_no_password(backend: Address, ca: Path) -> None:
    def play() -> list[str]:
        with Client(backend, ca) as client:
            client.ask("USER alice")
            client.ask("PASS canary")
            client.send("APOP alice canary", "AUTH PLAIN canary")
            client.expect(b"-ERR")
            client.expect(b"-ERR")
            return client.transcript

    transcript = await asyncio.to_thread(play)
    assert "C: PASS ****" in transcript
    assert "canary" not in "\n".join(transcript)


async def test_unexpected_answer_is_a_mismatch(backend: Address, ca: Path) -> None:
    def play() -> None:
        with Client(backend, ca) as client:
            client.ask("NONSENSE")

    with pytest.raises(MismatchError, match=r"expected \+OK, got -ERR"):
        await asyncio.to_thread(play)


def record(action: str, outcome: str, **fields: object) -> dict[str, object]:
    base = {"@timestamp": "2024-01-12T09:30:15.000001Z", "event.action": action, "event.outcome": outcome}
    return {**base, **{name.replace("__", "."): value for name, value in fields.items()}}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            record("auth", "failure", event__reason="bad_credentials", auth__mechanism="USER", **{"user.hash": "00"}),
            "09:30:15  (unknown)  auth         failure  USER  without TLS  bad_credentials",
        ),
        (
            record("retr", "failure", user__name="bob", pop3__message_number=2, pop3__octets=7, pop3__complete=False),
            "09:30:15  bob        retr         failure  message 2, 7 octets, cut short",
        ),
        (
            record("update", "unknown", user__name="bob", pop3__committed="unknown", pop3__deleted=[{"number": 4}]),
            "09:30:15  bob        update       unknown  4 deleted?",
        ),
    ],
)
def test_audit_record_as_a_line(given: dict[str, object], shown: str) -> None:
    line = audit_line(given)
    assert line is not None
    assert line.plain.rstrip() == shown


def test_farewell_counts_only_what_was_committed() -> None:
    records = [
        record("auth", "success"),
        record("auth", "failure"),
        record("update", "success", pop3__committed=True, pop3__deleted=[{"number": 1}, {"number": 2}]),
        record("update", "failure", pop3__committed="partial", pop3__deleted=[{"number": 3}]),
        record("session_end", "failure", pop3__abandoned=[{"number": 5}], pop3__committed=False),
    ]
    assert farewell(records).startswith(
        "Sessions: 1. Logins: 1, refused: 1. Messages fetched: 0, deleted: 2, deletions undone: 1."
    )
