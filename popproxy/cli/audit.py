"""``popproxy audit``: search, follow and report over the audit log; the other commands have files of their own."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popproxy.app.checks.finding import counted
from popproxy.cli.audit_key import key
from popproxy.cli.audit_logs import FilesArgument, configured_file, log_files, progress, recorded_message
from popproxy.cli.audit_lost import lost
from popproxy.cli.audit_verify import verify
from popproxy.cli.exits import CommandError, ExitCode, complain
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json, print_table, printable

if TYPE_CHECKING:
    from popproxy.observe.audit_files import LogFile
    from popproxy.observe.audit_query import Query, Record

app = typer.Typer(
    no_args_is_help=True,
    help="""Search the audit log, follow it, verify that nobody has changed it, report who still uses what should end.

    Files are read with their rotated predecessors (.1, .2.gz), the oldest first. Times are UTC.""",
)

UserOption = Annotated[str | None, typer.Option("--user", "-u", help="Who; the case of ASCII letters does not matter.")]
AddressOption = Annotated[str | None, typer.Option("--address", "-a", help="From this address or network.")]
MessageOption = Annotated[str | None, typer.Option("--message", "-m", metavar="UIDL", help="About this unique-id.")]
ActionOption = Annotated[list[str] | None, typer.Option("--action", help="login, auth, dele ...; may be repeated.")]
OutcomeOption = Annotated[str | None, typer.Option("--outcome", help="success, failure or unknown.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="For example bad_credentials.")]
SessionOption = Annotated[str | None, typer.Option("--session", help="All records of one session.")]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="2026-11-23, 2026-11-23T09:30, or how long ago: 2h, 7d.")
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before that time; as --since.")]

app.command()(verify)
app.command()(key)
app.command()(lost)

_WIDTHS = {"time": 19, "user": 24, "address": 15, "action": 12, "outcome": 8}


@app.command()
def search(
    files: FilesArgument = None,
    config: ConfigOption = DEFAULT_CONFIG,
    user: UserOption = None,
    address: AddressOption = None,
    message: MessageOption = None,
    action: ActionOption = None,
    outcome: OutcomeOption = None,
    reason: ReasonOption = None,
    session: SessionOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the records that fit everything that is asked for, as they are found.

    --json prints each record as it stands in the log, one in a line. With --session, one that was lost with its worker
    ends with the record that says so, worker_lost; `popproxy audit lost` lists them all.

    For example:

        popproxy audit search --user alice --action dele --since 7d

        popproxy audit search --message 000000a1 --json | jq -r '.["source.ip"]'
    """
    message = None if message is None else recorded_message(message, config)
    query = _query(user, address, message, action, outcome, reason, session, since, until)
    with log_files(files, config) as logs:
        found = _records(logs, query)
        _show(found if session is None else _with_its_end(found, logs), as_json=as_json)


