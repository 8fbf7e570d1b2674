"""The sessions of ``popproxy demo --check``."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from popproxy.demo.client import Client, MismatchError
from popproxy.demo.kdc import REALM
from popproxy.demo.realm import LOCAL_USER, PASSED_USER
from popproxy.demo.tickets import authenticate
from popproxy.demo.witness import Record, Witness
from popproxy.sasl.credentials import Layer
from popproxy.types import Secret


@dataclass(frozen=True, slots=True)
class Scenario:
    """A title to print, and the session itself."""

    title: str
    play: Callable[[Witness], None]


def _log_in(witness: Witness, name: str, implicit_tls: bool = True) -> Client:
    client = witness.connect(implicit_tls)
    if not implicit_tls:
        client.stls()
    client.log_in(name, witness.user(name).password)
    return client


def _leave(witness: Witness, client: Client, reason: str = "logout") -> None:
    client.ask("QUIT")
    client.ended()
    end = witness.record(client, "session_end")
    witness.require(end["event.reason"] == reason, f"the audit log has one session_end, reason {reason}")


def _password_over_stls(witness: Witness) -> None:
    with _log_in(witness, LOCAL_USER, implicit_tls=False) as client:
        client.ask("STAT", f"+OK {len(witness.maildrop(LOCAL_USER))} ".encode())
        auth = witness.record(client, "auth")
        witness.require(auth["event.outcome"] == "success", "the audit log has the login, before the client was told")
        witness.require(auth["tls.version"] in {"1.2", "1.3"}, "the audit log names the TLS version")
        _leave(witness, client)


def _password_over_tls(witness: Witness) -> None:
    with _log_in(witness, PASSED_USER) as client:
        client.ask("STAT", f"+OK {len(witness.maildrop(PASSED_USER))} ".encode())
        login = witness.record(client, "login")
        witness.require(login["user.name"] == PASSED_USER, "the backend has confirmed the password passed through")
        _leave(witness, client)


def _auth_plain(witness: Witness) -> None:
    user = witness.user(LOCAL_USER)
    response = base64.b64encode(b"\0" + user.name.encode() + b"\0" + user.password.reveal()).decode()
    with witness.connect(implicit_tls=True) as client:
        client.ask(f"AUTH PLAIN {response}")
        witness.require(witness.record(client, "auth")["auth.mechanism"] == "PLAIN", "the audit log names PLAIN")
        _leave(witness, client)


def _apop(witness: Witness) -> None:
    user = witness.user(LOCAL_USER)
    with witness.connect() as client, witness.connect() as other:
        witness.require(client.greeting != other.greeting, "two connections get two timestamps")
        other.ask("QUIT")
        client.apop(user.name, user.password)
        client.ask("STAT")
        witness.require(witness.record(client, "auth")["auth.mechanism"] == "APOP", "the audit log names APOP")
        _leave(witness, client)


def _ticket_by_gssapi(witness: Witness) -> None:
    messages = witness.maildrop(LOCAL_USER)
    with witness.connect() as client:
        witness.require(
            "SASL GSSAPI" in client.capabilities(), "without TLS: GSSAPI is announced, no password is taken"
        )
        layer = authenticate(client, witness.ticket(), LOCAL_USER, (Layer.CONFIDENTIALITY,))
        witness.require(layer is Layer.CONFIDENTIALITY, "the session is encrypted with the ticket's key, without TLS")
        _whose(witness, client, "GSSAPI")
        client.ask("RETR 1")
        _compare(1, client.body(), messages[0].content)
        _leave(witness, client)


def _ticket_under_tls(witness: Witness) -> None:
    with witness.connect(implicit_tls=True) as client:
        authenticate(client, witness.ticket(), LOCAL_USER, (Layer.NONE,))
        login = _whose(witness, client, "GSSAPI")
        witness.require(login["tls.version"] in {"1.2", "1.3"}, "the audit log names the TLS version")
        _leave(witness, client)


def _ticket_by_kpop(witness: Witness) -> None:
    with witness.knock() as client:
        client.log_in(LOCAL_USER, Secret("what stands here is ignored"))
        _whose(witness, client, "KPOP")
        _leave(witness, client)
    with witness.knock() as client:
        client.stls()
        client.ask(f"USER {PASSED_USER}")
        client.ask("PASS x", b"-ERR [AUTH]")
        witness.require(witness.record(client, "auth")["event.reason"] == "authzid", "nobody opens another's maildrop")
        client.log_in(LOCAL_USER, Secret("x"))
        login = witness.record(client, "login")
        witness.require("tls.version" in login, "KPOP protects the login only: STLS behind it protects the rest")
        _leave(witness, client)


def _whose(witness: Witness, client: Client, mechanism: str) -> Record:
    """The record of a login by ticket, behind which the user's maildrop is open."""
    assert witness.stage.tickets is not None
    client.ask("STAT", f"+OK {len(witness.maildrop(LOCAL_USER))} ".encode())
    login = witness.record(client, "login")
    principal = f"{LOCAL_USER}@{REALM}"
    witness.require(login["krb5.principal"] == principal, f"the audit log names {principal}: no password anywhere")
    witness.require(login["auth.mechanism"] == mechanism, f"the audit log names {mechanism}")
    return login


