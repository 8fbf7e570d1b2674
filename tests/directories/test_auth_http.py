"""Web services that are asked as nginx asks its auth_http: what they are told, and what their answers mean."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.app.directories import open_service
from popproxy.config.model import Config
from popproxy.config.model_directories import AuthHttp
from popproxy.directories.auth_http import AuthHttpDirectory, escape
from popproxy.directories.entry import Answer, Entry, Refused
from popproxy.errors import Unavailable
from popproxy.sasl.credentials import ApopCredential, CramMd5Credential
from popproxy.state.gate import Gate
from popproxy.types import Address, AuthFailure, Location, Secret, Visit
from tests.peers.auth_http import Account, Responder, responder
from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.process import free_port

ALICE = canary("alice")
USERS = {
    "alice": Account(ALICE, {"Auth-Server": "192.0.2.7", "Auth-Port": "110", "Auth-User": "a.jones"}),
    "bob": Account(f"100% {canary('bob')} \u00fc"),
}
VISIT = Visit(Address("192.0.2.42", 40000), True, 2)
Make = Callable[..., AuthHttpDirectory]


@pytest.fixture
def server() -> Iterator[Responder]:
    with responder(USERS) as running:
        yield running


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[AuthHttpDirectory] = []

    def open_directory(url: str, *, deadline: float = 20, connections: int = 2, queue: int = 50, **keys: Any) -> Any:
        section = AuthHttp.model_validate({"url": url, **keys})
        config = Config.model_validate(
            {"listeners": [{"name": "a", "listen": [":0"]}], "pools": {"a": {"servers": ["a"]}}}
        )
        opened = open_service(config, "web", section, connections)
        gate = Gate("web", connections, queue, deadline)
        made.append(AuthHttpDirectory("web", section, opened.keys, opened.http, gate))
        return made[-1]

    yield open_directory
    for directory in made:
        await directory.close()


async def verify(directory: AuthHttpDirectory, user: str = "alice", password: str = "") -> Answer:
    return await directory.verify(user, Secret(password or canary()), VISIT)


async def test_right_and_wrong_passwords(make: Make, server: Responder) -> None:
    directory = make(server.url)
    found = Entry(None, Location(None, Address("192.0.2.7", 110), "a.jones"))
    assert await verify(directory, "alice", ALICE) == found
    assert await verify(directory, "bob", USERS["bob"].password) == Entry()
    assert await verify(directory, "alice") == Refused(stranger=True)
    assert await verify(directory, "nobody") == Refused(stranger=True)
    assert await directory.verify("alice", Secret(""), VISIT) == Refused(AuthFailure.EMPTY)
    assert len(server.requests) == 4


async def test_what_the_service_is_told(make: Make, server: Responder, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sesame\n")
    key.chmod(0o600)
    await verify(make(server.url, headers={"X-Auth-Key": {"file": str(key)}}), "alice", "a b%c")
    (told,) = server.requests
    told.pop("User-Agent")
    assert told == {
        "Host": server.url.split("/")[2], "Accept": "*/*", "Auth-Method": "plain", "Auth-User": "alice",
        "Auth-Pass": "a%20b%25c", "Auth-Protocol": "pop3", "Auth-Login-Attempt": "2", "Client-IP": "192.0.2.42",
        "Auth-SSL": "on", "X-Auth-Key": "sesame",
    }  # fmt: skip


def test_nothing_that_a_client_types_can_end_a_header() -> None:
    for octet in range(256):
        sent = escape(b"x" + bytes([octet]))
        assert sent.isprintable()
        assert not set(sent) & {" ", "\r", "\n", "\0", "\x7f"}
    assert escape("m\u00fcller@example.com".encode()) == "m\u00fcller@example.com"
    assert escape(b"m\xfcller") == "m%FCller"


async def test_client_certificates_are_named_and_cannot_end_a_header(
    make: Make, server: Responder, tmp_path: Path
) -> None:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alice\r\nAuth-SSL-Verify: no")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(0xABC).not_valid_before(now).not_valid_after(now + datetime.timedelta(1))
    der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    await make(server.url).verify("alice", Secret(ALICE), Visit(VISIT.client, True, 1, der))
    told = server.requests[0]
    assert (told["Auth-SSL-Verify"], told["Auth-SSL-Serial"]) == ("SUCCESS", "ABC")
    assert told["Auth-SSL-Subject"].startswith("CN=alice\\0D\\0AAuth-SSL-Verify")
    assert told["Auth-SSL-Fingerprint"] == hashlib.sha1(der).hexdigest()


async def test_digests_are_judged_by_who_knows_the_secret(make: Make, server: Responder) -> None:
    directory, salt = make(server.url), b"<1.2@mail.example.com>"
    digest = Secret(hashlib.md5(salt + ALICE.encode()).hexdigest())
    answer = await directory.verify_digest("alice", ApopCredential("alice", salt, digest, visit=VISIT))
    location = Location(None, Address("192.0.2.7", 110), "a.jones", Secret(ALICE))
    assert answer == Entry(None, location)
    assert ALICE not in repr(answer)
    told = server.requests[0]
    assert (told["Auth-Method"], told["Auth-Salt"]) == ("apop", salt.decode())
    wrong = ApopCredential("alice", salt, Secret("0" * 32))
    assert await directory.verify_digest("alice", wrong) == Refused(stranger=True)
    import hmac

    right = Secret(hmac.digest(ALICE.encode(), salt, "md5").hex())
    cram = CramMd5Credential("alice", salt, right)
    assert await directory.verify_digest("alice", cram) == Entry(None, location)
    assert server.requests[2]["Auth-Method"] == "cram-md5"


async def test_over_tls_and_a_unix_socket(
    make: Make, server_certificate: CertificateFiles, authority: Authority, tmp_path: Path
) -> None:
    with responder(USERS, server_certificate) as server:
        assert isinstance(await verify(make(server.url, ca=str(authority.ca)), "alice", ALICE), Entry)
        with pytest.raises(Unavailable, match="its certificate is refused"):
            await verify(make(server.url))
        assert len(server.requests) == 1
    with responder(USERS, path=tmp_path / "auth.sock") as server:
        assert isinstance(await verify(make(server.url), "alice", ALICE), Entry)
        assert server.requests[0]["Host"] == "localhost"
        server.stop()
        with pytest.raises(Unavailable, match=r"it closes|cannot be reached"):
            await verify(make(server.url))


OK = b"HTTP/1.0 200 OK\r\nAuth-Status: OK\r\n"


@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        (OK, Entry()),
        (OK + b"Auth-Server: ::2\r\nAuth-Port: 995\r\n", Entry(None, Location(None, Address("::2", 995)))),
        (OK + b"Auth-Server: pop1.example.com\r\n", Entry(None, Location(None, Address("pop1.example.com", 0)))),
        (b"HTTP/1.0 403 Forbidden\r\nAuth-Status: [AUTH] no\r\n", Refused(stranger=True)),
        (b"HTTP/1.0 200 OK\r\nauth-status: Invalid login, try again\r\n", Refused(stranger=True)),
    ],
)  # fmt: skip
async def test_answers(make: Make, server: Responder, octets: bytes, answer: Answer) -> None:
    server.says = octets + b"\r\n"
    assert await verify(make(server.url)) == answer


NO = b"HTTP/1.0 200 OK\r\nAuth-Status: "


@pytest.mark.parametrize(
    "octets",
    [
        b"", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 401 Who are you\r\n", b"HTTP/1.0 500 Oops\r\nAuth-Status: OK\r\n",
        b"HTTP/1.0 302 There\r\nLocation: http://127.0.0.1:9/\r\nAuth-Status: OK\r\n", b"+OK POP3 ready\r\n",
        NO + b"Temporary server problem, try again later\r\n", NO + b"No\r\nAuth-Error-Code: 451 4.3.0\r\n",
        NO + b"[SYS/TEMP] come back\r\n", NO + b"WAIT\r\n", OK + b"Auth-Status: No\r\n", OK + b"Auth-Server: a b\r\n",
        OK + b"Auth-Server: a\r\nAuth-Port: 70000\r\n", OK + b"Auth-Server: unix:/tmp/x\r\n",
        OK + b"Auth-User: a\x01b\r\n", OK + b"X: " + b"x" * 10_000 + b"\r\n", OK + b"X: x\r\n" * 100_000,
        b"\xff" * 1000,
    ],
)  # fmt: skip
async def test_nonsense_is_nobodys_wrong_password(make: Make, server: Responder, octets: bytes) -> None:
    server.says = octets and octets + b"\r\n"
    with pytest.raises(Unavailable) as caught:
        await verify(make(server.url))
    assert str(caught.value).startswith("web: ")
    assert "come back" not in str(caught.value)  # a service may repeat a password


async def test_own_words_for_trouble(make: Make, server: Responder) -> None:
    server.says = b"HTTP/1.0 200 OK\r\nAuth-Status: Datenbank weg\r\n\r\n"
    assert await verify(make(server.url)) == Refused(stranger=True)
    with pytest.raises(Unavailable):
        await verify(make(server.url, temporary="Datenbank"))


async def test_what_follows_the_headers_is_not_read(make: Make, server: Responder) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(OK + b"\r\n")
        for _ in range(1000):
            connection.sendall(b"x" * 65536)

    server.says = endless
    directory = make(server.url)
    for _ in range(3):
        assert await verify(directory) == Entry()


async def test_a_silent_service_is_given_up_at_the_deadline_and_nobody_waits_behind_it(
    make: Make, server: Responder
) -> None:
    directory = make(server.url, deadline=0.5, connections=1, queue=1)
    server.freeze()
    started = time.monotonic()
    asked = [asyncio.ensure_future(verify(directory)) for _ in range(3)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable] * 3
    reasons = sorted(answer.reason for answer in answers if isinstance(answer, Unavailable))
    assert reasons == ["deadline", "deadline", "queue_full"]
    assert time.monotonic() - started < 15
    server.thaw()
    assert isinstance(await verify(directory, "alice", ALICE), Entry)


async def test_a_service_that_comes_back(make: Make, server: Responder) -> None:
    directory = make(server.url)
    assert isinstance(await verify(directory, "alice", ALICE), Entry)
    server.stop()
    with pytest.raises(Unavailable):
        await verify(directory)
    server.start()
    assert isinstance(await verify(directory, "alice", ALICE), Entry)


async def test_nobody_there(make: Make) -> None:
    with pytest.raises(Unavailable, match="web: it cannot be reached"):
        await verify(make(f"http://127.0.0.1:{free_port()}/auth"))


async def test_more_questions_than_connections(make: Make, server: Responder) -> None:
    directory = make(server.url, connections=2)
    asked = [verify(directory, "alice", ALICE if number % 2 else "") for number in range(40)]
    answers = await asyncio.gather(*asked)
    assert [isinstance(answer, Entry) for answer in answers] == [bool(number % 2) for number in range(40)]
