"""The embedded backend, judged by Python's own POP3 client."""

from __future__ import annotations

import asyncio
import hashlib
import poplib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from popproxy.demo.backend import Account, MaildirServer, canonical, read_maildrop
from popproxy.demo.realm import SAMPLE
from popproxy.types import Address, Secret

T = TypeVar("T")


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLE, tmp_path / "alice"))


@pytest.fixture
async def backend(maildir: Path) -> AsyncIterator[Address]:
    server = MaildirServer({"alice": Account(Secret("s3 cret"), maildir)})
    yield await server.start()
    await server.stop()


async def client(address: Address, play: Callable[[poplib.POP3], T], login: bool = True) -> T:
    def run() -> T:
        pop = poplib.POP3(address.host, address.port, timeout=60)
        try:
            if login:
                pop.user("alice")
                pop.pass_("s3 cret")
            return play(pop)
        finally:
            pop.close()

    return await asyncio.to_thread(run)


async def test_every_message_arrives_as_it_is_stored(backend: Address, maildir: Path) -> None:
    def fetch(pop: poplib.POP3) -> list[bytes]:
        count, octets = pop.stat()
        messages = [b"".join(line + b"\r\n" for line in pop.retr(number)[1]) for number in range(1, count + 1)]
        assert octets == sum(map(len, messages))
        assert [int(line.split()[1]) for line in pop.list()[1]] == [len(message) for message in messages]
        return messages

    poplib_limit, poplib._MAXLINE = poplib._MAXLINE, 65536  # type: ignore[attr-defined]  # the newsletter is one long line
    try:
        fetched = await client(backend, fetch)
    finally:
        poplib._MAXLINE = poplib_limit  # type: ignore[attr-defined]
    assert fetched == [message.content for message in read_maildrop(maildir)]
    assert len(fetched) == 8


async def test_deletions_happen_in_update_only(backend: Address, maildir: Path) -> None:
    before = read_maildrop(maildir)

    def abandon(pop: poplib.POP3) -> None:
        pop.dele(1)

    def commit(pop: poplib.POP3) -> bytes:
        pop.dele(2)
        pop.dele(3)
        pop.rset()
        pop.dele(4)
        with pytest.raises(poplib.error_proto, match="deleted"):
            pop.retr(4)
        return pop.quit()

    await client(backend, abandon)
    assert read_maildrop(maildir) == before
    assert (await client(backend, commit)).startswith(b"+OK")
    assert read_maildrop(maildir) == [message for message in before if message is not before[3]]


async def test_deletion_that_fails_is_reported_at_quit(backend: Address, maildir: Path) -> None:
    def delete_what_is_gone(pop: poplib.POP3) -> None:
        pop.dele(1)
        read_maildrop(maildir)[0].path.unlink()
        pop.quit()

    with pytest.raises(poplib.error_proto, match="not removed"):
        await client(backend, delete_what_is_gone)


async def test_wrong_password_carries_auth_code(backend: Address) -> None:
    def play(pop: poplib.POP3) -> None:
        pop.user("alice")
        pop.pass_("s3")

    with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\]"):
        await client(backend, play, login=False)


async def test_second_session_finds_the_maildrop_in_use(backend: Address) -> None:
    def play(pop: poplib.POP3) -> None:
        other = poplib.POP3(backend.host, backend.port, timeout=60)
        try:
            other.user("alice")
            with pytest.raises(poplib.error_proto, match=r"\[IN-USE\]"):
                other.pass_("s3 cret")
        finally:
            other.close()

    await client(backend, play)
    await client(backend, lambda pop: pop.quit())  # the lock ended with the first session


async def test_top_sends_headers_and_as_many_lines_as_asked(backend: Address, maildir: Path) -> None:
    content = read_maildrop(maildir)[2].content
    header, _, body = content.partition(b"\r\n\r\n")
    lines = await client(backend, lambda pop: pop.top(3, 5)[1])
    assert lines == [*header.split(b"\r\n"), b"", *body.split(b"\r\n")[:5]]
    everything = await client(backend, lambda pop: pop.top(3, 10000)[1])
    assert b"".join(line + b"\r\n" for line in everything) == content


async def test_capa_and_uidl(backend: Address) -> None:
    def play(pop: poplib.POP3) -> tuple[set[str], list[bytes], bytes]:
        return set(pop.capa()), pop.uidl()[1], pop.uidl(2)

    names, listing, single = await client(backend, play)
    assert {"TOP", "UIDL", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE"} <= names
    assert single == b"+OK " + listing[1]
    assert len({line.split()[1] for line in listing}) == 8


async def test_pipelined_commands_are_answered_in_order(backend: Address) -> None:
    reader, writer = await asyncio.open_connection(backend.host, backend.port)
    writer.write(b"USER alice\r\nPASS s3 cret\r\nLIST 1\r\nDELE 1\r\nLIST 1\r\nBOGUS\r\nUSER x\r\nRSET\r\nQUIT\r\n")
    lines = [line[:4] for line in (await reader.read()).splitlines()]
    assert lines == [b"+OK ", b"+OK ", b"+OK ", b"+OK ", b"+OK ", b"-ERR", b"-ERR", b"-ERR", b"+OK ", b"+OK "]
    writer.close()


async def test_line_without_end_is_no_command(backend: Address, maildir: Path) -> None:
    reader, writer = await asyncio.open_connection(backend.host, backend.port)
    writer.write(b"USER alice\r\nPASS s3 cret\r\nDELE 1\r\nQUIT")
    writer.write_eof()
    await reader.read()
    assert len(read_maildrop(maildir)) == 8
    writer.close()


async def test_overlong_line_ends_the_session(backend: Address) -> None:
    reader, writer = await asyncio.open_connection(backend.host, backend.port)
    writer.write(b"USER " + b"a" * 10000 + b"\r\n")
    assert (await reader.readline()).startswith(b"+OK")
    assert await reader.readline() == b"-ERR line too long\r\n"
    writer.close()


@pytest.mark.parametrize(
    ("stored", "sent"), [(b"", b""), (b"a", b"a\r\n"), (b"a\nb\r\n\n", b"a\r\nb\r\n\r\n"), (b"x\ry\n", b"x\ry\r\n")]
)
def test_canonical_form(stored: bytes, sent: bytes) -> None:
    assert canonical(stored) == sent


def test_sample_maildrop_is_byte_exact() -> None:
    """Line ends, 8-bit octets and the missing last line end survive git, wheels and editors."""
    digest = hashlib.sha256()
    for message in read_maildrop(SAMPLE):
        digest.update(message.path.read_bytes())
    assert digest.hexdigest() == "37494ac8292404572c2f5d2b9f174c8d0807dfaa571ab8cb30e394142dbbc5d0"