def _capabilities(witness: Witness) -> None:
    with witness.connect() as client:
        plain = client.capabilities()
        witness.require("STLS" in plain and "USER" not in plain, "without TLS: STLS is announced, USER is not")
        client.stls()
        before = client.capabilities()
        witness.require("STLS" not in before and "USER" in before, "with TLS: USER is announced, STLS is not")
        user = witness.user(LOCAL_USER)
        client.log_in(user.name, user.password)
        after = client.capabilities()
        witness.require(set(before) <= set(after), "after the login everything announced before is still there")
        witness.require({"TOP", "UIDL", "PIPELINING"} <= set(after), "TOP, UIDL and PIPELINING are announced")
        witness.require(not any("popproxy-demo" in line for line in after), "the backend stays hidden")
        _leave(witness, client)


def _cleartext_refused(witness: Witness) -> None:
    sessions = witness.stage.backend.sessions
    with witness.connect() as client:
        client.ask(f"USER {PASSED_USER}", b"-ERR")
        client.ask("AUTH PLAIN", b"-ERR")
        witness.require(witness.stage.backend.sessions == sessions, "the backend has not been contacted")
        client.stls()
        client.log_in(PASSED_USER, witness.user(PASSED_USER).password)
        witness.facts.append("after STLS the same connection logs in")
        _leave(witness, client)


def _wrong_password(witness: Witness) -> None:
    succeeded = witness.total("popproxy_auth_attempts_total", outcome="success")
    failed = witness.total("popproxy_auth_attempts_total", outcome="failure")
    for name in (LOCAL_USER, PASSED_USER):
        with witness.connect(implicit_tls=True) as client:
            client.ask(f"USER {name}")
            client.ask("PASS this-is-wrong", b"-ERR [AUTH]")
            witness.require(witness.record(client, "auth")["event.outcome"] == "failure", f"audit: {name} refused")
            client.log_in(name, witness.user(name).password)
            outcomes = [record["event.outcome"] for record in witness.records(client, "auth")]
            witness.require(
                outcomes == ["failure", "success"], "the connection stays usable: the right one is accepted"
            )
            _leave(witness, client)
    now = witness.total("popproxy_auth_attempts_total", outcome="success") - succeeded
    witness.require(now == 2, "metrics: two logins more")
    now = witness.total("popproxy_auth_attempts_total", outcome="failure") - failed
    witness.require(now == 2, "metrics: two failures more")


def _pipelined_fetch(witness: Witness) -> None:
    messages = witness.maildrop(LOCAL_USER)
    numbers = range(1, len(messages) + 1)
    with _log_in(witness, LOCAL_USER) as client:
        client.send("STAT", "LIST", "UIDL", *(f"RETR {number}" for number in numbers), "TOP 1 0", "NOOP")
        client.expect(f"+OK {len(messages)} {sum(len(message.content) for message in messages)}".encode())
        client.expect(b"+OK")
        sizes = [int(line.split()[1]) for line in client.body().splitlines()]
        witness.require(sizes == [len(message.content) for message in messages], "LIST gives the sizes")
        client.expect(b"+OK")
        uids = [line.split()[1].decode() for line in client.body().splitlines()]
        witness.require(uids == [message.uid for message in messages], "UIDL gives the unique-ids")
        for number, message in zip(numbers, messages, strict=True):
            client.expect(b"+OK")
            _compare(number, client.body(), message.content)
        witness.facts.append(f"{len(messages)} messages are byte-identical to the maildrop")
        client.expect(b"+OK")
        header, separator, _ = messages[0].content.partition(b"\r\n\r\n")
        witness.require(client.body() == header + separator, "TOP 1 0 is the header of the first message")
        client.expect(b"+OK")
        _leave(witness, client)
        fetched = [
            (record["pop3.message_number"], record.get("pop3.unique_id"), record["pop3.complete"])
            for record in witness.records(client, "retr")
        ]
        expected = [(number, uid, True) for number, uid in zip(numbers, uids, strict=True)]
        witness.require(fetched == expected, f"the audit log has {len(messages)} fetches with their unique-ids")


