"""AUTHORIZATION as the client sees it: protocol.md's checklist as transcripts, and blindness to segmentation."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import LocalProtocolError
from popproxy.pop3.commands import COMMANDS
from popproxy.pop3.offer import Offer
from popproxy.pop3.server import BACKLOG_LIMIT, INPUT_LIMIT, SASL_LINE_LIMIT, ServerConnection
from popproxy.pop3.server_events import CredentialOffered, Event, Finished
from popproxy.pop3.states import IN_AUTHORIZATION, State
from popproxy.sasl.credentials import PasswordCredential
from popproxy.types import CloseReason
from tests.pop3.helpers import CLEAR, OPEN, chunks, play_server

SECRET_PLAIN = base64.b64encode(b"\0alice\0secret").decode()
BOTH = pytest.mark.parametrize("drip", [False, True], ids=["whole", "drip"])

DIALOGUES = {
    "user and pass": """
        C: USER alice
        S: +OK send PASS
        C: PASS secret
        E: credential USER 'alice' authzid='' b'secret'
        A: accept
        S: +OK Logged in
        """,
    "keywords in any case": """
        C: uSeR alice
        S: +OK send PASS
        C: pass secret
        E: credential USER 'alice' authzid='' b'secret'
        """,
    "spaces belong to the password": """
        C: USER alice
        S: +OK send PASS
        C: PASS  two  words\\x20
        E: credential USER 'alice' authzid='' b' two  words '
        """,
    "octets of a password are kept, control characters are for the authentication to refuse": r"""
        C: USER b\xc3\xbccher\xff
        S: +OK send PASS
        C: PASS a\x00b\tc\rd\xfc
        E: credential USER 'b\xfccher\udcff' authzid='' b'a\x00b\tc\rd\xfc'
        """,
    "pass only straight after user": """
        C: PASS secret
        S: -ERR send USER first
        C: USER alice
        S: +OK send PASS
        C: NOOP
        S: +OK
        C: PASS secret
        S: -ERR send USER first
        """,
    "a failed login forgets the user": """
        C: USER alice
        S: +OK send PASS
        C: PASS wrong
        E: credential USER 'alice' authzid='' b'wrong'
        A: fail AUTH
        S: -ERR [AUTH] no
        C: PASS secret
        S: -ERR send USER first
        """,
    "the last user counts": """
        C: USER alice
        S: +OK send PASS
        C: USER bob
        S: +OK send PASS
        C: PASS secret
        E: credential USER 'bob' authzid='' b'secret'
        """,
    "a bad command between user and pass": """
        C: USER alice
        S: +OK send PASS
        C: XYZZY
        S: -ERR unknown command
        C: PASS secret
        S: -ERR send USER first
        """,
    "arguments are asked for": """
        C: USER
        S: -ERR USER needs an argument
        C: PASS
        S: -ERR PASS needs an argument
        C: QUIT now
        S: -ERR QUIT takes no argument
        C: CAPA x
        S: -ERR CAPA takes no argument
        C: APOP alice
        S: -ERR APOP needs a name and a digest of 32 hex digits
        """,
    "what belongs to another state": """
        C: STAT
        S: -ERR log in first
        C: RETR 1
        S: -ERR log in first
        C: DELE 1
        S: -ERR log in first
        C: LAST
        S: -ERR log in first
        """,
    "lines that are no commands": r"""
        C:
        S: -ERR unknown command
        C:  QUIT
        S: -ERR unknown command
        C: QUIT\r
        S: -ERR unknown command
        C: QUIT\x00
        S: -ERR unknown command
        C: USER\talice
        S: -ERR unknown command
        C: \xff\xf4\xff\xfd\x06
        S: -ERR unknown command
        """,
    "nothing of the line is echoed": """
        C: <script>alert(1)</script>
        S: -ERR unknown command
        """,
    "a bare LF ends a line as well": r"""
        C~ USER alice\nPASS secret\n
        S: +OK send PASS
        E: credential USER 'alice' authzid='' b'secret'
        """,
    "apop": """
        C: APOP alice 0123456789ABCDEF0123456789abcdef
        E: credential APOP 'alice' authzid='' b'0123456789abcdef0123456789abcdef'
        """,
    "auth without a mechanism lists them": """
        C: AUTH
        S: +OK mechanisms follow
        S: PLAIN
        S: LOGIN
        S: .
        """,
    "auth plain with an initial response": f"""
        C: AUTH plain {SECRET_PLAIN}
        E: credential PLAIN 'alice' authzid='' b'secret'
        A: accept
        S: +OK Logged in
        """,
    "auth plain in two steps: the empty challenge keeps its space": f"""
        C: AUTH PLAIN
        S: +\\x20
        C: {SECRET_PLAIN}
        E: credential PLAIN 'alice' authzid='' b'secret'
        """,
    "auth plain with an authzid": f"""
        C: AUTH PLAIN {base64.b64encode(b"bob" + bytes(1) + b"alice" + bytes(1) + b"secret").decode()}
        E: credential PLAIN 'alice' authzid='bob' b'secret'
        """,
    "= is an empty initial response": """
        C: AUTH PLAIN =
        S: -ERR PLAIN needs authzid, authcid and password, separated by NUL
        C: AUTH LOGIN =
        S: + UGFzc3dvcmQ6
        C: c2VjcmV0
        E: credential LOGIN '' authzid='' b'secret'
        """,
    "auth login": """
        C: AUTH LOGIN
        S: + VXNlcm5hbWU6
        C: YWxpY2U=
        S: + UGFzc3dvcmQ6
        C: c2VjcmV0
        E: credential LOGIN 'alice' authzid='' b'secret'
        """,
    "auth login with the name at once": """
        C: AUTH LOGIN YWxpY2U=
        S: + UGFzc3dvcmQ6
        C: c2VjcmV0
        E: credential LOGIN 'alice' authzid='' b'secret'
        """,
    "* cancels, and the exchange is gone": """
        C: AUTH PLAIN
        S: +\\x20
        C: *
        S: -ERR authentication cancelled
        C: QUIT
        S: +OK Bye
        E: finished quit_before_login
        """,
    "what is no base64": """
        C: AUTH PLAIN !!!
        S: -ERR this is not base64
        C: AUTH PLAIN AGFsaWNl=AHNl
        S: -ERR this is not base64
        C: AUTH PLAIN
        S: +\\x20
        C: A
        S: -ERR this is not base64
        C: NOOP
        S: +OK
        """,
    "a command inside an exchange is a response, not a command": """
        C: AUTH PLAIN
        S: +\\x20
        C: USER alice
        S: -ERR this is not base64
        C: PASS secret
        S: -ERR send USER first
        """,
    "mechanisms that are not offered": r"""
        C: AUTH GSSAPI
        S: -ERR this mechanism is not offered here
        C: AUTH \xff\xfe
        S: -ERR this mechanism is not offered here
        """,
    "an unfinished auth is closed with the connection": """
        C: AUTH PLAIN
        S: +\\x20
        A: eof
        E: finished client_lost
        """,
    "quit": """
        C: QUIT
        S: +OK Bye
        E: finished quit_before_login
        C: USER alice
        """,
    "quit without a line end is no quit": """
        C~ QUIT
        A: eof
        E: finished client_lost
        """,
    "what was sent before the half-close is answered": r"""
        C~ USER alice\r\nPASS wrong\r\nCAPA x\r\n
        S: +OK send PASS
        E: credential USER 'alice' authzid='' b'wrong'
        A: eof
        A: fail AUTH
        S: -ERR [AUTH] no
        S: -ERR CAPA takes no argument
        E: finished client_lost
        """,
    "pipelined behind a login that ends the connection": r"""
        C~ USER alice\r\nPASS wrong\r\nNOOP\r\n
        S: +OK send PASS
        E: credential USER 'alice' authzid='' b'wrong'
        A: final too_many_failures
        S: -ERR [AUTH] no
        E: finished too_many_failures
        """,
    "nobody waits for a verdict twice": r"""
        C~ USER alice\r\nPASS a\r\nUSER alice\r\nPASS b\r\n
        S: +OK send PASS
        E: credential USER 'alice' authzid='' b'a'
        A: fail SYS/TEMP
        S: -ERR [SYS/TEMP] no
        S: +OK send PASS
        E: credential USER 'alice' authzid='' b'b'
        """,
    "ten bad commands": "C: X\nS: -ERR unknown command\n" * 9
    + "C: X\nS: -ERR too many errors\nE: finished too_many_errors\nC: CAPA",
}


@BOTH
@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue(name: str, drip: bool) -> None:
    play_server(DIALOGUES[name], drip=drip)


CLEAR_DIALOGUES = {
    "no password without tls": f"""
        C: USER alice
        S: -ERR passwords are not taken without TLS here, use STLS first
        C: PASS secret
        S: -ERR passwords are not taken without TLS here, use STLS first
        C: AUTH PLAIN {SECRET_PLAIN}
        S: -ERR passwords are not taken without TLS here, use STLS first
        C: AUTH LOGIN
        S: -ERR passwords are not taken without TLS here, use STLS first
        C: AUTH
        S: +OK mechanisms follow
        S: .
        C: APOP alice 0123456789abcdef0123456789abcdef
        S: -ERR APOP is not offered here
        """,
    "capa before tls": """
        C: CAPA
        S: +OK capability list follows
        S: STLS
        S: RESP-CODES
        S: AUTH-RESP-CODE
        S: PIPELINING
        S: IMPLEMENTATION popproxy
        S: .
        """,
    "stls": """
        C: STLS
        S: +OK begin TLS
        E: tls
        A: tls
        C: STLS
        S: -ERR STLS is not available
        C: CAPA
        S: +OK capability list follows
        S: USER
        S: SASL PLAIN LOGIN
        S: RESP-CODES
        S: AUTH-RESP-CODE
        S: PIPELINING
        S: IMPLEMENTATION popproxy
        S: .
        """,
    "stls takes no argument": """
        C: STLS now
        S: -ERR STLS takes no argument
        """,
}


@BOTH
@pytest.mark.parametrize("name", CLEAR_DIALOGUES)
def test_dialogue_in_the_clear(name: str, drip: bool) -> None:
    play_server(CLEAR_DIALOGUES[name], CLEAR, drip=drip)


def test_tls_forgets_the_user() -> None:
    play_server(
        """
        C: USER alice
        S: +OK send PASS
        C: STLS
        S: +OK begin TLS
        E: tls
        A: tls
        C: PASS secret
        S: -ERR send USER first
        """,
        Offer(passwords=True, stls=True),
    )


@pytest.mark.parametrize("behind", [r"\x16", r"USER injected\r\n", r"\r\n", "C"])
def test_anything_pipelined_behind_stls_is_refused(behind: str) -> None:
    play_server(
        rf"""
        C~ STLS\r\n{behind}
        S: -ERR nothing may follow STLS before TLS
        E: finished protocol
        """,
        CLEAR,
    )


def test_plain_text_that_comes_after_the_answer_to_stls_never_reaches_the_dialogue() -> None:
    connection = play_server("C: STLS\nS: +OK begin TLS\nE: tls", CLEAR)
    connection.receive_data(b"USER injected\r\n")
    assert (connection.data_to_send(), connection.events_received()) == (b"", [])
    with pytest.raises(LocalProtocolError):
        connection.upgrade_to_tls(OPEN)


def test_an_apop_timestamp_in_the_greeting_announces_apop() -> None:
    play_server("S: +OK POP3 server ready <0123456789abcdef@mail.example.org>", greet=True)
    play_server("S: +OK POP3 server ready", CLEAR, greet=True)


def test_capa_lists_what_backends_have_in_common() -> None:
    offer = Offer(passwords=True, backend={"TOP": (), "UIDL": (), "LOGIN-DELAY": ("60", "USER")}, implementation="x 1")
    play_server(
        """
        C: CAPA
        S: +OK capability list follows
        S: TOP
        S: UIDL
        S: LOGIN-DELAY 60 USER
        S: USER
        S: RESP-CODES
        S: AUTH-RESP-CODE
        S: PIPELINING
        S: IMPLEMENTATION x 1
        S: .
        """,
        offer,
    )


@pytest.mark.parametrize("offer", [OPEN, CLEAR, Offer(passwords=True, stls=True), Offer(passwords=False)])
def test_capa_lists_only_what_works(offer: Offer) -> None:
    listed = offer.capabilities()
    for tag, line in (("USER", b"USER a\r\n"), ("STLS", b"STLS\r\n"), ("SASL", b"AUTH PLAIN\r\n")):
        connection = ServerConnection(offer)
        connection.receive_data(line)
        assert connection.data_to_send().startswith(b"+") == (tag in listed)


@pytest.mark.parametrize(
    "line", ["GET / HTTP/1.1", "post /x HTTP/1.0", "OPTIONS * HTTP/1.1", "EHLO a", "HELO a", "CONNECT a:1 HTTP/1.1"]
)
@BOTH
def test_other_protocols_are_shown_the_door(line: str, drip: bool) -> None:
    play_server(rf"""
        C~ {line}\r\nUSER alice\r\nPASS secret\r\n
        S: -ERR this is a POP3 server
        E: finished protocol
        """, drip=drip)  # fmt: skip


@pytest.mark.parametrize(
    ("length", "good"), [(511 - 5, True), (512 - 5 - 2, True), (513 - 5 - 2, False), (SASL_LINE_LIMIT, False)]
)
def test_a_command_has_512_octets(length: int, good: bool) -> None:
    connection = ServerConnection(OPEN)
    end = b"\n" if length == 511 - 5 else b"\r\n"
    connection.receive_data(b"USER " + b"a" * length + end)
    expected = b"+OK send PASS\r\n" if good and end == b"\r\n" else b"-ERR line too long\r\n"
    assert connection.data_to_send() == expected
    connection.receive_data(b"NOOP\r\n")
    assert connection.data_to_send() == b"+OK\r\n"


@pytest.mark.parametrize("inside", [False, True])
def test_a_sasl_line_may_be_longer_but_not_endless(inside: bool) -> None:
    head = b"AUTH PLAIN\r\n" if inside else b"AUTH PLAIN "
    name = b"a" * 8000
    connection = ServerConnection(OPEN)
    connection.receive_data(head + base64.b64encode(b"\0" + name + b"\0secret") + b"\r\n")
    [event] = connection.events_received()
    assert isinstance(event, CredentialOffered)
    assert event.credential.authcid == name.decode()
    connection = ServerConnection(OPEN)
    connection.receive_data(head + b"A" * SASL_LINE_LIMIT)
    connection.receive_data(b"A" * 1000 + b"\r\nNOOP\r\n")
    assert connection.data_to_send() == (b"+ \r\n" if inside else b"") + b"-ERR line too long\r\n+OK\r\n"


def test_a_line_too_long_forgets_the_user() -> None:
    connection = ServerConnection(OPEN)
    connection.receive_data(b"USER alice\r\n" + b"x" * 20000 + b"\r\nPASS secret\r\n")
    assert connection.data_to_send() == b"+OK send PASS\r\n-ERR line too long\r\n-ERR send USER first\r\n"


@pytest.mark.parametrize("line", [b"NOOP\r\n", b"NOOP\n", b"x" * 100000])
def test_input_before_the_login_has_a_limit(line: bytes) -> None:
    connection = ServerConnection(OPEN, bad_commands=10**9)
    fed = 0
    while connection.state is State.AUTHORIZATION:
        assert fed <= INPUT_LIMIT, "an endless line counts as well"
        connection.receive_data(line)
        fed += len(line)
    assert connection.data_to_send().endswith(b"-ERR too much input before the login\r\n")
    assert connection.events_received() == [Finished(CloseReason.PROTOCOL)]


def test_reading_pauses_while_a_login_is_judged() -> None:
    connection = ServerConnection(OPEN)
    connection.receive_data(b"USER a\r\nPASS b\r\n" + b"NOOP\r\n" * (BACKLOG_LIMIT // 6))
    paused = [connection.backlogged]
    connection.receive_data(b"NOOP\r\n")
    paused.append(connection.backlogged)
    connection.login_failed("no", "AUTH")
    assert [*paused, connection.backlogged] == [False, True, False]


def test_what_is_pipelined_behind_the_login_is_handed_over() -> None:
    connection = ServerConnection(OPEN)
    connection.receive_data(b"USER a\r\nPASS b\r\nSTAT\r\nRETR 1\r\nQU")
    connection.receive_eof()
    connection.login_accepted()
    assert connection.take_rest() == (b"STAT\r\nRETR 1\r\nQU", True)
    assert connection.state is State.TRANSACTION


def test_a_verdict_out_of_turn_is_our_bug() -> None:
    connection = play_server("C: QUIT\nS: +OK Bye\nE: finished quit_before_login")
    with pytest.raises(LocalProtocolError):
        connection.login_accepted()


def test_every_command_is_answered_or_belongs_elsewhere() -> None:
    for verb in COMMANDS:
        connection = ServerConnection(OPEN)
        connection.receive_data(f"{verb} 1\r\n".encode())
        assert bool(connection.data_to_send()) or bool(connection.events_received())
        assert connection.commands or connection.state is not State.AUTHORIZATION or verb in IN_AUTHORIZATION


# ---- segmentation ----

LINES = [
    b"USER alice\r\n", b"PASS good\r\n", b"PASS bad\r\n", b"PASS  \r\n", b"AUTH PLAIN\r\n", b"*\r\n",
    b"AUTH LOGIN YQ==\r\n", b"AUTH PLAIN AGEAZ29vZA==\r\n", b"AGEAYmFk\r\n", b"AGEAZ29vZA==\r\n", b"CAPA\r\n",
    b"AUTH\r\n", b"NOOP\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b"GET / HTTP/1.1\r\n", b"STLS\r\n", b"QUIT\r\n", b"QUIT",
    b"STAT\r\n", b"\0\n", b"APOP a " + b"0" * 32 + b"\r\n", b"x" * 510 + b"\r\n", b"x" * 511 + b"\r\n",
    b"A" * (SASL_LINE_LIMIT - 1) + b"\n", b"A" * SASL_LINE_LIMIT + b"\n", b"A" * 30000, b"B" * 100000 + b"\r\n",
]  # fmt: skip
streams = st.lists(st.sampled_from(LINES) | st.binary(max_size=8), max_size=25).map(b"".join)


def dialogue(pieces: list[bytes]) -> tuple[bytes, list[Event], list[tuple[str, bool]], State, bytes]:
    """Feed the pieces, judge each credential when it is offered, and tell all that came of it."""
    connection = ServerConnection(OPEN, bad_commands=6)
    out, seen = b"", []
    for piece in [*pieces, None]:
        if piece is None:
            connection.receive_eof()
        else:
            connection.receive_data(piece)
        while events := connection.events_received():
            seen += events
            for event in events:
                if isinstance(event, CredentialOffered):
                    good = (
                        isinstance(event.credential, PasswordCredential)
                        and event.credential.password.reveal() == b"good"
                    )
                    if good:
                        connection.login_accepted()
                    else:
                        connection.login_failed("no", "AUTH")
        out += connection.data_to_send()
    rest = connection.take_rest()[0] if connection.state is State.TRANSACTION else b""
    return out, seen, connection.commands, connection.state, rest


@given(streams, st.lists(st.integers(1, 40) | st.integers(1, 20000), max_size=60))
def test_any_octets_at_any_split_give_the_same_dialogue(octets: bytes, sizes: list[int]) -> None:
    assert dialogue(chunks(octets, sizes)) == dialogue([octets])


@given(st.lists(st.sampled_from(LINES[:24]) | st.binary(max_size=8), max_size=12).map(b"".join))
def test_octet_by_octet_gives_the_same_dialogue(octets: bytes) -> None:
    assert dialogue([octets[i : i + 1] for i in range(len(octets))]) == dialogue([octets])
