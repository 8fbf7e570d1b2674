"""Dialogues as transcripts, and naive stand-ins for the two ends.

A transcript is what a reader of the RFCs would write. Lines for the core to read are ``C:`` (client) or ``B:``
(backend), with CRLF added, or ``C~``/``B~`` for octets as they are; escapes as in Python, a final space too.
``A:`` is something the session does. The core's own octets come back as ``S:`` (to the client) or ``P:`` (to the
backend), its events as ``E:``.
"""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable, Iterable, Mapping

from popproxy.errors import BackendError
from popproxy.pop3 import client_events, server_events
from popproxy.pop3.capabilities import Capabilities
from popproxy.pop3.client import ClientConnection
from popproxy.pop3.logins import Login
from popproxy.pop3.offer import Offer
from popproxy.pop3.server import ServerConnection
from popproxy.sasl.credentials import ApopCredential, PasswordCredential
from popproxy.sasl.login import Login as LoginMechanism
from popproxy.sasl.plain import Plain
from popproxy.sasl.scram_verifier import make_verifier
from popproxy.types import CloseReason, Mechanism, Secret
from tests.peers.gss_double import TransparentContext

STAMP = b"<0123456789abcdef@mail.example.org>"
OPEN = Offer(passwords=True, mechanisms={"PLAIN": Plain, "LOGIN": LoginMechanism}, timestamp=STAMP)
CLEAR = Offer(passwords=False, stls=True)

VERIFIER = make_verifier(Mechanism.SCRAM_SHA_256, b"pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
"""Of the example in RFC 7677 section 3."""


def chunks(octets: bytes, sizes: Iterable[int]) -> list[bytes]:
    """`octets` cut into pieces of these sizes, the last one taking the rest."""
    pieces = []
    for size in sizes:
        if octets:
            pieces.append(octets[:size])
            octets = octets[size:]
    return [*pieces, octets] if octets else pieces


def unescape(text: str) -> bytes:
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1")


def escape(octets: bytes) -> str:
    text = octets.decode("latin-1").encode("unicode_escape").decode("ascii")
    return text[:-1] + r"\x20" if text.endswith(" ") else text


def play(script: str, actions: Mapping[str, Callable[[str], None]], heard: Callable[[], list[str]]) -> None:
    """Do what the script's lines for the core say and compare what comes back, line by line."""
    expected = [line for line in textwrap.dedent(script).strip().splitlines() if line.strip()]
    found = heard()
    for line in expected:
        if line[:2] in actions:
            found.append(line)
            actions[line[:2]](line[3:])
            found += heard()
    assert "\n".join(found) == "\n".join(expected)


def shown(prefix: str, octets: bytes) -> list[str]:
    lines = octets.split(b"\r\n")
    ragged = [f"{prefix}~ {escape(lines[-1])}"] if lines[-1] else []
    return [f"{prefix}: {escape(line)}".rstrip() for line in lines[:-1]] + ragged


def server_event(event: server_events.Event) -> str:
    match event:
        case server_events.CredentialOffered(credential):
            names = f"{credential.mechanism} {credential.authcid!a} authzid={credential.authzid!a}"
            if isinstance(credential, ApopCredential):
                return f"credential {names} {credential.digest.reveal()!r}"
            if isinstance(credential, PasswordCredential):
                return f"credential {names} {credential.password.reveal()!r}"
            return f"credential {names}"
        case server_events.GssStepNeeded(token):
            return f"step {token!r}"
        case server_events.VerifierNeeded(mechanism, authcid):
            return f"verifier {mechanism} {authcid!a}"
        case server_events.ExchangeBroken(principal):
            return f"broken {principal}"
        case server_events.TlsRequested():
            return "tls"
        case server_events.FrontSpoke(arguments):
            return f"front {escape(arguments)}"
        case server_events.Finished(reason):
            return f"finished {reason}"


def play_server(script: str, offer: Offer = OPEN, *, drip: bool = False, greet: bool = False) -> ServerConnection:
    """A client's dialogue before its login. ``A:`` is accept, verifier, fail CODE, final REASON, eof, or tls."""
    connection = ServerConnection(offer)
    if greet:
        connection.greet("POP3 server ready")

    def feed(octets: bytes) -> None:
        for piece in [octets[i : i + 1] for i in range(len(octets))] if drip else [octets]:
            connection.receive_data(piece)

    def act(what: str) -> None:
        verb, _, word = what.partition(" ")
        match verb:
            case "accept":
                connection.login_accepted()
            case "verifier":
                connection.verifier_found(VERIFIER)
            case "fail":
                connection.login_failed("no", word or None)
            case "final":
                connection.login_failed("no", "AUTH", CloseReason(word))
            case "eof":
                connection.receive_eof()
            case "tls":
                connection.upgrade_to_tls(OPEN)
            case _:
                raise AssertionError(what)

    def heard() -> list[str]:
        events = [f"E: {server_event(event)}" for event in connection.events_received()]
        return shown("S", connection.data_to_send()) + events

    actions = {"C:": lambda text: feed(unescape(text) + b"\r\n"), "C~": lambda text: feed(unescape(text)), "A:": act}
    play(script, actions, heard)
    return connection


def client_event(event: client_events.Event) -> str:
    match event:
        case client_events.StartTls():
            return "tls"
        case client_events.TokenNeeded(_, token):
            return f"token for {token!r}"
        case client_events.AccessTokenNeeded():
            return "access token"
        case client_events.LoggedIn(_, learned, protection):
            layer = "" if protection is None else f", layer {protection.layer} up to {protection.server_max}"
            return f"logged in, learned {learned if learned is None else sorted(learned)}{layer}"
        case client_events.Refused(_, code):
            return f"refused {code}"


def play_client(
    script: str,
    logins: list[Login],
    *,
    stls: bool = False,
    known: Capabilities | None = None,
    drip: bool = False,
    context: TransparentContext | None = None,
) -> ClientConnection:
    """A login at a backend. ``A:`` is tls, eof, skip, access token, or token: the next one of `context`.

    An error that ends it is told as ``E: error STAGE REASON CODE``.
    """
    connection = ClientConnection(logins, stls=stls, known=known)
    errors: list[str] = []

    def guarded(step: Callable[[], None]) -> None:
        try:
            step()
        except BackendError as error:
            errors.append(f"E: error {error.stage} {error.reason} {error.code}")

    def feed(octets: bytes) -> None:
        for piece in [octets[i : i + 1] for i in range(len(octets))] if drip else [octets]:
            if not errors:
                guarded(lambda piece=piece: connection.receive_data(piece))  # type: ignore[misc]

    def act(what: str) -> None:
        match what:
            case "tls":
                guarded(connection.upgrade_to_tls)
            case "eof":
                guarded(connection.receive_eof)
            case "skip":
                assert connection.skip_login()
            case "access token":
                guarded(lambda: connection.access_token(Secret("t0k3n")))
            case _:
                assert what == "token"
                assert context is not None
                guarded(lambda: connection.token_made(context, context.step(b"")))

    def heard() -> list[str]:
        found = shown("P", connection.data_to_send())
        found += [f"E: {client_event(event)}" for event in connection.events_received()] + errors
        errors.clear()
        return found

    actions = {
        "B:": lambda text: feed(unescape(text) + b"\r\n"),
        "B~": lambda text: feed(unescape(text)),
        "A:": act,
    }
    play(script, actions, heard)
    return connection