@app.command()
def follow(
    files: FilesArgument = None,
    config: ConfigOption = DEFAULT_CONFIG,
    user: UserOption = None,
    address: AddressOption = None,
    action: ActionOption = None,
    outcome: OutcomeOption = None,
    reason: ReasonOption = None,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print records as they are written, across rotations, until interrupted.

    For example:

        popproxy audit follow --user alice

        popproxy audit follow --action auth --outcome failure --json
    """
    from popproxy.observe.audit_files import follow as lines_of  # noqa: PLC0415

    query = _query(user, address, None, action, outcome, reason, session, None, None)
    if files is not None and len(files) > 1:
        raise CommandError("one file can be followed", ExitCode.USAGE)
    path = files[0] if files else configured_file(config)
    with contextlib.suppress(KeyboardInterrupt):
        _show(_taken(lines_of(path), query), as_json=as_json)


@app.command()
def report(
    files: FilesArgument = None,
    config: ConfigOption = DEFAULT_CONFIG,
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say who still logs in without TLS, by APOP, RPOP, KPOP or CRAM-MD5, from where, and when last.

    Before a way is closed, everybody in this list must have found another. Servers behind that have no TLS, or 1.0 and
    1.1 only, are named with their users, too.

    For example:

        popproxy audit report --since 30d

        popproxy audit report --json | jq -r '.uses[] | select(.way == "no TLS") | .user'
    """
    from popproxy.observe.audit_report import Report  # noqa: PLC0415

    query = _query(None, None, None, ["login"], "success", None, None, since, until)
    made = Report()
    with log_files(files, config) as logs:
        for record in _records(logs, query):
            made.add(record)
    if as_json:
        print_json({
            "logins": made.logins, "first": made.first, "last": made.last,
            "ways": {way: {"users": users, "logins": logins, "last": last}
                     for way, (users, logins, last) in made.totals().items()},
            "uses": [
                {"way": use.way, "user": use.user, "logins": use.logins, "first": use.first, "last": use.last,
                 "addresses": use.addresses, "elsewhere": use.elsewhere, "listeners": sorted(use.listeners),
                 "pools": sorted(use.pools), "servers": sorted(use.servers)}
                for use in made.uses()
            ],
        })  # fmt: skip
        return
    print(f"{counted(made.logins, 'login')}" + (f", {made.first[:19]} to {made.last[:19]}" if made.logins else ""))
    if not made.totals():
        print("nobody uses what should end")
        return
    print()
    rows = [(way, str(users), str(logins), last[:19]) for way, (users, logins, last) in made.totals().items()]
    print_table(("way", "users", "logins", "last"), rows)
    print()
    print_table(
        ("way", "user", "logins", "last", "listener", "from", "server"),
        [(use.way, use.user, str(use.logins), use.last[:19], ",".join(sorted(use.listeners)), _from(use.addresses),
          ", ".join(sorted(use.servers)))
         for use in made.uses()],
    )  # fmt: skip


@app.command()
def export(
    form: Annotated[str, typer.Option("--format", "-f", help="ecs, ocsf or cef.")],
    files: FilesArgument = None,
    config: ConfigOption = DEFAULT_CONFIG,
    user: UserOption = None,
    action: ActionOption = None,
    outcome: OutcomeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
) -> None:
    """Print records for other programs, one in a line: Elastic Common Schema, OCSF, or ArcSight's CEF.

    For example:

        popproxy audit export --format ocsf --since 1d

        popproxy audit export --format cef --action login --action auth | logger --size 64KiB
    """
    from popproxy.observe.audit_export import FORMATS  # noqa: PLC0415

    if form not in FORMATS:
        raise CommandError(f"--format {form}: write {', '.join(FORMATS)}", ExitCode.USAGE)
    query = _query(user, None, None, action, outcome, None, None, since, until)
    with log_files(files, config) as logs:
        for record in _records(logs, query):
            print(FORMATS[form](record))


def _from(addresses: dict[str, int]) -> str:
    """The addresses with most logins."""
    most = sorted(addresses, key=lambda address: -addresses[address])
    return ", ".join(most[:3]) + (f" and {len(most) - 3} more" if len(most) > 3 else "")


# ---- what is asked for ----


def _query(
    user: str | None, address: str | None, message: str | None, actions: Iterable[str] | None, outcome: str | None,
    reason: str | None, session: str | None, since: str | None, until: str | None,
) -> Query:  # fmt: skip
    from popproxy.observe.audit_query import Query  # noqa: PLC0415

    if outcome not in (None, "success", "failure", "unknown"):
        raise CommandError(f"--outcome {outcome}: write success, failure or unknown", ExitCode.USAGE)
    try:
        network = None if address is None else ipaddress.ip_network(address, strict=False)
    except ValueError as error:
        raise CommandError(f"--address: {error}", ExitCode.USAGE) from None
    return Query(
        user=user, network=network, session=session, actions=frozenset(actions or ()), outcome=outcome, reason=reason,
        message=message, since=_time("--since", since), until=_time("--until", until),
    )  # fmt: skip


def _time(option: str, text: str | None) -> str | None:
    """As ``@timestamp`` has it, or the beginning of that."""
    from popproxy.config.units import parse_duration  # noqa: PLC0415

    if text is None:
        return None
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2})?)?Z?", text):
        with contextlib.suppress(ValueError):
            datetime.fromisoformat(text.removesuffix("Z"))
            return text.removesuffix("Z").replace(" ", "T")
    with contextlib.suppress(ValueError):
        return datetime.fromtimestamp(time.time() - parse_duration(text), UTC).isoformat(timespec="seconds")[:19]
    example = "write 2026-11-23, 2026-11-23T09:30, or how long ago: 2h, 7d"
    raise CommandError(f"{option} {text}: is no time; {example}", ExitCode.USAGE)


