"""Databases: real PostgreSQL and SQLite, rows that make no sense, servers that die, stall and talk nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.auth.hashes import hash_password
from popproxy.auth.stored_hash import HashJudge
from popproxy.config.model_directories import Sql
from popproxy.directories.entry import Answer, Entry, Refused
from popproxy.directories.sql import SqlDirectory, open_engine
from popproxy.errors import Unavailable
from popproxy.state.executors import BoundedExecutor
from popproxy.state.gate import Gate
from popproxy.types import Address, AuthFailure, Location, Secret
from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.postgresql import Postgresql, postgresql
from tests.peers.process import free_port

pytestmark = pytest.mark.long

QUERY = "SELECT password, server, backend_user FROM users WHERE login = :user"
ALICE = canary("alice")
HASH = hash_password(ALICE.encode())
TABLES = f"""
CREATE TABLE users (login text, password text, server text, backend_user text);
INSERT INTO users VALUES
    ('alice', '{HASH}', 'pop1.example.com', 'a.jones'), ('twin', '{HASH}', NULL, NULL), ('twin', '{HASH}', NULL, NULL),
    ('disabled', '!{HASH}', NULL, NULL), ('without', NULL, NULL, NULL), ('broken', '{{FOO}}bar', NULL, NULL),
    ('in clear', '{{PLAIN}}hunter2', NULL, NULL);
