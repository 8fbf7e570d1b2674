"""Users in a database: one SELECT, whose columns say what is known. The only home of SQLAlchemy and its drivers."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from popproxy.config.model_directories import Sql
from popproxy.config.units import parse_server
from popproxy.directories.entry import Answer, Entry, Refused
from popproxy.directories.placeholders import fields_of
from popproxy.errors import Unavailable
from popproxy.observe.logs import get_logger
from popproxy.state.gate import Gate
from popproxy.types import Address, AuthFailure, Location, Secret

COLUMNS: Final = ("password", "mailbox", "pool", "server", "port", "backend_user", "disabled")
"""What a column of the query may be called. Any others are a mistake."""

# A server may repeat the values that it was asked with, and a user's name may be a password typed in the wrong field.
_SQLSTATES = {
    "28": "it does not let popproxy in (user, password or pg_hba.conf)",
    "3D": "there is no such database",
    "42501": "the user of the database may not read that",
    "42601": "the query has a mistake in its syntax",
    "42703": "the query names a column that is not there",
    "42P01": "the query names a table that is not there",
    "42": "the query has a mistake",
    "53": "it has no resources left",
    "57P03": "it is starting up",
    "57": "it was shut down or cancelled the query",
    "22": "a value has another type than the query wants",
}

Engine = AsyncEngine

log = get_logger("sql")


def open_engine(config: Sql, password: Secret | None, connections: int, connect_seconds: float) -> Engine:
    """The engine for a database; nothing is connected yet.

    Raises OSError and ssl.SSLError for the CA file, UnicodeDecodeError for the password.
    """
    target = config.target
    common: dict[str, Any] = {
        "hide_parameters": True, "poolclass": AsyncAdaptedQueuePool, "pool_size": connections, "max_overflow": 0,
    }  # fmt: skip
    if target.kind == "sqlite":
        # read only, and no database is made where there is none
        query = {"mode": "ro", "uri": "true"}
        url = URL.create("sqlite+aiosqlite", database=f"file:{quote(target.database)}", query=query)
        return create_async_engine(url, connect_args={"timeout": connect_seconds}, **common)
    secret = None if password is None else password.reveal().decode()
    url = URL.create("postgresql+asyncpg", target.user, secret, target.host or None, target.port, target.database)
    arguments: dict[str, Any] = {"timeout": connect_seconds, "server_settings": {"application_name": "popproxy"}}
    arguments["ssl"] = _tls(config) if config.tls == "require" and target.host else False
    return create_async_engine(url, connect_args=arguments, **common)


def _tls(config: Sql) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(config.ca) if config.ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class SqlDirectory:
    """See Directory, of which it has `find` alone: a database does not judge passwords, it holds their hashes."""

    kind = "sql"

    def __init__(self, name: str, config: Sql, engine: Engine, gate: Gate) -> None:
        self.name = name
        self._query = text(config.query)
        self._wanted = frozenset(self._query.compile().params)
        self._engine = engine
        self._gate = gate

    async def find(self, user: str) -> Answer:
        """The one row of a user. See Directory."""
        rows = await self._gate.run(lambda: self._rows(user))
        if not rows:
            return Refused(stranger=True)
        if len(rows) > 1:
            log.error("the query finds more than one row", directory=self.name, user=user)
            return Refused(AuthFailure.AMBIGUOUS)
        return self._entry(rows[0])

    async def probe(self) -> list[str]:
        """Ask for somebody whom nobody is called; the columns of the answer. Raises Unavailable."""
        return await self._gate.run(self._columns)

    async def close(self) -> None:
        """Give back the connections."""
        await self._gate.close()
        await self._engine.dispose()

    async def _rows(self, user: str) -> list[Mapping[str, Any]]:
        """At most two rows. Tried again if the connection was one that the server had closed in the meantime."""
        fields = fields_of(user)
        values = {name: fields[name] for name in self._wanted}
        for attempt in (1, 2):
            try:
                async with self._engine.connect() as connection:
                    result = await connection.stream(self._query, values)
                    return [dict(row) for row in await result.mappings().fetchmany(2)]
            except DBAPIError as error:
                if attempt == 1 and error.connection_invalidated:
                    continue
                raise self._unavailable(error) from None
            except Exception as error:  # drivers believe in servers: nonsense gives any kind of exception
                raise self._unavailable(error) from None
        raise AssertionError("unreachable")

    async def _columns(self) -> list[str]:
        fields = fields_of("popproxy-check-nobody@popproxy.invalid")
        try:
            async with self._engine.connect() as connection:
                result = await connection.stream(self._query, {name: fields[name] for name in self._wanted})
                return list(result.keys())
        except Exception as error:
            raise self._unavailable(error) from None

    def _entry(self, row: Mapping[str, Any]) -> Entry | Refused:
        unknown = row.keys() - set(COLUMNS)
        if unknown:
            raise self._wrong(f"the query has a column {min(unknown)}; columns may be called {', '.join(COLUMNS)}")
        disabled = row.get("disabled")
        if disabled is not None and not isinstance(disabled, bool | int):
            raise self._wrong("the column disabled is not a boolean")
        if disabled:
            return Refused(AuthFailure.DISABLED)
        location = Location(self._text(row, "pool"), self._server(row), self._text(row, "backend_user"))
        return Entry(
            self._text(row, "mailbox"), None if location == Location() else location, self._text(row, "password")
        )

    def _text(self, row: Mapping[str, Any], column: str) -> str | None:
        value = row.get(column)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self._wrong(f"the column {column} is not text")
        if not value.isprintable():
            raise self._wrong(f"what the column {column} holds has a control character")
        return value

    def _server(self, row: Mapping[str, Any]) -> Address | None:
        host, port = self._text(row, "server"), row.get("port")
        if host is None:
            return None
        try:
            address = parse_server(host)
        except ValueError:
            raise self._wrong("what the column server holds is not a server") from None
        if port is None:
            return address
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            raise self._wrong("what the column port holds is not a port")
        return Address(address.host, port)

    def _wrong(self, what: str) -> Unavailable:
        return Unavailable(f"{self.name}: {what}", "directory")

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(f"{self.name}: {explain(error)}", "directory")


def explain(error: Exception) -> str:
    """In words of ours, or in those of SQLite, which repeat no values."""
    original = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(original, "sqlstate", None)
    if isinstance(state, str):
        words = next((_SQLSTATES[key] for key in (state, state[:2]) if key in _SQLSTATES), "it cannot answer")
        return f"{words} (SQLSTATE {state})"
    cause = getattr(original, "__cause__", None) or original
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {cause.verify_message.rstrip('.')}"
    if isinstance(cause, OSError):
        return f"it cannot be reached: {cause.strerror or type(cause).__name__}"
    if type(cause).__module__.partition(".")[0] == "sqlite3":
        return str(cause)
    return f"it cannot be asked ({type(cause).__name__})"
