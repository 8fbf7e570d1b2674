"""Checks of the databases: can each be reached, is its TLS good, does the query run, is what it selects understood?"""

from __future__ import annotations

from popproxy.app.checks.finding import Finding, misconfigured, ok, problem, warning
from popproxy.app.directories import CannotStart, open_sql
from popproxy.config.model import Config
from popproxy.config.model_directories import Sql
from popproxy.errors import ConfigError, Unavailable
from popproxy.state.gate import Gate

PROBE_SECONDS = 10.0
"""Longest time for one database; all are asked at once."""


async def check_sql(config: Config, name: str, sql: Sql, *, offline: bool) -> list[Finding]:
    """Findings about one database. Asks it for somebody whom nobody is called."""
    area = f"directory {name}"
    try:
        engine = open_sql(config, name, sql, 1)
    except ConfigError as error:
        return misconfigured(area, error)
    except CannotStart as error:
        return [problem(area, str(error), error.cure)]
    if offline:
        return []
    from popproxy.directories.sql import COLUMNS, SqlDirectory  # noqa: PLC0415 - an optional library, which is there

    database = SqlDirectory(name, sql, engine, Gate(name, 1, 1, PROBE_SECONDS))
    try:
        columns = await database.probe()
    except Unavailable as error:
        what = str(error).removeprefix(f"{name}: ")
        return [problem(area, f"{describe(sql)} was asked in vain: {what}", "correct url:, query:, password: or ca:")]
    finally:
        await database.close()
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        cure = f"select {unknown[0]} AS one of {', '.join(COLUMNS)}"
        return [problem(area, f"the query has a column {unknown[0]}", cure)]
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        return [problem(area, f"the query has two columns {twice[0]}", "select it once")]
    findings = [ok(area, f"{describe(sql)} answers, the query gives {', '.join(columns)}")]
    if "password" not in columns:
        findings.append(warning(area, "the query gives no password: nobody can log in by it", "select the hash"))
    return findings


def describe(sql: Sql) -> str:
    """The database, for messages."""
    target = sql.target
    if target.kind == "sqlite":
        return target.database
    return f"{target.database} at {target.host}:{target.port}" if target.host else f"{target.database} by its socket"
