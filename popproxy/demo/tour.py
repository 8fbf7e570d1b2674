"""``popproxy demo``: the guided tour, and the audit log as it grows."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from popproxy.demo.kdc import REALM
from popproxy.demo.realm import LOCAL_USER, PASSED_USER, Ports
from popproxy.demo.stage import Stage, staged

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends the demo in order: Ctrl-C, kill, and a terminal that is closed."""
POLL_SECONDS = 0.2
"""How often the audit log is looked at."""

Record = dict[str, Any]

_TOUR = """\
{heading:popproxy is running} on 127.0.0.1, in front of a small POP3 server with sample messages.

  POP3 with STLS   localhost:{pop3}
  POP3 over TLS    localhost:{pop3s}
  Metrics          http://127.0.0.1:{http}/metrics
  User             {local}, password {local_password}: checked by popproxy, APOP too
  User             {passed}, password {passed_password}: passed through to the mail server
  Trust            {ca}, made for this run
  Configuration    {config}

{heading:1. List the maildrop}, with STLS made compulsory
{command:curl --cacert {ca} --ssl-reqd -u {local}:{local_password} pop3://localhost:{pop3}/}

{heading:2. Fetch a message} over TLS: this one has an attachment
{command:curl --cacert {ca} -u {passed}:{passed_password} pop3s://localhost:{pop3s}/2}

{heading:3. Delete one:} it is gone when QUIT has been answered, and the audit log below says so
{command:curl --cacert {ca} -u {passed}:{passed_password} -X "DELE 1" --head pop3s://localhost:{pop3s}/}

{heading:4. A wrong password}
{command:curl --cacert {ca} --ssl-reqd -u {local}:wrong pop3://localhost:{pop3}/}

{heading:5. Speak POP3 yourself:} USER {local}, PASS {local_password}, CAPA, LIST, RETR 3, QUIT
{command:openssl s_client -quiet -crlf -verify_return_error -CAfile {ca} -starttls pop3 -connect localhost:{pop3}}

{heading:6. A mail client}
  type POP3, server localhost, port {pop3}, security STARTTLS (or port {pop3s}, SSL/TLS), normal password,
  user {local} or {passed}; accept the certificate, or import {ca}

{heading:7. Metrics}
{command:curl -s http://127.0.0.1:{http}/metrics | grep -E "^popproxy_(auth|messages|dele)" | grep -vE " 0(\\.0)?$"}

{kerberos}
{heading:Extra: APOP,} which sends no password at all
{command:curl --cacert {ca} --ssl-reqd --login-options AUTH=+APOP -u {local}:{local_password} pop3://localhost:{pop3}/3}

The audit log, as it grows ({audit}). Ctrl-C ends the demo and removes everything.
"""

_KERBEROS = """\
{heading:8. Single sign-on:} a Kerberos ticket and no password, in a realm made for this run ({principal})
{command:export KRB5_CONFIG={krb5_config} KRB5CCNAME={tickets}}
{command:curl --cacert {ca} --ssl-reqd --login-options AUTH=GSSAPI -u : pop3://localhost:{pop3}/}

{heading:9. KPOP} on port {kpop}, for old clients that have tickets (this one is popproxy's own)
{command:{python} -m popproxy.demo.kpop localhost:{kpop} {local}}
"""
_NO_KERBEROS = """\
{heading:8. Single sign-on} with Kerberos is left out: {left_out}
"""