def _compare(number: int, got: bytes, stored: bytes) -> None:
    if got != stored:
        pairs = enumerate(zip(got, stored, strict=False))
        place = next((at for at, (one, other) in pairs if one != other), min(len(got), len(stored)))
        raise MismatchError(f"message {number} differs at octet {place} ({len(got)} octets, stored {len(stored)})")


def _deletion_committed(witness: Witness) -> None:
    before = witness.maildrop(PASSED_USER)
    with _log_in(witness, PASSED_USER) as client:
        client.ask("UIDL")
        client.body()
        client.ask("DELE 2")
        client.ask("DELE 4")
        witness.require(witness.maildrop(PASSED_USER) == before, "nothing is gone before QUIT")
        _leave(witness, client)
        kept = [message for message in before if message not in (before[1], before[3])]
        witness.require(witness.maildrop(PASSED_USER) == kept, "exactly messages 2 and 4 are gone from the maildrop")
        update = witness.record(client, "update")
        named = [(item["number"], item.get("unique_id")) for item in update["pop3.deleted"]]
        witness.require(update["pop3.committed"] is True, "the audit log says committed")
        witness.require(named == [(2, before[1].uid), (4, before[3].uid)], "the audit log names both with unique-id")


def _deletion_abandoned(witness: Witness) -> None:
    before = witness.maildrop(PASSED_USER)
    with _log_in(witness, PASSED_USER) as client:
        client.ask("DELE 1")
        client.drop()
        end = witness.record(client, "session_end")
        witness.require(end["event.reason"] == "client_lost", "the audit log says client_lost")
        witness.require(end["pop3.committed"] is False, "the audit log says that nothing was committed")
        named = [item["number"] for item in end["pop3.abandoned"]]
        witness.require(named == [1], "the audit log names the deletion that was undone")
    with _log_in(witness, PASSED_USER) as client:
        witness.require(witness.maildrop(PASSED_USER) == before, "the message is still there")
        client.ask("STAT", f"+OK {len(before)} ".encode())
        _leave(witness, client)


def _metrics(witness: Witness) -> None:
    records = witness.stage.audit()
    actions = [record["event.action"] for record in records]
    ended = actions.count("session_end")
    witness.eventually(lambda: witness.total("popproxy_sessions") == 0, "a moment without sessions in /metrics")
    witness.require(
        witness.total("popproxy_sessions_ended_total") == ended, f"{ended} sessions ended, in metrics and audit log"
    )
    for outcome in ("success", "failure"):
        count = sum(record["event.action"] == "auth" and record["event.outcome"] == outcome for record in records)
        total = witness.total("popproxy_auth_attempts_total", outcome=outcome)
        witness.require(total == count, f"{count} logins with {outcome}, in metrics and audit log")
    fetched = actions.count("retr")
    witness.require(
        witness.total("popproxy_messages_total", verb="RETR") == fetched,
        f"{fetched} messages, in metrics and audit log",
    )
    for outcome, count in (("committed", 2), ("abandoned", 1)):
        witness.require(
            witness.total("popproxy_deletions_total", outcome=outcome) == count, f"{count} deletions {outcome}"
        )
    numbers = [record["event.sequence"] for record in records]
    witness.require(all(later == earlier + 1 for earlier, later in pairwise(numbers)), "no audit record is missing")


KERBEROS_SCENARIOS = (
    Scenario("A ticket by GSSAPI, the session encrypted with its key", _ticket_by_gssapi),
    Scenario("A ticket by GSSAPI over TLS", _ticket_under_tls),
    Scenario("A ticket by KPOP", _ticket_by_kpop),
)
_LAST = Scenario("Metrics agree with the audit log", _metrics)
SCENARIOS = (
    Scenario("Password over STLS, checked by the users file", _password_over_stls),
    Scenario("Password over TLS, passed through to the backend", _password_over_tls),
    Scenario("AUTH PLAIN over TLS", _auth_plain),
    Scenario("APOP: no password on the wire, even without TLS", _apop),
    Scenario("CAPA before TLS, before the login and after it", _capabilities),
    Scenario("Cleartext password refused without TLS", _cleartext_refused),
    Scenario("Wrong password", _wrong_password),
    Scenario("Everything fetched in one pipelined burst", _pipelined_fetch),
    Scenario("Deletion committed", _deletion_committed),
    Scenario("Deletion abandoned: the connection breaks before QUIT", _deletion_abandoned),
)


def scenarios(kerberos: bool) -> tuple[Scenario, ...]:
    """All that are to be played, the one that counts them at the end."""
    return (*SCENARIOS, *(KERBEROS_SCENARIOS if kerberos else ()), _LAST)
