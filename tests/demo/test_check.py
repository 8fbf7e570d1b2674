"""``popproxy demo --check`` must notice when something is not as it should be."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest

from popproxy.demo import backend
from popproxy.demo.backend import Account, MaildirServer, Message
from popproxy.demo.check import check_demo
from popproxy.demo.kdc import missing
from popproxy.demo.scenarios import scenarios
from popproxy.types import Secret

PLAYED = len(scenarios(kerberos=missing() is None))


async def checked() -> tuple[int, str]:
    stream = io.StringIO()
    return await check_demo(stream), stream.getvalue()


pytestmark = pytest.mark.long


async def test_wrong_octet_and_deletion_that_does_not_happen_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    stuffed = backend._stuffed

    def corrupt(lines: Iterable[bytes]) -> bytes:
        return stuffed(line.replace(b"soup", b"soap") for line in lines)

    monkeypatch.setattr(backend, "_stuffed", corrupt)
    monkeypatch.setattr(backend, "_removed", lambda path: True)
    code, text = await checked()
    assert code == 1
    assert "FAILED: message 1 differs at octet" in text
    assert "FAILED: does not hold: exactly messages 2 and 4 are gone" in text
    wrong = 3 if missing() is None else 2  # message 1 is fetched with a ticket, too
    assert f"{PLAYED - wrong} of {PLAYED} as they should be, {wrong} not" in text


async def test_deletion_without_quit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that deletes at once, so that an abandoned deletion is not undone."""
    chosen = backend._Session._dele

    async def eager(session: backend._Session, argument: str) -> None:
        message = session.messages[int(argument) - 1]
        await chosen(session, argument)
        message.path.unlink(missing_ok=True)

    monkeypatch.setattr(backend, "_removed", lambda path: True)
    monkeypatch.setattr(backend._Session, "_dele", eager)
    code, text = await checked()
    assert code == 1
    assert "FAILED: does not hold: nothing is gone before QUIT" in text
    assert "FAILED: does not hold: the message is still there" in text


async def test_backend_that_takes_any_password_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gullible(session: backend._Session, password: str) -> None:
        name = session.claimed or ""
        session.server.accounts[name] = Account(Secret(password), session.server.accounts[name].maildir)
        await honest(session, password)

    honest = backend._Session._pass
    monkeypatch.setattr(backend._Session, "_pass", gullible)
    code, text = await checked()
    assert code == 1
    assert r"FAILED: expected -ERR [AUTH], got +OK" in text


async def test_scenario_that_breaks_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(server: MaildirServer, *_: object) -> list[Message]:
        raise OSError("no maildrop today")

    monkeypatch.setattr(backend, "read_maildrop", refuse)
    code, text = await checked()
    assert code == 1
    assert text.count("FAILED") >= 8
    assert f" of {PLAYED} as they should be" in text