# ---- where it stands ----


def _records(files: list[LogFile], query: Query) -> Iterator[Record]:
    from popproxy.observe.audit_files import lines  # noqa: PLC0415
    from popproxy.observe.audit_query import NotARecord  # noqa: PLC0415

    for file in files:
        bad = 0
        damage: list[str] = []
        for line in lines(file, progress(), damage.append):
            try:
                record = query.take(line)
            except NotARecord:
                bad += line.endswith(b"\n")  # without its end it is torn, or being written
                continue
            if record is not None:
                yield record
        if bad:
            complain([f"{file.path}: {counted(bad, 'line')} left out: not audit records"])
        complain([f"{file.path}: the rest is left out: {why}" for why in damage])
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _with_its_end(records: Iterable[Record], files: list[LogFile]) -> Iterator[Record]:
    """The records of a session; if its end is not among them, also that its worker was lost, if it was."""
    from popproxy.observe.audit_query import Query  # noqa: PLC0415

    segments: set[str] = set()
    for record in records:
        segments.add(str(record.get("chain.segment")))
        if record["event.action"] == "session_end":
            segments.clear()
        yield record
    if segments:
        for record in _records(files, Query(actions=frozenset({"worker_lost"}))):
            if str(record.get("popproxy.lost.segment")) in segments:
                yield record


def _taken(lines: Iterable[bytes], query: Query) -> Iterator[Record]:
    from popproxy.observe.audit_query import NotARecord  # noqa: PLC0415

    for line in lines:
        with contextlib.suppress(NotARecord):
            record = query.take(line)
            if record is not None:
                yield record


# ---- what is printed ----


def _show(records: Iterable[Record], *, as_json: bool) -> None:
    if not as_json:
        print("  ".join(f"{head.upper():<{width}}" for head, width in _WIDTHS.items()) + "  WHAT", flush=True)
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    for record in records:
        if clear:
            print(clear, end="", file=sys.stderr, flush=True)
        print(json.dumps(record, ensure_ascii=True) if as_json else _row(record), flush=True)


def _row(record: Record) -> str:
    user = record.get("user.name") or (f"({str(record['user.hash'])[:8]})" if "user.hash" in record else "-")
    cells = (
        str(record["@timestamp"])[:19], user, record.get("source.ip", "-"), record["event.action"],
        record.get("event.outcome", "-"),
    )  # fmt: skip
    shown = "  ".join(f"{printable(str(cell)):<{width}}" for cell, width in zip(cells, _WIDTHS.values(), strict=True))
    return f"{shown}  {printable(_what(record))}".rstrip()


def _what(record: Record) -> str:
    """The rest, as far as somebody who looks for something wants to see it."""
    parts: list[Any] = [record.get("event.reason"), record.get("auth.mechanism")]
    if "tls.version" in record:
        parts.append(f"TLS {record['tls.version']}")
    if "pop3.message_number" in record:
        parts.append(f"message {record['pop3.message_number']}")
    parts.append(record.get("pop3.unique_id"))
    if "pop3.octets" in record:
        parts.append(f"{record['pop3.octets']} octets")
    for name in ("deleted", "abandoned"):
        if f"pop3.{name}_total" in record:
            parts.append(f"{record[f'pop3.{name}_total']} {name}")
    if record["event.action"] == "login":
        parts.append(f"at {record.get('destination.address')}:{record.get('destination.port')}")
    if record["event.action"] == "session_end":
        parts.append(f"{record.get('pop3.retr', 0)} fetched")
    if record["event.action"] == "worker_lost":
        parts.append(f"{record.get('process.name')} {record.get('message')}")
        parts.append(f"{record.get('popproxy.lost.sessions')} sessions")
    if "popproxy.command" in record:
        parts.append(f"{record['popproxy.command']} {json.dumps(record.get('popproxy.arguments', {}))}")
    parts.append(record.get("popproxy.backend"))
    return " ".join(str(part) for part in parts if part)
