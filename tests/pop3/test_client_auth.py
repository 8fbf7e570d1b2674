"""AUTH at a backend: PLAIN and GSSAPI as transcripts, every premature or odd answer, at every split."""

from __future__ import annotations

import base64
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import BackendError, LocalProtocolError
from popproxy.pop3.client import ClientConnection
from popproxy.pop3.client_events import LoggedIn, Refused, TokenNeeded
from popproxy.pop3.logins import Apop, Bearer, External, Gssapi, Login, Plain, UserPass
from popproxy.sasl.credentials import Layer
from popproxy.types import Secret
from tests.peers.gss_double import TransparentContext
from tests.pop3.helpers import chunks, client_event, play_client

PLAIN = Plain("alice", "proxy", Secret("secret"))
LONG = Plain("alice", "proxy", Secret("s" * 200))
PASS = UserPass("alice", Secret("secret"))
SOURCE = object()
BOTH = pytest.mark.parametrize("drip", [False, True], ids=["whole", "drip"])


def gssapi(*layers: Layer) -> Gssapi:
    return Gssapi("alice", SOURCE, layers or (Layer.NONE,), "kerberos-delegated")


def b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def context(**flags: bool) -> TransparentContext:
    """A client's end that says one thing, hears one thing, and is complete."""
    return TransparentContext([b"AP-REQ", None], **flags)


def offer(mask: int, size: int) -> bytes:
    """The server's offer of layers, as its end of the context wraps it."""
    return TransparentContext().wrap(bytes([mask]) + size.to_bytes(3, "big"), confidential=False)


def choice(layer: int, size: int, authzid: bytes = b"alice") -> bytes:
    return TransparentContext().wrap(bytes([layer]) + size.to_bytes(3, "big") + authzid, confidential=False)


