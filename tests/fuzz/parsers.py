"""The parsers that read what strangers send, each as a function of octets that must not raise.

Besides not raising they must not care how the octets are cut: where it can be said, a target plays its input twice,
once as it is and once in pieces, and compares what came of it.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from popproxy.config.loader import load_bytes
from popproxy.errors import BackendError, ConfigError, LocalProtocolError, RemoteProtocolError
from popproxy.pop3 import client_events, server_events
from popproxy.pop3.client import ClientConnection
from popproxy.pop3.exchange import Exchange
from popproxy.pop3.logins import Apop, Bearer, Gssapi, Login, Plain, UserPass
from popproxy.pop3.logins import External as ExternalLogin
from popproxy.pop3.offer import Offer
from popproxy.pop3.server import ServerConnection
from popproxy.pop3.states import State
from popproxy.sasl.cram_md5 import CramMd5
from popproxy.sasl.credentials import Layer
from popproxy.sasl.external import External
from popproxy.sasl.gssapi import GssapiExchange, LayerOffer
from popproxy.sasl.login import Login as LoginMechanism
from popproxy.sasl.mechanism import NeedStep, NeedVerifier, SaslError, SaslMechanism, Verify
from popproxy.sasl.oauth import OAuthBearer, OAuthRefusals, XOAuth2
from popproxy.sasl.plain import Plain as PlainMechanism
from popproxy.sasl.scram import ScramExchange
from popproxy.sasl.scram_verifier import make_verifier
from popproxy.types import Address, CloseReason, Mechanism, Secret, SessionId
from popproxy.wire import clienthello
from popproxy.wire.kpop import ApReqReceived, KpopHandshake
from popproxy.wire.proxy_protocol import ProxyHeaderParser
from popproxy.wire.visitor import Visitor
from popproxy.wire.xclient import parse_xclient, xclient
from tests.fuzz.pieces import Fuzz
from tests.peers.gss_double import TransparentContext
from tests.pop3.helpers import chunks

ROOT = Path(__file__).parents[2]
STAMP = b"<0123456789abcdef@mail.example.org>"
VERIFIER = make_verifier(Mechanism.SCRAM_SHA_256, b"pencil", b"0123456789abcdef", 4096)
LAYERS = LayerOffer(Layer.NONE | Layer.INTEGRITY | Layer.CONFIDENTIALITY, 65536)
REFUSALS = OAuthRefusals("pop", "https://id.example.com/.well-known/openid-configuration")
MECHANISMS: dict[str, Callable[[], SaslMechanism]] = {
    "PLAIN": PlainMechanism,
    "LOGIN": LoginMechanism,
    "CRAM-MD5": partial(CramMd5, STAMP),
    "SCRAM-SHA-256": partial(ScramExchange, Mechanism.SCRAM_SHA_256, "nonce", None, plus_offered=True),
    "SCRAM-SHA-256-PLUS": partial(
        ScramExchange, Mechanism.SCRAM_SHA_256_PLUS, "nonce", {"tls-server-end-point": b"hash"}
    ),
    "EXTERNAL": partial(External, b"certificate"),
    "OAUTHBEARER": partial(OAuthBearer, REFUSALS),
    "XOAUTH2": partial(XOAuth2, REFUSALS),
    "GSSAPI": partial(GssapiExchange, LAYERS, lenient=True),
}
OFFERS = [
    Offer(passwords=True, mechanisms=MECHANISMS, timestamp=STAMP, rpop=Address("192.0.2.1", 600)),
    Offer(passwords=True, mechanisms={name: MECHANISMS[name] for name in ("PLAIN", "LOGIN")}),
    Offer(passwords=False),
]


# ---- the client's lines before the login ----


def whole_lines(octets: bytes) -> None:
    """Whatever popproxy says consists of lines that end in CRLF."""
    bare = octets.replace(b"\r\n", b"")
    assert b"\r" not in bare, octets
    assert b"\n" not in bare, octets
    assert not octets or octets.endswith(b"\r\n"), octets


def dialogue(offer: Offer, verdicts: list[int], pieces: list[bytes]) -> tuple[bytes, list[str], bytes]:
    """What a client hears that sends `pieces`, what becomes known of it, and what it pipelines behind its login."""
    core, said, seen, turn = ServerConnection(offer), bytearray(), [], 0
    core.greet("POP3 ready")
    for piece in [*pieces, None]:
        if piece is None:
            core.receive_eof()
        else:
            core.receive_data(piece)
        while events := core.events_received():
            for event in events:
                seen.append(type(event).__name__)
                verdict = verdicts[turn % len(verdicts)] if verdicts else 0
                match event:
                    case server_events.CredentialOffered(credential):
                        seen.append(f"{credential.mechanism} {credential.authcid!a} {credential.authzid!a}")
                        turn += 1
                        judge(core, verdict)
                    case server_events.GssStepNeeded(token):
                        seen.append(repr(token))
                        turn += 1
                        if verdict % 2:
                            core.sasl_step_done(TransparentContext(), b"" if verdict & 2 else None)
                        else:
                            core.login_failed("no", "AUTH")
                    case server_events.VerifierNeeded(_, authcid):
                        seen.append(repr(authcid))
                        core.verifier_found(VERIFIER)
        out = core.data_to_send()
        whole_lines(out)
        said += out
    rest, _ = core.take_rest()
    return bytes(said), seen, rest if core.state is State.TRANSACTION else b""


def judge(core: ServerConnection, verdict: int) -> None:
    match verdict:
        case 0:
            core.login_failed("no", "AUTH")
        case 1:
            core.login_failed("later", "SYS/TEMP")
        case 2:
            core.login_failed("enough", "AUTH", CloseReason.TOO_MANY_FAILURES)
        case _:
            core.login_accepted()


def client_line(data: bytes) -> None:
    fuzz = Fuzz(data)
    offer = OFFERS[fuzz.number(len(OFFERS))]
    verdicts = [fuzz.number(4) for _ in range(fuzz.number(4))]
    sizes = fuzz.sizes()
    octets = fuzz.rest()
    whole, cut = ([octets] if octets else []), chunks(octets, sizes)
    assert dialogue(offer, verdicts, whole) == dialogue(offer, verdicts, cut)


def stls_line(data: bytes) -> None:
    """STLS: what a client has sent ahead in clear is never taken for what it says inside TLS."""
    fuzz = Fuzz(data)
    core, inside = ServerConnection(Offer(passwords=False, stls=True)), False
    for piece in chunks(fuzz.text(), fuzz.sizes()):
        core.receive_data(piece)
        for event in core.events_received():
            match event:
                case server_events.TlsRequested():
                    try:
                        core.upgrade_to_tls(OFFERS[1])
                    except LocalProtocolError:
                        return
                    inside = True
                case server_events.CredentialOffered(_):
                    assert inside, "a password was taken in clear"
                    core.login_failed("no", "AUTH")
        whole_lines(core.data_to_send())


# ---- SASL, without the lines around it ----


def sasl(data: bytes) -> None:
    fuzz = Fuzz(data)
    mechanism = list(MECHANISMS.values())[fuzz.number(len(MECHANISMS))]()
    bindings = fuzz.number(2)
    response: bytes | None = None if bindings else fuzz.text()
    for _ in range(6):
        try:
            step = mechanism.step(response)
            if isinstance(step, NeedVerifier):
                assert isinstance(mechanism, ScramExchange)
                step = mechanism.verifier_found(VERIFIER)
            elif isinstance(step, NeedStep):
                assert isinstance(mechanism, GssapiExchange)
                answers: list[bytes | None] = [b"more"] if fuzz.number(2) else []
                step = mechanism.step_done(TransparentContext(answers), b"token")
        except SaslError as error:
            str(error).encode("ascii")  # it is shown to the client
            return
        if isinstance(step, Verify):
            assert isinstance(step.credential.authcid, str)
            assert isinstance(step.credential.authzid, str)
            return
        response = fuzz.text()


# ---- KPOP, PROXY, ClientHello ----


def handshake(verdict: int, pieces: list[bytes]) -> tuple[bytes, list[str], bytes]:
    core, said, seen = KpopHandshake(), bytearray(), []
    for piece in [*pieces, None]:
        if piece is None:
            core.receive_eof()
        else:
            core.receive_data(piece)
        for event in core.events_received():
            seen.append(repr(event))
            if isinstance(event, ApReqReceived):
                assert len(event.token) <= 65536
                core.accept(b"ap-rep" if verdict & 1 else None) if verdict < 2 else core.refuse(b"krb-error")
            elif event.owes_error:
                core.refuse(b"krb-error")
        said += core.data_to_send()
    return bytes(said), seen, core.rest


def kpop(data: bytes) -> None:
    fuzz = Fuzz(data)
    verdict, sizes, octets = fuzz.number(3), fuzz.sizes(), fuzz.rest()
    assert handshake(verdict, [octets] if octets else []) == handshake(verdict, chunks(octets, sizes))


def _of(error: RemoteProtocolError, reason: str) -> None:
    if error.reason != reason:
        raise AssertionError(f"not {reason}") from error


def header_of(pieces: list[bytes]) -> tuple[object, bytes]:
    parser = ProxyHeaderParser()
    try:
        for piece in pieces:
            parser.feed(piece)
    except RemoteProtocolError as error:
        _of(error, "proxy_header")
        return None, b""
    return parser.result, parser.rest


def proxy_header(data: bytes) -> None:
    fuzz = Fuzz(data)
    sizes, octets = fuzz.sizes(), fuzz.rest()
    assert header_of([octets]) == header_of(chunks(octets, sizes))


def front(data: bytes) -> None:
    """What is believed can be said again, and is the same then."""
    try:
        found = parse_xclient(data)
    except RemoteProtocolError as error:
        _of(error, "xclient")
        return
    again = xclient(Visitor(found.source, found.source, SessionId(found.session or "none"), found.hops + 1))
    assert again.startswith(b"XCLIENT ")
    assert not re.search(rb"[^ -~]", again[:-2])
    assert parse_xclient(again[8:-2]) == replace(found, session=found.session or "none")


def client_hello(data: bytes) -> None:
    complete = None
    for end in sorted({0, len(data) // 2, len(data)}):
        try:
            found = clienthello.parse(data[:end])
        except RemoteProtocolError as error:
            _of(error, "tls")
            return
        assert complete is None or found == complete, "more octets have changed what was complete"
        complete = found


# ---- what a server says ----

_LOGINS: list[list[Login]] = [
    [UserPass("alice", Secret("secret"), users_own=True)],
    [Apop("alice", Secret("secret")), UserPass("alice", Secret("secret"))],
    [Plain("alice", "master", Secret("secret"))],
    [Gssapi("alice", None, (Layer.NONE, Layer.CONFIDENTIALITY), "kerberos-service")],
    [ExternalLogin("alice"), Bearer("alice", None)],
]


def server_login(data: bytes) -> None:
    """A server while popproxy logs in there: it may break off, but only by BackendError."""
    fuzz = Fuzz(data)
    core = ClientConnection(
        _LOGINS[fuzz.number(len(_LOGINS))],
        stls=fuzz.number(2) == 1,
        known={"PIPELINING": ()} if fuzz.number(2) else None,
    )
    encrypted = False
    try:
        for piece in [*chunks(fuzz.text(), fuzz.sizes()), None]:
            if piece is None:
                core.receive_eof()
            else:
                core.receive_data(piece)
            out = core.data_to_send()
            whole_lines(out)
            assert encrypted or not core._stls or b"secret" not in out, "a password over a link that is not secured"
            for event in core.events_received():
                if isinstance(event, client_events.StartTls):
                    core.upgrade_to_tls()
                    encrypted = True
                elif isinstance(event, client_events.TokenNeeded):
                    core.token_made(TransparentContext(), b"token")
                elif isinstance(event, client_events.AccessTokenNeeded):
                    core.access_token(Secret("secret"))
            whole_lines(core.data_to_send())
    except (BackendError, LocalProtocolError):
        return


def relayed(asked: list[bytes], answers: list[bytes], *, pipelining: bool, lone: bool) -> tuple[bytes, bytes, str]:
    """What both ends get, and what is on record; `lone` by the short way for lock-step, if it can be gone."""
    exchange = Exchange(pipelining=pipelining, before={"USER": ()}, declared={"TOP": ()})
    to_client, to_server = bytearray(), bytearray()
    record: list[tuple[object, ...]] = []

    def settle() -> None:
        while True:
            said = exchange.local_answers()
            to_client.extend(said)
            commands = exchange.commands_to_send(client_drained=True)
            to_server.extend(commands)
            if not said and not commands:
                break
        for event in exchange.events:
            record.append((event.verb, event.number, event.ok, event.octets, event.reply))
        exchange.events.clear()

    for octets in asked:
        if lone and exchange.take_lone_command(octets):
            to_server += octets
        else:
            exchange.receive_from_client(octets)
            settle()
    for octets in answers:
        if exchange.violation is not None:
            break
        if lone and exchange.take_lone_reply(octets, len(octets)):
            to_client += octets
        else:
            shown = exchange.receive_from_backend(octets, len(octets))
            to_client += octets if shown is None else shown
        settle()
    cut = exchange.cut()
    record.append(
        (cut and (cut.verb, cut.octets), sorted(exchange.deleted.items()), exchange.highest, exchange.violation is None)
    )
    return bytes(to_client), bytes(to_server), repr(record)


def server_replies(data: bytes) -> None:
    """TRANSACTION: however the replies are cut, and by whichever way they are taken, the same comes of them."""
    fuzz = Fuzz(data)
    commands, sizes, answers = fuzz.text(), fuzz.sizes(), fuzz.rest()
    asked = [commands] if commands else []
    whole = relayed(asked, [answers] if answers else [], pipelining=True, lone=False)
    assert relayed(asked, [answers] if answers else [], pipelining=True, lone=True) == whole
    if b"QUIT" not in commands.upper():  # which waits for all replies before it, and so for where they are cut
        assert relayed(asked, chunks(answers, sizes), pipelining=True, lone=False) == whole
        assert relayed(asked, chunks(answers, sizes), pipelining=True, lone=True) == whole
    relayed(chunks(commands, sizes), chunks(answers, sizes), pipelining=False, lone=True)


# ---- configuration ----


def configuration(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        load_bytes(data, ROOT / "config" / "fuzzed.yaml")


def planted(data: bytes) -> None:
    """No target, but the proof that one would be noticed."""
    if data[:1] == b"+" and data[1:2] == b"O":
        _ = 1 // 0


def planted_slow(data: bytes) -> None:
    """The proof that one which takes its time would be noticed, too."""
    if data[:3] == b"+OK":
        started = time.thread_time()
        while time.thread_time() < started + 0.15:
            pass
