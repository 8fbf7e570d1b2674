"""The login at a backend: every kind of greeting, refusal and lie, as transcripts and at every split."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import BackendError, LocalProtocolError
from popproxy.pop3.client import CAPA_LINES_LIMIT, ClientConnection
from popproxy.pop3.client_events import StartTls
from popproxy.pop3.logins import Apop, Login, UserPass
from popproxy.types import Secret
from tests.pop3.helpers import chunks, client_event, play_client

PASS = UserPass("alice", Secret("secret"), users_own=True)
APOP = Apop("mrose", Secret("tanstaaf"))
RFC_STAMP = "<1896.697170952@dbc.mtview.ca.us>"  # the example of RFC 1939 section 7
BOTH = pytest.mark.parametrize("drip", [False, True], ids=["whole", "drip"])

ASKING = {
    "a server with capabilities": """
        B: +OK ready
        P: CAPA
        B: +OK
        B: TOP
        B: UIDL
        B: .
        P: USER alice
        B: +OK
        P: PASS secret
        B: +OK maildrop has 1 message
        E: logged in, learned ['TOP', 'UIDL']
        """,
    "a server that knows no capa": """
        B: +OK
        P: CAPA
        B: -ERR unknown command
        P: USER alice
        B: +OK
        P: PASS secret
        B: +OK
        E: logged in, learned []
        """,
    "a server that pipelines": """
        B: +OK ready
        P: CAPA
        B: +OK
        B: PIPELINING
        B: .
        P: USER alice
        P: PASS secret
        B: +OK
        B: +OK
        E: logged in, learned ['PIPELINING']
        """,
    "user refused, and the password that was sent along": """
        B: +OK ready
        P: CAPA
        B: +OK
        B: PIPELINING
        B: .
        P: USER alice
        P: PASS secret
        B: -ERR [AUTH] no such user
        B: -ERR send USER first
        E: refused AUTH
        """,
    "user refused, and the connection closed": """
        B: +OK ready
        P: CAPA
        B: +OK
        B: PIPELINING
        B: .
        P: USER alice
        P: PASS secret
        B: -ERR [AUTH] no such user
        A: eof
        E: refused AUTH
        """,
    "a login is never more than both answers allow": """
        B: +OK ready
        P: CAPA
        B: +OK
        B: PIPELINING
        B: .
        P: USER alice
        P: PASS secret
        B: -ERR no
        B: +OK surprise
        E: refused None
        """,
    "an odd but harmless server": r"""
        B~ +ok Qpopper\tat your service\n
        P: CAPA
        B~ +ok\ntop\n \n\xff\xfe\n.\n
        P: USER alice
        B~ +ok\n
        P: PASS secret
        B~ +Ok\n
        E: logged in, learned ['TOP']
        """,
    "a greeting that is none": """
        B: * OK IMAP4rev1 ready
        E: error greeting protocol SYS/TEMP
        """,
    "an empty greeting": """
        B:
        E: error greeting protocol SYS/TEMP
        """,
    "nearly a greeting": """
        B: +OKAY
        E: error greeting protocol SYS/TEMP
        """,
    "the server is busy": """
        B: -ERR [SYS/TEMP] come back later
        E: error greeting rejected SYS/TEMP
        """,
    "the server does not want us": """
        B: -ERR [sys/perm] go away
        E: error greeting rejected SYS/PERM
        """,
    "a refusal that blames the user before there is one": """
        B: -ERR [AUTH] go away
        E: error greeting rejected SYS/TEMP
        """,
    "closed before the greeting": """
        A: eof
        E: error greeting eof SYS/TEMP
        """,
    "closed inside the capabilities": """
        B: +OK
        P: CAPA
        B: +OK
        B: TOP
        A: eof
        E: error capa eof SYS/TEMP
        """,
    "closed while it should judge": """
        B: +OK
        P: CAPA
        B: -ERR
        P: USER alice
        B: +OK
        P: PASS secret
        A: eof
        E: error login eof SYS/TEMP
        """,
    "garbage for an answer": """
        B: +OK
        P: CAPA
        B: -ERR
        P: USER alice
        B: 250 ok
        E: error login protocol SYS/TEMP
        """,
}


@BOTH
@pytest.mark.parametrize("name", ASKING)
def test_dialogue(name: str, drip: bool) -> None:
    play_client(ASKING[name], [PASS], drip=drip)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("-ERR", None),
        ("-ERR wrong password", None),
        ("-ERR [AUTH] wrong", "AUTH"),
        ("-err [in-use] x", "IN-USE"),
        ("-ERR [LOGIN-DELAY] too soon", "LOGIN-DELAY"),
        ("-ERR [SYS/TEMP] later", "SYS/TEMP"),
        ("-ERR [SYS/PERM] never", "SYS/PERM"),
        ("-ERR [X-NEW/thing] hm", "X-NEW/THING"),
        ("-ERR [AUTH] the maildrop is locked", "AUTH"),
        ("-ERR maildrop already locked", "IN-USE"),
        ("-ERR Unable to lock maildrop", "IN-USE"),
        ("-ERR Mailbox in use by another session", "IN-USE"),
        ("-ERR /var/mail/alice lock busy! Is another session active? (11)", "IN-USE"),
        ("-ERR [not a code] mailbox is locked", "IN-USE"),
        ("-ERR your account is locked", None),
        ("-ERR Account locked out for 5 minutes", None),
        ("-ERR wrong password, the lock is on", None),
        ("-ERR this clock blocks", None),
    ],
)
@BOTH
def test_what_a_refusal_means(answer: str, code: str | None, drip: bool) -> None:
    play_client(
        f"""
        B: +OK
        P: USER alice
        B: +OK
        P: PASS secret
        B: {answer}
        E: refused {code}
        """,
        [PASS],
        known={},
        drip=drip,
    )
    play_client(f"B: +OK\nP: USER alice\nB: {answer}\nE: refused {code}", [PASS], known={}, drip=drip)


@BOTH
def test_stls(drip: bool) -> None:
    play_client(
        """
        B: +OK ready
        P: STLS
        B: +OK begin
        E: tls
        A: tls
        P: CAPA
        B: +OK
        B: TOP
        B: .
        P: USER alice
        B: +OK
        P: PASS secret
        B: +OK
        E: logged in, learned ['TOP']
        """,
        [PASS],
        stls=True,
        drip=drip,
    )


@pytest.mark.parametrize("answer", ["-ERR", "-ERR [SYS/PERM] unknown command"])
def test_without_tls_nothing_is_said_about_the_user(answer: str) -> None:
    connection = play_client(
        f"""
        B: +OK ready
        P: STLS
        B: {answer}
        E: error tls rejected SYS/TEMP
        """,
        [PASS],
        stls=True,
    )
    assert not connection.credential_sent


def test_plain_text_behind_the_answer_to_stls_is_an_attack() -> None:
    script = "B: +OK\nP: STLS\nB~ +OK\\r\\n+OK injected\\r\\n\nE: error tls protocol SYS/TEMP"
    play_client(script, [PASS], stls=True)


def test_plain_text_before_tls_never_reaches_the_dialogue() -> None:
    connection = play_client("B: +OK\nP: STLS\nB: +OK\nE: tls", [PASS], stls=True)
    connection.receive_data(b"+OK injected\r\n")
    assert (connection.data_to_send(), connection.events_received()) == (b"", [])
    with pytest.raises(LocalProtocolError):
        connection.upgrade_to_tls()


def test_tls_is_not_started_unasked() -> None:
    with pytest.raises(LocalProtocolError):
        ClientConnection([PASS]).upgrade_to_tls()


@pytest.mark.parametrize("behind", [r"+OK again\r\n", "+", r"-ERR\r\n"])
def test_there_is_one_greeting(behind: str) -> None:
    play_client(f"B~ +OK ready\\r\\n{behind}\nE: error greeting protocol SYS/TEMP", [PASS])


@pytest.mark.parametrize(
    ("said", "stage"),
    [
        ([b"+OK\r\n", b"+OK\r\nTOP\r\n.\r\n+OK\r\n"], "capa"),
        ([b"+OK\r\n", b"-ERR\r\n+O"], "capa"),
        ([b"+OK\r\n", b"-ERR\r\n", b"+OK\r\n+OK welcome\r\n"], "login"),
    ],
)
def test_what_was_not_asked_for_is_not_the_answer_to_the_next_command(said: list[bytes], stage: str) -> None:
    connection = ClientConnection([PASS])
    *before, last = said
    for octets in before:
        connection.receive_data(octets)
    connection.data_to_send()
    with pytest.raises(BackendError, match="octets that answer nothing") as caught:
        connection.receive_data(last)
    assert caught.value.stage == stage
    assert connection.data_to_send() == b""
    assert not connection.credential_sent


def test_octets_behind_the_login_are_refused() -> None:
    script = "B: +OK\nP: USER alice\nB: +OK\nP: PASS secret\nB~ +OK\\r\\n+OK 1 2\\r\\n\n"
    play_client(script + "E: logged in, learned None\nE: error login protocol SYS/TEMP", [PASS], known={})
    script = "B: +OK\nP: USER alice\nB: +OK\nP: PASS secret\nB: +OK\nE: logged in, learned None\nB: +OK 1 2\n"
    play_client(script + "E: error login protocol SYS/TEMP", [PASS], known={})


@BOTH
def test_apop(drip: bool) -> None:
    play_client(
        f"""
        B: +OK POP3 server ready {RFC_STAMP}
        P: APOP mrose c4c9334bac560ecc979e58001b3e22fb
        B: +OK maildrop has 1 message (369 octets)
        E: logged in, learned None
        """,
        [APOP, PASS],
        known={},
        drip=drip,
    )


@pytest.mark.parametrize(
    "greeting",
    [
        "+OK",
        "+OK hi <>",
        "+OK <no-at-sign>",
        "+OK <@>",
        "+OK <a@>",
        "+OK <a b@c>",
        r"+OK <\x80\xff\xc3@host>",
        r"+OK <a\x00b@host>",
        "+OK <a..b@host>",
        "+OK <a@b",
        "+OK a@b>",
    ],
)
def test_a_challenge_that_is_no_msg_id_is_not_answered(greeting: str) -> None:
    """What a collision attack on APOP needs (CVE-2007-1558) is never a msg-id."""
    play_client(f"B: {greeting}\nP: USER alice", [APOP, PASS], known={})
    connection = play_client(f"B: {greeting}\nE: error login rejected SYS/PERM", [APOP], known={})
    assert not connection.credential_sent


def test_a_known_server_is_not_asked_again() -> None:
    play_client("B: +OK\nP: USER alice\nP: PASS secret", [PASS], known={"PIPELINING": ()})


def test_nothing_is_retried_once_the_credential_is_out() -> None:
    connection = ClientConnection([PASS], known={})
    for answer, sent in ((b"+OK\r\n", False), (b"+OK\r\n", True)):
        connection.receive_data(answer)
        assert connection.credential_sent == sent
    connection = ClientConnection([PASS], known={"PIPELINING": ()})
    connection.receive_data(b"+OK\r\n")
    assert connection.credential_sent


@pytest.mark.parametrize(
    "login",
    [
        UserPass("", Secret("secret")),
        UserPass("a\r\nDELE 1", Secret("secret")),
        UserPass("a\0", Secret("secret")),
        UserPass("a\ud800", Secret("secret")),
        UserPass("ü" * 128, Secret("secret")),
        UserPass("alice", Secret("a\r\nDELE 1")),
        UserPass("alice", Secret("a\n")),
        UserPass("alice", Secret("a\x7f")),
        UserPass("alice", Secret("a" * 506)),
        Apop("a\r\nQUIT", Secret("secret")),
    ],
)
def test_what_would_be_two_commands_is_not_sent(login: Login) -> None:
    connection = ClientConnection([login], known={"PIPELINING": ()})
    with pytest.raises(BackendError) as caught:
        connection.receive_data(f"+OK {RFC_STAMP}\r\n".encode())
    assert caught.value.code == "SYS/PERM"
    assert connection.data_to_send() == b""
    assert not connection.credential_sent


def test_an_endless_capa_is_refused() -> None:
    connection = ClientConnection([PASS])
    connection.receive_data(b"+OK\r\n")
    connection.receive_data(b"+OK\r\n" + b"X\r\n" * CAPA_LINES_LIMIT)
    with pytest.raises(BackendError, match="endless CAPA"):
        connection.receive_data(b"X\r\n")


@pytest.mark.parametrize("stage", ["greeting", "capa", "login"])
def test_an_endless_line_is_refused(stage: str) -> None:
    connection = ClientConnection([PASS], known=None if stage == "capa" else {})
    if stage != "greeting":
        connection.receive_data(b"+OK\r\n")
    connection.receive_data(b"+OK" + b"x" * 8000)
    with pytest.raises(BackendError, match="endless line") as caught:
        connection.receive_data(b"x" * 200)
    assert caught.value.stage == stage


def test_no_way_to_log_in_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        ClientConnection([])


# ---- segmentation ----

STATUSES = [
    b"+OK\r\n", b"+OK ready <1896.697170952@dbc.mtview.ca.us>\r\n", b"-ERR no\r\n", b"-ERR [IN-USE] x\r\n",
    b"+ok\n", b"+OK\r\r\n", b"garbage\r\n", b"\n", b"+OK " + b"x" * 8186 + b"\r\n", b"+OK " + b"x" * 8187 + b"\r\n",
]  # fmt: skip
LISTS = [
    b"+OK\r\nTOP\r\nUIDL\r\n.\r\n",
    b"+OK\r\n.\r\n",
    b"+OK\nPIPELINING\n.\n",
    b"+OK\r\n..\r\n\r\n.\r\n",
    b"+OK\r\n" + b"X\r\n" * 101,
]


def talk(replies: list[bytes], sizes: list[int], stls: bool) -> list[object]:
    """What comes of a server that gives `replies` (to CAPA the list that its number stands for), one at a time."""
    connection = ClientConnection([APOP, PASS], stls=stls)
    found: list[object] = []
    asked = b"greeting"
    try:
        for number, status in enumerate(replies):
            answer = LISTS[number % len(LISTS)] if asked == b"CAPA\r\n" and status.startswith(b"+") else status
            for piece in chunks(answer, sizes):
                connection.receive_data(piece)
            asked = connection.data_to_send()
            events = connection.events_received()
            found += [asked, *map(client_event, events)]
            if any(isinstance(event, StartTls) for event in events):
                connection.upgrade_to_tls()
                asked = connection.data_to_send()
                found.append(asked)
            elif events or asked.count(b"\n") != 1:
                break
    except BackendError as error:
        found += [connection.data_to_send(), connection.stage, error.reason, error.code, str(error)]
    return found


@given(st.lists(st.sampled_from(STATUSES), max_size=7), st.lists(st.integers(1, 9000), max_size=20), st.booleans())
def test_any_reply_at_any_split_gives_the_same_login(replies: list[bytes], sizes: list[int], stls: bool) -> None:
    assert talk(replies, sizes, stls) == talk(replies, [], stls)


@given(st.lists(st.sampled_from(STATUSES[:8]), max_size=7), st.booleans())
def test_octet_by_octet_gives_the_same_login(replies: list[bytes], stls: bool) -> None:
    assert talk(replies, [1] * 600, stls) == talk(replies, [], stls)


@given(
    st.lists(st.sampled_from(STATUSES) | st.sampled_from(LISTS) | st.binary(max_size=40), max_size=12),
    st.randoms(use_true_random=False),
)
def test_a_hostile_server_ends_in_an_event_or_a_backend_error(replies: list[bytes], chance: random.Random) -> None:
    connection = ClientConnection([APOP, PASS], stls=chance.random() < 0.3)
    try:
        for reply in replies:
            connection.receive_data(reply)
            if any(isinstance(event, StartTls) for event in connection.events_received()):
                connection.upgrade_to_tls()
    except BackendError:
        pass
    sent = connection.data_to_send()
    assert b"secret" not in sent or connection.credential_sent
