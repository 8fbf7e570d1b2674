"""Kerberos clients by hand, one call for each thing that a hostile one may do; and the witness of what came of it."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tests.peers.kpop_client import error_code, hello
from tests.peers.krb5_client import gss_framed
from tests.peers.line_client import LineClient
from tests.peers.process import wait_until
from tests.peers.proxy import Proxy, Record
from tests.peers.tickets import Initiator
from tests.real.kerberos_rig import Site

WRONG = b"-ERR [AUTH] authentication failed"
TRY_LATER = b"-ERR [SYS/TEMP] temporary problem, try again later"
IN = b"+OK Logged in"
WRONG_TICKET_ENDS = {"GSSAPI": "quit_before_login", "KPOP": "too_many_failures"}
"""event.reason of a session whose client, by such a way, showed a ticket in vain and then went its way."""


def b64(octets: bytes) -> bytes:
    """A token in a line of POP3, without CRLF."""
    return base64.b64encode(octets)


# ---- showing a ticket ----


def by_gssapi(proxy: Proxy, ap_req: bytes) -> bytes | None:
    """None if the ticket is accepted, otherwise the answer."""
    return by_token(proxy.port(), gss_framed(ap_req))


def by_token(port: int, token: bytes, tls: ssl.SSLContext | None = None) -> bytes | None:
    """The same for a token of GSSAPI that is framed already."""
    with LineClient(port, tls=tls) as client:
        assert client.line().startswith(b"+OK")
        answer = client.command(b"AUTH GSSAPI " + b64(token))
        if answer.startswith(b"+ "):
            return None
        assert client.command("QUIT").startswith(b"+OK")
        return answer


def by_kpop(proxy: Proxy, ap_req: bytes) -> bytes | None:
    """None if the ticket is accepted, otherwise the error-code of the KRB-ERROR, in digits."""
    with LineClient(proxy.port("kpop")) as client:
        client.send(hello(ap_req))
        assert client.take(1) == b"\0"
        length = int.from_bytes(client.take(4), "big")
        if length == 0:
            return None
        answer = client.take(length)
        assert b"authentication failed" in answer
        assert client.rest() == b"", "the connection outlives the KRB-ERROR"
        return b"%d" % error_code(answer)


WAYS: dict[str, Callable[[Proxy, bytes], bytes | None]] = {"GSSAPI": by_gssapi, "KPOP": by_kpop}


def kpop_login(client: LineClient, ap_req: bytes, user: str = "alice") -> bytes:
    """Behind the handshake: the answer to PASS."""
    client.send(hello(ap_req))
    assert client.take(5) == bytes(5), "the ticket is refused"
    mutual = client.take(4)
    client.take(int.from_bytes(mutual, "big"))
    assert client.line().startswith(b"+OK")
    assert client.command(f"USER {user}").startswith(b"+OK")
    return client.command("PASS hej")


class AtChoice(NamedTuple):
    """A client that has shown its ticket and may now choose a layer; the offer, and the token that it came in."""

    gss: Initiator
    offer: bytes
    token: bytes


def at_choice(it: Site, client: LineClient, initiator: Initiator | None = None) -> AtChoice:
    """From the greeting to the offer."""
    initiator = initiator or Initiator(it.tickets["alice"])
    assert client.line().startswith(b"+OK")
    answer = client.command(b"AUTH GSSAPI " + b64(initiator.step() or b""))
    if not initiator.complete:
        assert answer.startswith(b"+ "), answer
        initiator.step(base64.b64decode(answer[2:]))
        answer = client.command(b"")
    assert answer.startswith(b"+ "), answer
    token = base64.b64decode(answer[2:])
    offer, encrypted = initiator.unwrap(token)
    assert not encrypted
    return AtChoice(initiator, offer, token)


def password_login(proxy: Proxy, user: str, password: str, mechanism: str = "USER") -> bytes:
    """The answer to a login with a password."""
    with LineClient(proxy.port(), seconds=60) as client:
        assert client.line().startswith(b"+OK")
        if mechanism == "USER":
            assert client.command(f"USER {user}").startswith(b"+OK")
            return client.command(f"PASS {password}")
        return client.command(b"AUTH PLAIN " + b64(f"\0{user}\0{password}".encode()))


# ---- what came of it ----


@contextlib.contextmanager
def refused(
    proxy: Proxy, mechanism: str, reason: str, end: str, *, outcome: str = "failure", errors: Sequence[str] = ()
) -> Iterator[None]:
    """The one session inside leaves one authentication record with `reason`, one session_end with `end`, no more."""
    with watched(proxy, [f"auth {mechanism} {outcome} {reason}", f"session_end {end}"], errors):
        yield


@contextlib.contextmanager
def watched(proxy: Proxy, expected: Sequence[str], errors: Sequence[str] = ()) -> Iterator[None]:
    """The one session inside leaves these records, and in the operational log these errors and no others."""
    before, log = len(quiet(proxy)), len(proxy.log())
    yield
    records = [record for record in quiet(proxy)[before:] if "session.id" in record]
    assert len({record["session.id"] for record in records}) == 1, records
    assert [_in_words(record) for record in records] == list(expected)
    assert complaints(proxy.log()[log:]) == list(errors)


def quiet(proxy: Proxy) -> list[Record]:
    """Waits until nobody is connected and everybody's end is on record: all records so far."""

    def idle() -> bool:
        metrics = proxy.metrics()
        connected = sum(value for name, value in metrics.items() if name.startswith("popproxy_sessions{"))
        ended = sum(value for name, value in metrics.items() if name.startswith("popproxy_sessions_ended_total{"))
        return connected == 0 and len(proxy.audit("session_end")) == ended

    wait_until(idle, "the end of all sessions, on record")
    return proxy.audit()


def _in_words(record: Record) -> str:
    outcome = record["event.outcome"] if record["event.action"] == "auth" else None
    words = (record["event.action"], record.get("auth.mechanism"), outcome, record.get("event.reason"))
    return " ".join(word for word in words if word is not None)


def complaints(log: str) -> list[str]:
    """The events that an operational log in JSON has as errors or worse."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert len(lines) == len([line for line in log.splitlines() if line.strip()]), f"not only JSON:\n{log}"
    return [line["event"] for line in lines if line["level"] not in ("debug", "info", "warning")]


def next_session_is_fine(it: Site, proxy: Proxy | None = None) -> None:
    """Whatever has happened: the next one gets in."""
    proxy = proxy or it.proxy
    with LineClient(proxy.port()) as client:
        gss = at_choice(it, client).gss
        assert client.command(b64(gss.wrap(b"\x01\0\0\0", confidential=False))) == IN
        assert client.command("STAT").startswith(b"+OK")
        assert client.command("QUIT").startswith(b"+OK")
    proxy.settled()