PLAIN_TALK = {
    "with an initial response": f"""
        B: +OK ready
        P: AUTH PLAIN {b64(b"alice" + bytes(1) + b"proxy" + bytes(1) + b"secret")}
        B: +OK
        E: logged in, learned None
        """,
    "refused": f"""
        B: +OK ready
        P: AUTH PLAIN {b64(b"alice" + bytes(1) + b"proxy" + bytes(1) + b"secret")}
        B: -ERR [AUTH] no
        E: refused AUTH
        """,
    "a challenge that PLAIN does not have": rf"""
        B: +OK ready
        P: AUTH PLAIN {b64(b"alice" + bytes(1) + b"proxy" + bytes(1) + b"secret")}
        B~ +\x20\r\n
        E: error login protocol SYS/TEMP
        """,
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("script", PLAIN_TALK.values(), ids=PLAIN_TALK.keys())
def test_plain(script: str, drip: bool) -> None:
    play_client(script, [PLAIN], known={}, drip=drip)


@BOTH
def test_plain_that_is_too_long_for_the_command(drip: bool) -> None:
    play_client(
        rf"""
        B: +OK ready
        P: AUTH PLAIN
        B~ +\x20\r\n
        P: {b64(b"alice" + bytes(1) + b"proxy" + bytes(1) + b"s" * 200)}
        B: +OK
        E: logged in, learned None
        """,
        [LONG],
        known={},
        drip=drip,
    )


@pytest.mark.parametrize(("length", "initial"), [(168, True), (169, False)])
def test_the_command_is_never_longer_than_255_octets(length: int, initial: bool) -> None:
    """RFC 5034 section 4."""
    connection = ClientConnection([Plain("alice", "proxy", Secret("s" * length))], known={})
    connection.receive_data(b"+OK\r\n")
    line = connection.data_to_send()
    assert (line != b"AUTH PLAIN\r\n") == initial
    assert len(line) <= 255
    assert connection.credential_sent == initial


@BOTH
def test_external(drip: bool) -> None:
    script = f"""
        B: +OK ready
        P: AUTH EXTERNAL {b64(b"alice")}
        B: +OK
        E: logged in, learned None
        """
    play_client(script, [External("alice")], known={"SASL": ("EXTERNAL",)}, drip=drip)


BEARER = {
    "XOAUTH2": (b"user=a=b,c\1auth=Bearer t0k3n\1\1", ""),
    "OAUTHBEARER": (b"n,a=a=3Db=2Cc,\1auth=Bearer t0k3n\1\1", b64(b"\1")),
}
"""What each mechanism says to log in, and to a refusal (RFC 7628 section 3.2.3)."""


@BOTH
@pytest.mark.parametrize("two_lines", [False, True])
@pytest.mark.parametrize("name", BEARER)
def test_access_token(name: Literal["XOAUTH2", "OAUTHBEARER"], two_lines: bool, drip: bool) -> None:
    message, resigned = BEARER[name]
    said = rf"""
        P: AUTH {name}
        B~ +\x20\r\n
        P: {b64(message)}""" if two_lines else f"""
        P: AUTH {name} {b64(message)}"""  # fmt: skip
    refused = f"B: + {b64(b'{}')}\n        P: {resigned}".rstrip() + "\n        "
    for end in (
        "B: +OK\n        E: logged in, learned None",
        "B: -ERR no\n        E: refused None",
        f"{refused}B: -ERR [AUTH] no\n        E: refused AUTH",
        f"{refused}B: +OK\n        E: error login protocol SYS/TEMP",
        f"{refused}B: + {b64(b'{}')}\n        E: error login protocol SYS/TEMP",
    ):
        script = f"""
        B: +OK ready
        E: access token
        A: access token{said}
        {end}
        """
        play_client(script, [Bearer("a=b,c", SOURCE, name, two_lines)], known={}, drip=drip)


def test_what_the_server_does_not_offer_is_left_out() -> None:
    """A list without the mechanism counts, no list at all does not."""
    logins: list[Login] = [Bearer("alice", SOURCE), External("alice"), PLAIN, PASS]
    for known, first in (
        ({"SASL": ("PLAIN", "LOGIN")}, b"AUTH PLAIN "),
        ({"SASL": ("external",)}, b"AUTH EXTERNAL "),
        ({"SASL": ()}, b"USER "),
        ({}, b""),
    ):
        connection = ClientConnection(logins, known=known)
        connection.receive_data(b"+OK ready\r\n")
        assert connection.data_to_send().startswith(first) if first else connection.events_received()
    connection = ClientConnection([External("alice")], known={"SASL": ("PLAIN",)})
    with pytest.raises(BackendError, match="none of the ways") as raised:
        connection.receive_data(b"+OK ready\r\n")
    assert (raised.value.code, connection.credential_sent) == ("SYS/PERM", False)


def test_access_token_that_nobody_asked_for() -> None:
    connection = ClientConnection([PLAIN], known={})
    with pytest.raises(LocalProtocolError):
        connection.access_token(Secret("t0k3n"))


def gssapi_talk(answer: bytes, size: int = 0, mask: int = 1, chosen: int = 1, logged_in: str = "") -> str:
    our_max = 0 if chosen == 1 else 65536
    return rf"""
        B: +OK ready
        E: token for None
        A: token
        P: AUTH GSSAPI {b64(b"AP-REQ")}
        B: + {b64(answer)}
        E: token for {answer!r}
        A: token
        P:
        B: + {b64(offer(mask, size))}
        P: {b64(choice(chosen, our_max))}
        B: +OK
        E: logged in, learned None{logged_in}
        """


@BOTH
@pytest.mark.parametrize(
    ("layers", "mask", "size", "chosen", "logged_in"),
    [
        ((Layer.NONE,), 1, 0, 1, ""),
        ((Layer.NONE,), 7, 65536, 1, ""),
        ((Layer.CONFIDENTIALITY, Layer.INTEGRITY), 7, 65536, 4, ", layer 4 up to 65536"),
        ((Layer.CONFIDENTIALITY, Layer.INTEGRITY), 3, 4096, 2, ", layer 2 up to 4096"),
        ((Layer.CONFIDENTIALITY, Layer.NONE), 7, 20, 1, ""),
        ((Layer.INTEGRITY, Layer.CONFIDENTIALITY), 0xFF, 65536, 2, ", layer 2 up to 65536"),
    ],
)
def test_gssapi(layers: tuple[Layer, ...], mask: int, size: int, chosen: int, logged_in: str, drip: bool) -> None:
    script = gssapi_talk(b"AP-REP", size, mask, chosen, logged_in)
    play_client(script, [gssapi(*layers)], known={}, drip=drip, context=context())


BEGINNING = rf"""
        B: +OK ready
        E: token for None
        A: token
        P: AUTH GSSAPI {b64(b"AP-REQ")}
"""
OFFERED = rf"""
{BEGINNING}
        B: + {b64(b"AP-REP")}
        E: token for b'AP-REP'
        A: token
        P:
"""
REFUSED = {
    "the server does not know it": rf"""
        {BEGINNING}
        B: -ERR unknown mechanism
        E: refused None
        """,
    "the server does not let us in": rf"""
        {OFFERED}
        B: + {b64(offer(1, 0))}
        P: {b64(choice(1, 0))}
        B: -ERR [AUTH] Authentication failed.
        E: refused AUTH
        """,
    "the maildrop is locked": rf"""
        {OFFERED}
        B: + {b64(offer(1, 0))}
        P: {b64(choice(1, 0))}
        B: -ERR [IN-USE] locked
        E: refused IN-USE
        """,
    "+OK to the first token: the server has not proved itself": rf"""
        {BEGINNING}
        B: +OK welcome
        E: error login protocol SYS/TEMP
        """,
    "+OK in place of the offer of layers": rf"""
        {OFFERED}
        B: +OK welcome
        E: error login protocol SYS/TEMP
        """,
    "no token": rf"""
        {BEGINNING}
        B~ +\r\n
        E: error login protocol SYS/TEMP
        """,
    "no base64": rf"""
        {BEGINNING}
        B: + !!!!
        E: error login protocol SYS/TEMP
        """,
    "neither reply nor challenge": rf"""
        {BEGINNING}
        B: * BAD
        E: error login protocol SYS/TEMP
        """,
    "a forged offer": rf"""
        {OFFERED}
        B: + {b64(offer(1, 0)[:-1] + b"!")}
        E: error login protocol SYS/TEMP
        """,
    "an offer that is too short": rf"""
        {OFFERED}
        B: + {b64(TransparentContext().wrap(bytes([1, 0, 0]), confidential=False))}
        E: error login protocol SYS/TEMP
        """,
    "an offer that is too long": rf"""
        {OFFERED}
        B: + {b64(TransparentContext().wrap(bytes([1, 0, 0, 0, 0]), confidential=False))}
        E: error login protocol SYS/TEMP
        """,
    "an empty offer": rf"""
        {OFFERED}
        B: + {b64(offer(0, 0))}
        E: error login layer SYS/PERM
        """,
    "layers that will not do": rf"""
        {OFFERED}
        B: + {b64(offer(6, 65536))}
        E: error login layer SYS/PERM
        """,
    "one challenge more": rf"""
        {OFFERED}
        B: + {b64(offer(1, 0))}
        P: {b64(choice(1, 0))}
        B: + {b64(offer(1, 0))}
        E: error login protocol SYS/TEMP
        """,
    "closed in the middle": rf"""
        {BEGINNING}
        A: eof
        E: error login eof SYS/TEMP
        """,
    "more behind +OK": rf"""
        {OFFERED}
        B: + {b64(offer(1, 0))}
        P: {b64(choice(1, 0))}
        B~ +OK\r\n+
        E: logged in, learned None
        E: error login protocol SYS/TEMP
        """,
}


@BOTH
@pytest.mark.parametrize("script", REFUSED.values(), ids=REFUSED.keys())
def test_gssapi_that_fails(script: str, drip: bool) -> None:
    play_client(script, [gssapi()], known={}, drip=drip, context=context())


def test_the_first_token_is_sent_without_the_command_where_it_is_too_long() -> None:
    token = b"x" * 600
    play_client(
        rf"""
        B: +OK ready
        E: token for None
        A: token
        P: AUTH GSSAPI
        B~ +\x20\r\n
        P: {b64(token)}
        B: + {b64(b"AP-REP")}
        E: token for b'AP-REP'
        A: token
        P:
        B: + {b64(offer(1, 0))}
        P: {b64(choice(1, 0))}
        B: +OK
        E: logged in, learned None
        """,
        [gssapi()],
        known={},
        context=TransparentContext([token, None]),
    )


def test_a_challenge_where_the_first_token_belongs_is_refused() -> None:
    play_client(
        f"""
        B: +OK ready
        E: token for None
        A: token
        P: AUTH GSSAPI
        B: + {b64(b"surprise")}
        E: error login protocol SYS/TEMP
        """,
        [gssapi()],
        known={},
        context=TransparentContext([b"x" * 600, None]),
    )


@pytest.mark.parametrize(
    ("flags", "layers", "reason"),
    [
        ({"mutual": False}, (Layer.NONE,), "protocol"),
        ({"confidentiality": False}, (Layer.CONFIDENTIALITY,), "layer"),
        ({"integrity": False}, (Layer.INTEGRITY,), "layer"),
    ],
)
def test_a_context_that_cannot_do_what_is_needed(
    flags: dict[str, bool], layers: tuple[Layer, ...], reason: str
) -> None:
    connection, end = ClientConnection([gssapi(*layers)], known={}), context(**flags)
    with pytest.raises(BackendError) as caught:
        play_on(connection, end, [b"+OK\r\n", f"+ {b64(b'AP-REP')}\r\n".encode(), line(offer(7, 65536)), b"+OK\r\n"])
    assert caught.value.reason == reason


# ---- one login after the other ----


def test_a_login_for_which_there_is_no_ticket_is_passed_over() -> None:
    connection = play_client(
        """
        B: +OK ready
        E: token for None
        A: skip
        E: token for None
        A: skip
        P: USER alice
        B: +OK
        P: PASS secret
        B: +OK
        E: logged in, learned None
        """,
        [gssapi(), gssapi(), Apop("alice", Secret("secret")), PASS],
        known={},
    )
    assert connection.credential_sent


def test_the_last_login_cannot_be_passed_over() -> None:
    connection = ClientConnection([gssapi(), Apop("alice", Secret("secret"))], known={})
    connection.receive_data(b"+OK no timestamp\r\n")
    assert not connection.skip_login()
    assert not connection.credential_sent
    assert connection.data_to_send() == b""


def test_a_login_that_has_begun_is_not_passed_over() -> None:
    connection, end = ClientConnection([gssapi(), PASS], known={}), context()
    connection.receive_data(b"+OK\r\n")
    connection.token_made(end, end.step(b""))
    with pytest.raises(LocalProtocolError):
        connection.skip_login()
    connection.receive_data(line(b"AP-REP"))
    with pytest.raises(LocalProtocolError):
        connection.skip_login()


def test_nobody_may_speak_while_a_token_is_made() -> None:
    connection = ClientConnection([gssapi()], known={})
    connection.receive_data(b"+OK\r\n")
    with pytest.raises(BackendError, match="octets that answer nothing"):
        connection.receive_data(b"+OK\r\n")


@pytest.mark.parametrize("authzid", ["", "a\0b", "a\r\nb", "x" * 256, "a\ud800"])
def test_a_name_that_cannot_be_sent(authzid: str) -> None:
    for login in (Gssapi(authzid, SOURCE, (Layer.NONE,), "kerberos-service"), Plain(authzid, "m", Secret("p"))):
        connection = ClientConnection([login], known={})
        with pytest.raises(BackendError) as caught:
            connection.receive_data(b"+OK\r\n")
        assert caught.value.code == "SYS/PERM"
        assert connection.data_to_send() == b""


# ---- segmentation ----


def line(challenge: bytes) -> bytes:
    return b"+ " + base64.b64encode(challenge) + b"\r\n"


def play_on(connection: ClientConnection, end: TransparentContext, pieces: list[bytes]) -> list[object]:
    """What comes of a server that says this, whenever it likes; tokens are made at once."""
    found: list[object] = []
    for piece in pieces:
        connection.receive_data(piece)
        while True:
            found.append(connection.data_to_send())
            events = connection.events_received()
            if not events:
                break
            for event in events:
                if isinstance(event, TokenNeeded):
                    connection.token_made(end, end.step(event.token or b""))
                else:
                    found.append(event)
    return [one for one in found if one != b""]


LINES = [
    b"+OK\r\n", b"+OK ready\r\n", line(b"AP-REP"), line(offer(1, 0)), line(offer(7, 65536)), line(b""), b"+\r\n",
    b"-ERR no\r\n", b"+ok\n", b"garbage\r\n", b"+ \r\n",
]  # fmt: skip
LOGINS: list[Login] = [gssapi(), gssapi(Layer.CONFIDENTIALITY), PLAIN, LONG]


def talk(login: Login, replies: list[bytes], sizes: list[int]) -> list[object]:
    """The replies, one at a time, each in pieces."""
    connection, end = ClientConnection([login], known={}), context()
    found: list[object] = []
    try:
        for reply in replies:
            found += play_on(connection, end, chunks(reply, sizes))
            if any(not isinstance(one, bytes) for one in found):
                break
    except BackendError as error:
        found += [connection.stage, error.reason, error.code, str(error)]
    return [client_event(one) if isinstance(one, LoggedIn | Refused) else one for one in found]


@given(st.sampled_from(LOGINS), st.lists(st.sampled_from(LINES), max_size=7), st.lists(st.integers(1, 60), max_size=20))
def test_any_reply_at_any_split_gives_the_same_login(login: Login, replies: list[bytes], sizes: list[int]) -> None:
    assert talk(login, replies, sizes) == talk(login, replies, [])


@given(st.sampled_from(LOGINS), st.lists(st.sampled_from(LINES) | st.binary(max_size=60), max_size=9))
def test_a_hostile_server_is_never_taken_for_one_that_has_proved_itself(login: Login, replies: list[bytes]) -> None:
    """GSSAPI succeeds only where the server has spoken as its end of the context, whatever else it says."""
    connection, end = ClientConnection([login], known={}), context()
    found: list[object] = []
    try:
        for reply in replies:
            found += play_on(connection, end, [reply])
    except BackendError:
        return
    if isinstance(login, Gssapi) and any(isinstance(one, LoggedIn) for one in found):
        assert end.complete
        assert any(offered in replies for offered in (line(offer(1, 0)), line(offer(7, 65536))))