CREATE TABLE secrets (password text)
"""
Make = Callable[..., SqlDirectory]


@pytest.fixture(scope="module")
def server(server_certificate: CertificateFiles) -> Iterator[Postgresql]:
    with postgresql(server_certificate, TABLES) as running:
        yield running


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[SqlDirectory] = []

    def open_database(
        url: str,
        password: str | None = None,
        *,
        deadline: float = 20,
        connections: int = 2,
        query: str = QUERY,
        **keys: Any,
    ) -> SqlDirectory:
        if password is not None:
            keys["password"] = {"env": "UNUSED"}
        config = Sql.model_validate({"url": url, "query": query, **keys})
        engine = open_engine(config, None if password is None else Secret(password), connections, 3)
        made.append(SqlDirectory("users", config, engine, Gate("users", connections, 50, deadline)))
        return made[-1]

    yield open_database
    for database in made:
        await database.close()


@pytest.fixture
def in_postgresql(make: Make, server: Postgresql, authority: Authority) -> Callable[..., SqlDirectory]:
    def open_database(**keys: Any) -> SqlDirectory:
        return make(server.url(), server.password, **{"ca": str(authority.ca), **keys})

    return open_database


@pytest.fixture
def in_sqlite(make: Make, tmp_path: Path) -> Callable[..., SqlDirectory]:
    file = tmp_path / "50% of #users.db"  # SQLite opens it by a URI
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.executescript(TABLES)

    def open_database(**keys: Any) -> SqlDirectory:
        return make(f"sqlite:{file}", **keys)

    return open_database


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
def database(request: pytest.FixtureRequest) -> Callable[..., SqlDirectory]:
    """Either of the two."""
    found: Callable[..., SqlDirectory] = request.getfixturevalue(f"in_{request.param}")
    return found


@pytest.fixture
def executor() -> Iterator[BoundedExecutor]:
    pool = BoundedExecutor("hash", threads=2, queue_limit=100, deadline=60)
    yield pool
    pool.close()


async def verify(directory: SqlDirectory, executor: BoundedExecutor, user: str, password: str = "") -> Answer:
    return await HashJudge(directory, executor).verify(user, Secret(password or canary()))


async def test_a_user(database: Make, executor: BoundedExecutor) -> None:
    entry = Entry(None, Location(None, Address("pop1.example.com", 0), "a.jones"), HASH)
    assert await verify(database(), executor, "alice", ALICE) == entry
    assert await database().find("alice") == entry
    assert HASH not in repr(entry)


async def test_refusals(database: Make, executor: BoundedExecutor) -> None:
    directory = database()
    assert await verify(directory, executor, "alice") == Refused(AuthFailure.BAD_CREDENTIALS)
    assert await verify(directory, executor, "nobody") == Refused(stranger=True)
    assert await verify(directory, executor, "twin", ALICE) == Refused(AuthFailure.AMBIGUOUS)
    assert await verify(directory, executor, "disabled", ALICE) == Refused(AuthFailure.DISABLED)
    assert await verify(directory, executor, "without", ALICE) == Refused(AuthFailure.BAD_CREDENTIALS)


@pytest.mark.parametrize("user", ["broken", "in clear"])
async def test_a_hash_that_is_none_is_ours_to_mend(database: Make, executor: BoundedExecutor, user: str) -> None:
    with pytest.raises(Unavailable) as caught:
        await verify(database(), executor, user)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "user", ["' OR '1'='1", "alice'; DROP TABLE users; --", "alice\\", "%", ":user", "{user}", "żółw"]
)
async def test_a_name_is_a_value_and_nothing_else(database: Make, user: str) -> None:
    directory = database()
    assert await directory.find(user) == Refused(stranger=True)
    assert isinstance(await directory.find("alice"), Entry)


async def test_local_and_domain(database: Make) -> None:
    directory = database(query="SELECT password FROM users WHERE login = :local AND 'example.com' = :domain")
    assert isinstance(await directory.find("alice@example.com"), Entry)
    assert await directory.find("alice@example.org") == Refused(stranger=True)


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ("1 AS password", "password is not text"),
        ("password, 5 AS mailbox", "mailbox is not text"),
        ("password, 'a:b:c' AS server", "server holds is not a server"),
        ("password, 'a' AS server, 70000 AS port", "port holds is not a port"),
        ("password, 'a' AS server, '110' AS port", "port holds is not a port"),
        ("password, 'yes' AS disabled", "disabled is not a boolean"),
        ("password, login", "has a column login; columns may be called password, mailbox"),
    ],
)
async def test_columns_that_make_no_sense(database: Make, columns: str, what: str) -> None:
    with pytest.raises(Unavailable, match=what):
        await database(query=f"SELECT {columns} FROM users WHERE login = :user").find("alice")


async def test_all_columns(database: Make) -> None:
    query = (
        "SELECT password, 'A@example.com' AS mailbox, 'main' AS pool, 'a' AS server, 1110 AS port, '' AS backend_user,"
        " login = 'bob' AS disabled FROM users WHERE login = :user"
    )
    found = await database(query=query).find("alice")
    assert found == Entry("A@example.com", Location("main", Address("a", 1110)), HASH)
    query = "SELECT password, login = 'alice' AS disabled FROM users WHERE login = :user"
    assert await database(query=query).find("alice") == Refused(AuthFailure.DISABLED)


@pytest.mark.parametrize(
    ("query", "what"),
    [
        ("SELECT password FROM nowhere WHERE login = :user", "table"),
        ("SELECT nowhere FROM users WHERE login = :user", "column"),
    ],
)
async def test_a_query_that_does_not_run(database: Make, query: str, what: str) -> None:
    for asked in (database(query=query).find("canary-pw-typed"), database(query=query).probe()):
        with pytest.raises(Unavailable, match=what) as caught:
            await asked
        assert "canary-pw-typed" not in str(caught.value)


async def test_the_columns_are_known_beforehand(database: Make) -> None:
    assert await database().probe() == ["password", "server", "backend_user"]


async def test_a_large_answer_is_not_read_to_the_end(database: Make) -> None:
    query = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000)"
        " SELECT 'x' AS password FROM n WHERE :user <> ''"
    )
    started = time.monotonic()
    assert await database(query=query, deadline=60).find("alice") == Refused(AuthFailure.AMBIGUOUS)
    assert time.monotonic() - started < 30


async def test_sqlite_makes_no_database_and_writes_none(make: Make, tmp_path: Path, in_sqlite: Make) -> None:
    missing = tmp_path / "missing.db"
    with pytest.raises(Unavailable, match="unable to open"):
        await make(f"sqlite:{missing}").find("alice")
    assert not missing.exists()
    writing = in_sqlite(query="WITH x AS (SELECT :user) DELETE FROM users RETURNING password")
    with pytest.raises(Unavailable, match="readonly"):
        await writing.find("alice")


@pytest.mark.real
async def test_a_number_for_a_name_that_is_none(in_postgresql: Make) -> None:
    directory = in_postgresql(query="SELECT password FROM users WHERE length(login) = :user")
    with pytest.raises(Unavailable) as caught:
        await directory.find("canary-pw-typed")
    assert "canary-pw-typed" not in str(caught.value)


@pytest.mark.real
async def test_what_the_database_does_not_allow(
    make: Make, in_postgresql: Make, server: Postgresql, authority: Authority
) -> None:
    server.execute("REVOKE ALL ON secrets FROM popproxy")
    with pytest.raises(Unavailable, match="may not read that"):
        await in_postgresql(query="SELECT password FROM secrets WHERE password = :user").find("alice")
    with pytest.raises(Unavailable, match="does not let popproxy in"):
        await make(server.url(), canary(), ca=str(authority.ca)).find("alice")
    with pytest.raises(Unavailable, match="there is no such database"):
        await make(server.url("nowhere"), server.password, ca=str(authority.ca)).find("alice")


@pytest.mark.real
async def test_tls_is_verified_and_there_is_no_way_around_it(
    make: Make, in_postgresql: Make, server: Postgresql, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "somebody else")
    with pytest.raises(Unavailable, match="certificate"):
        await in_postgresql(ca=str(stranger.ca)).find("alice")
    with pytest.raises(Unavailable, match="does not let popproxy in"):
        await make(server.url(), server.password, tls="none").find("alice")
    assert isinstance(await make(server.url("plain"), server.password, tls="none").find("alice"), Entry)


@pytest.mark.real
async def test_a_certificate_for_somebody_else(make: Make, authority: Authority) -> None:
    with postgresql(authority.wrong_host(), TABLES) as other, pytest.raises(Unavailable, match="certificate"):
        await make(other.url(), other.password, ca=str(authority.ca)).find("alice")


@pytest.mark.real
async def test_down_and_up_again(in_postgresql: Make, server: Postgresql) -> None:
    directory = in_postgresql(deadline=10)
    assert isinstance(await directory.find("alice"), Entry)
    await asyncio.to_thread(server.stop)
    try:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await directory.find("alice")
    finally:
        await asyncio.to_thread(server.start)
    assert isinstance(await directory.find("alice"), Entry)


@pytest.mark.real
async def test_connections_that_the_server_has_closed_are_not_told(in_postgresql: Make, server: Postgresql) -> None:
    directory = in_postgresql(connections=3)
    await asyncio.gather(*(directory.find("alice") for _ in range(3)))
    await asyncio.to_thread(
        server.execute, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'popproxy'"
    )
    assert all(isinstance(found, Entry) for found in await asyncio.gather(*(directory.find("alice") for _ in range(3))))


@pytest.mark.real
async def test_silent_and_awake_again(in_postgresql: Make, server: Postgresql) -> None:
    directory = in_postgresql(deadline=1.5)
    assert isinstance(await directory.find("alice"), Entry)
    server.freeze()
    try:
        started = time.monotonic()
        answers = await asyncio.gather(*(directory.find("alice") for _ in range(6)), return_exceptions=True)
        assert all(isinstance(answer, Unavailable) for answer in answers)
        assert time.monotonic() - started < 10
    finally:
        server.thaw()
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(Unavailable):
                assert isinstance(await directory.find("alice"), Entry)
                break


@pytest.mark.real
async def test_fifty_at_a_time(in_postgresql: Make) -> None:
    directory = in_postgresql(connections=4)
    assert all(
        isinstance(found, Entry) for found in await asyncio.gather(*(directory.find("alice") for _ in range(50)))
    )


class Nonsense:
    """Answers every connection with the same octets, and closes it or not."""

    def __init__(self, octets: bytes, close: bool) -> None:
        self._octets = octets
        self._close = close
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                connection.recv(4096)
                connection.sendall(self._octets)
                if self._close:
                    connection.close()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in (self._listener, *self._open):
            sock.close()


@pytest.mark.parametrize("tls", ["require", "none"])
@pytest.mark.parametrize(
    ("octets", "close"),
    [
        (b"", True), (b"", False), (b"S", True), (b"N", False), (b"HTTP/1.1 400 Bad Request\r\n\r\n", True),
        (b"R\0\0\0\x08\0\0", True), (b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I", False), (b"\xff" * 5000, False),
    ],
)  # fmt: skip
async def test_a_server_that_talks_nonsense(make: Make, octets: bytes, close: bool, tls: str) -> None:
    nonsense = Nonsense(octets, close)
    try:
        directory = make(f"postgresql://popproxy@127.0.0.1:{nonsense.port}/mail", canary(), deadline=2, tls=tls)
        with pytest.raises(Unavailable):
            await directory.find("alice")
    finally:
        nonsense.stop()


async def test_nobody_there(make: Make) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        await make(f"postgresql://popproxy@127.0.0.1:{free_port()}/mail", canary()).find("alice")