async def show_demo(ports: Ports, console: Console | None = None) -> int:
    """Run the demo until one of ENDINGS. Returns 0. Raises Unavailable if a port is taken."""
    console = console or Console(highlight=False, soft_wrap=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in ENDINGS:
        loop.add_signal_handler(signal_number, stop.set)
    async with staged(ports) as stage:
        console.print(tour(stage))
        seen: list[Record] = []
        async for record in _follow(stage.realm.audit, stop):
            seen.append(record)
            if line := audit_line(record):
                console.print(line)
        console.print(Text(f"\n{farewell(seen)}"))
    return 0


def tour(stage: Stage) -> Text:
    """What to try, with the ports, passwords and paths of this run."""
    local, passed = stage.realm.users[LOCAL_USER], stage.realm.users[PASSED_USER]
    values = {
        "pop3": str(stage.pop3.port),
        "pop3s": str(stage.pop3s.port),
        "http": str(stage.http.port),
        "local": local.name,
        "local_password": local.password.reveal().decode(),
        "passed": passed.name,
        "passed_password": passed.password.reveal().decode(),
        "ca": str(stage.realm.ca),
        "config": str(stage.realm.config),
        "audit": str(stage.realm.audit),
        "python": sys.executable,
        "left_out": stage.left_out,
    }
    if stage.tickets is not None and stage.kpop is not None:
        values |= {
            "kpop": str(stage.kpop.port),
            "krb5_config": str(stage.tickets.config),
            "tickets": str(stage.tickets.tickets[LOCAL_USER]),
            "principal": f"{LOCAL_USER}@{REALM}",
        }
    kerberos = _NO_KERBEROS if stage.tickets is None else _KERBEROS
    text = Text()
    for line in _TOUR.replace("{kerberos}\n", f"{kerberos}\n").splitlines(keepends=True):
        _append(text, line, values)
    return text


def _append(text: Text, line: str, values: dict[str, str]) -> None:
    """Append a line of the template, with the styles that it names."""
    style = ""
    if line.startswith("{command:"):
        style, line = "cyan", "  " + line[len("{command:") :].rstrip()[:-1] + "\n"
        values = {name: shlex.quote(value) for name, value in values.items()}
    elif line.startswith("{heading:"):
        heading, _, line = line[len("{heading:") :].partition("}")
        text.append(heading, "bold")
    for name, value in values.items():
        line = line.replace(f"{{{name}}}", value)
    text.append(line, style)


async def _follow(path: Path, stop: asyncio.Event) -> AsyncIterator[Record]:
    """The records of the audit log, those to come too, until `stop`; then what is left."""
    position = 0
    while True:
        last = stop.is_set()
        lines = _complete_lines(path, position)
        position += len(lines)
        for line in lines.splitlines():
            yield json.loads(line)
        if last:
            return
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await stop.wait()
        except TimeoutError:
            continue


def _complete_lines(path: Path, position: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(position)
        octets = file.read()
    return octets[: octets.rfind(b"\n") + 1]


def audit_line(record: Record) -> Text | None:
    """A record as a line to read: time, user, action, outcome, message. None for what is of no interest here."""
    action = record["event.action"]
    if action.startswith("audit_"):
        return None
    outcome = record.get("event.outcome", "")
    colour = {"success": "green", "failure": "red"}.get(outcome, "yellow")
    user = record.get("user.name") or ("(unknown)" if "user.hash" in record else "")
    text = Text(f"{record['@timestamp'][11:19]}  {user:<10.40} {action:<12} ")
    text.append(f"{outcome:<8}", colour)
    text.append(f" {_details(record)}")
    return text


def _details(record: Record) -> str:
    words = [_message(record), record.get("auth.mechanism", "") if record["event.action"] == "auth" else ""]
    if record["event.action"] in {"auth", "session_end"}:
        words.append(f"TLS {record['tls.version']}" if "tls.version" in record else "without TLS")
    words.append(record.get("event.reason", ""))
    deleted = record.get("pop3.deleted") or []
    if record["event.action"] == "update":
        names = ", ".join(str(item["number"]) for item in deleted) or "nothing"
        words.append(f"{names} deleted" + ("" if record["pop3.committed"] is True else "?"))
    if abandoned := record.get("pop3.abandoned"):
        words.append(f"deletions undone: {', '.join(str(item['number']) for item in abandoned)}")
    if record["event.action"] == "session_end":
        words.append(f"{record['pop3.retr']} fetched, {record['pop3.bytes_out']} octets to the client")
    return "  ".join(filter(None, words))


def _message(record: Record) -> str:
    if "pop3.message_number" not in record:
        return ""
    octets = f", {record['pop3.octets']} octets" if "pop3.octets" in record else ""
    cut = ", cut short" if record.get("pop3.complete") is False else ""
    return f"message {record['pop3.message_number']}{octets}{cut}"


def farewell(records: list[Record]) -> str:
    """What happened, in numbers."""
    count = Counter(record["event.action"] for record in records)
    logins = Counter(record["event.outcome"] for record in records if record["event.action"] == "auth")
    committed = sum(
        len(record["pop3.deleted"])
        for record in records
        if record.get("pop3.committed") is True and "pop3.deleted" in record
    )
    undone = sum(len(record.get("pop3.abandoned", ())) for record in records)
    return (
        f"Sessions: {count['session_end']}. Logins: {logins['success']}, refused: {logins['failure']}. "
        f"Messages fetched: {count['retr']}, deleted: {committed}, deletions undone: {undone}. Everything is removed."
    )
