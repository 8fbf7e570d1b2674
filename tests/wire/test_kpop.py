"""KPOP's handshake: the same at every segmentation, and an answer for everybody who comes by mistake."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import LocalProtocolError
from popproxy.wire.kpop import (
    APPLICATION_VERSION,
    BACKLOG_LIMIT,
    MAX_TOKEN,
    SENDAUTH_VERSION,
    ApReqReceived,
    Event,
    Failed,
    KpopFailure,
    KpopHandshake,
)

AP_REQ = b"\x6e" + b"ticket" * 100
AP_REP = b"\x6f" + b"proof" * 16
KRB_ERROR = b"\x7e\x03err"
USE_KPOP = b"-ERR this port takes only Kerberos clients that speak KPOP\r\n"
NO_KERBEROS_4 = b"-ERR Kerberos 4 is not supported\r\n"
TLS_ALERT = bytes.fromhex("15030100020228")


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


VERSIONS = framed(SENDAUTH_VERSION) + framed(APPLICATION_VERSION)
HELLO = VERSIONS + framed(AP_REQ)


class Seen:
    """A handshake that was fed `pieces`, and all that came of it."""

    def __init__(self, *pieces: bytes, max_token: int = MAX_TOKEN) -> None:
        self.handshake = KpopHandshake(max_token)
        for piece in pieces:
            self.handshake.receive_data(piece)
        self.events: list[Event] = self.handshake.events_received()
        self.sent = self.handshake.data_to_send()

    @property
    def facts(self) -> tuple[list[Event], bytes, bytes]:
        return self.events, self.sent, self.handshake.rest


def drip(octets: bytes, max_token: int = MAX_TOKEN) -> Seen:
    return Seen(*(octets[n : n + 1] for n in range(len(octets))), max_token=max_token)


NONSENSE = [
    (b"AUTHV0.1\0KPOPV0.1\0", KpopFailure.KERBEROS_4, NO_KERBEROS_4, False),
    (b"\x16\x03\x01\x02\x00\x01\x00", KpopFailure.TLS, TLS_ALERT, False),
    (b"USER alice\r\n", KpopFailure.PLAIN_TEXT, USE_KPOP, False),
    (b"capa\r\n", KpopFailure.PLAIN_TEXT, USE_KPOP, False),
    (b"\r\n", KpopFailure.PLAIN_TEXT, USE_KPOP, False),
    (b"AUTH PLAIN\r\n", KpopFailure.PLAIN_TEXT, USE_KPOP, False),
    (b"AUTHV0.2\0", KpopFailure.PLAIN_TEXT, USE_KPOP, False),
    (b"APOP alice 0\r\n", KpopFailure.PLAIN_TEXT, USE_KPOP, False),
    (b"GET / HTTP/1.1\r\n", KpopFailure.PLAIN_TEXT, USE_KPOP, False),
    (b"\x16\x04", KpopFailure.GARBAGE, b"", False),
    (b"\x80\x2e\x01\x00\x02", KpopFailure.GARBAGE, b"", False),
    (b"\0\0\1\0", KpopFailure.GARBAGE, b"", False),
    (b"\0\1", KpopFailure.GARBAGE, b"", False),
    (b"\xff\xff\xff\xff", KpopFailure.GARBAGE, b"", False),
    (b"\x6e" + AP_REQ, KpopFailure.PLAIN_TEXT, USE_KPOP, False),  # "n": who knows
    (framed(b"") + framed(APPLICATION_VERSION), KpopFailure.SENDAUTH_VERSION, b"\1", False),
    (framed(SENDAUTH_VERSION[:-1]) + framed(APPLICATION_VERSION), KpopFailure.SENDAUTH_VERSION, b"\1", False),
    (framed(b"KRB5_SENDAUTH_V2.0\0") + framed(APPLICATION_VERSION), KpopFailure.SENDAUTH_VERSION, b"\1", False),
    (framed(b"KRB5_SENDAUTH_V2.0\0") + framed(b"KPOPV2.0\0"), KpopFailure.SENDAUTH_VERSION, b"\1", False),
    (framed(b"x" * 255) + framed(b""), KpopFailure.SENDAUTH_VERSION, b"\1", False),
    (framed(b"x") + b"\0\0\1\0", KpopFailure.SENDAUTH_VERSION, b"\1", False),
    (framed(SENDAUTH_VERSION) + framed(APPLICATION_VERSION[:-1]), KpopFailure.APPLICATION_VERSION, b"\2", False),
    (framed(SENDAUTH_VERSION) + framed(APPLICATION_VERSION + b"\0"), KpopFailure.APPLICATION_VERSION, b"\2", False),
    (framed(SENDAUTH_VERSION) + framed(b"kpopv1.0\0"), KpopFailure.APPLICATION_VERSION, b"\2", False),
    (framed(SENDAUTH_VERSION) + framed(b""), KpopFailure.APPLICATION_VERSION, b"\2", False),
    (framed(SENDAUTH_VERSION) + framed(b"x" * 255), KpopFailure.APPLICATION_VERSION, b"\2", False),
    (framed(SENDAUTH_VERSION) + b"\0\0\1\0", KpopFailure.APPLICATION_VERSION, b"\2", False),
    (framed(SENDAUTH_VERSION) + b"\xff\xff\xff\xff", KpopFailure.APPLICATION_VERSION, b"\2", False),
    (VERSIONS + framed(b""), KpopFailure.TOKEN_EMPTY, b"\0", True),
    (VERSIONS + (MAX_TOKEN + 1).to_bytes(4, "big"), KpopFailure.TOKEN_TOO_LONG, b"\0", True),
    (VERSIONS + b"\xff\xff\xff\xff", KpopFailure.TOKEN_TOO_LONG, b"\0", True),
    (VERSIONS + b"USER alice\r\n", KpopFailure.TOKEN_TOO_LONG, b"\0", True),
]


@pytest.mark.parametrize(("octets", "reason", "answer", "owes_error"), NONSENSE)
def test_nonsense_at_every_step_is_answered_and_ends_it(
    octets: bytes, reason: KpopFailure, answer: bytes, owes_error: bool
) -> None:
    expected = ([Failed(reason, owes_error)], answer, b"")
    assert Seen(octets).facts == expected
    assert drip(octets).facts == expected
    assert Seen(octets, b"more", HELLO).facts == expected
    for at in range(1, len(octets)):
        assert Seen(octets[:at], octets[at:]).facts == expected


def test_every_reason_is_met() -> None:
    others = {KpopFailure.EOF, KpopFailure.SILENT, KpopFailure.TIMEOUT}
    assert {reason for _, reason, _, _ in NONSENSE} | others == set(KpopFailure)


def test_an_ap_req_is_handed_on_and_accepted_with_and_without_proof() -> None:
    for ap_rep, answer in ((None, bytes(4)), (AP_REP, bytes(4) + framed(AP_REP))):
        seen = Seen(HELLO)
        assert seen.facts == ([ApReqReceived(AP_REQ)], b"\0", b"")
        seen.handshake.accept(ap_rep)
        assert seen.handshake.data_to_send() == answer
        assert seen.handshake.events_received() == []


def test_the_client_may_wait_for_each_answer() -> None:
    seen = Seen(VERSIONS)
    assert seen.facts == ([], b"\0", b"")
    seen.handshake.receive_data(framed(AP_REQ))
    assert seen.handshake.events_received() == [ApReqReceived(AP_REQ)]
    assert seen.handshake.data_to_send() == b""


@given(st.binary(min_size=1, max_size=50), st.binary(max_size=50), st.data())
def test_every_split_gives_the_same_and_loses_nothing(ap_req: bytes, behind: bytes, data: st.DataObject) -> None:
    octets = VERSIONS + framed(ap_req) + behind
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=6)))
    edges = [0, *cuts, len(octets)]
    pieces = [octets[start:end] for start, end in itertools.pairwise(edges)]
    expected = ([ApReqReceived(ap_req)], b"\0", behind)
    assert Seen(*pieces).facts == expected
    assert drip(octets).facts == expected


_frame = st.one_of(
    st.sampled_from([framed(SENDAUTH_VERSION), framed(APPLICATION_VERSION), framed(AP_REQ), b"AUTHV0.1", b"\x16\x03"]),
    st.binary(max_size=30).map(framed),
    st.binary(max_size=8),
)


@given(st.lists(_frame, max_size=5).map(b"".join), st.data())
def test_any_octets_give_the_same_at_every_split(octets: bytes, data: st.DataObject) -> None:
    whole = Seen(octets, max_token=1000)
    at = data.draw(st.integers(0, len(octets)))
    assert Seen(octets[:at], octets[at:], max_token=1000).facts == whole.facts
    assert drip(octets, max_token=1000).facts == whole.facts
    assert len(whole.events) <= 1


def test_what_is_pipelined_before_and_after_the_verdict_is_kept() -> None:
    seen = Seen(HELLO + b"USER alice\r\n")
    seen.handshake.receive_data(b"PASS hej\r\n")
    seen.handshake.accept(None)
    seen.handshake.receive_data(b"STAT\r\n")
    assert seen.handshake.rest == b"USER alice\r\nPASS hej\r\nSTAT\r\n"


def test_a_client_that_pipelines_without_end_is_to_be_paused() -> None:
    seen = Seen(HELLO + b"x" * BACKLOG_LIMIT)
    paused = [seen.handshake.backlogged]
    seen.handshake.receive_data(b"x")
    paused.append(seen.handshake.backlogged)
    seen.handshake.accept(None)
    paused.append(seen.handshake.backlogged)
    assert paused == [False, True, False]


def test_the_largest_token_is_taken() -> None:
    assert Seen(VERSIONS + framed(b"n" * MAX_TOKEN)).events == [ApReqReceived(b"n" * MAX_TOKEN)]
    assert Seen(VERSIONS + framed(b"n" * 11), max_token=10).events == [Failed(KpopFailure.TOKEN_TOO_LONG, True)]


def test_a_refusal_is_a_krb_error_and_what_was_pipelined_is_dropped() -> None:
    seen = Seen(HELLO + b"USER alice\r\n")
    seen.handshake.refuse(KRB_ERROR)
    assert seen.handshake.data_to_send() == framed(KRB_ERROR)
    assert seen.handshake.rest == b""
    seen.handshake.receive_data(b"QUIT\r\n")
    assert (seen.handshake.rest, seen.handshake.data_to_send()) == (b"", b"")


def test_a_token_of_the_wrong_size_can_be_answered_by_a_krb_error() -> None:
    seen = Seen(VERSIONS + b"\xff\xff\xff\xff")
    seen.handshake.refuse(KRB_ERROR)
    assert seen.handshake.data_to_send() == framed(KRB_ERROR)
    with pytest.raises(LocalProtocolError):
        seen.handshake.refuse(KRB_ERROR)


def test_an_empty_krb_error_would_let_the_client_in_and_is_never_sent() -> None:
    seen = Seen(HELLO)
    with pytest.raises(LocalProtocolError):
        seen.handshake.refuse(b"")
    assert seen.handshake.data_to_send() == b""


@pytest.mark.parametrize("octets", [b"", b"\0", b"AUTH", VERSIONS, HELLO[:-1]])
def test_an_early_end_is_a_failure(octets: bytes) -> None:
    seen = Seen(octets)
    assert seen.events == []
    seen.handshake.receive_eof()
    assert seen.handshake.events_received() == [Failed(KpopFailure.EOF)]
    assert seen.handshake.data_to_send() == b""


def test_an_end_behind_the_ap_req_is_the_clients_right() -> None:
    seen = Seen(HELLO + b"QUIT\r\n")
    seen.handshake.receive_eof()
    seen.handshake.accept(None)
    assert seen.handshake.events_received() == []
    assert (seen.handshake.rest, seen.handshake.eof) == (b"QUIT\r\n", True)


def test_a_client_that_waits_for_a_greeting_is_told_what_to_speak() -> None:
    handshake = KpopHandshake()
    handshake.receive_data(b"")
    handshake.deadline_passed()
    assert handshake.events_received() == [Failed(KpopFailure.SILENT)]
    assert handshake.data_to_send() == USE_KPOP


@pytest.mark.parametrize("octets", [b"\0", b"AUTH", VERSIONS, HELLO[:-1]])
def test_a_slow_handshake_ends_without_a_word_that_is_no_kpop(octets: bytes) -> None:
    seen = Seen(octets)
    seen.handshake.deadline_passed()
    assert seen.handshake.events_received() == [Failed(KpopFailure.TIMEOUT)]
    assert seen.handshake.data_to_send() == b""


@pytest.mark.parametrize("octets", [b"", VERSIONS, b"QUIT\r\n"])
def test_a_verdict_on_nothing_is_a_bug_of_ours(octets: bytes) -> None:
    handshake = Seen(octets).handshake
    with pytest.raises(LocalProtocolError):
        handshake.accept(None)
    with pytest.raises(LocalProtocolError):
        handshake.refuse(KRB_ERROR)


def test_a_second_verdict_is_a_bug_of_ours() -> None:
    handshake = Seen(HELLO).handshake
    handshake.accept(None)
    with pytest.raises(LocalProtocolError):
        handshake.accept(None)
    with pytest.raises(LocalProtocolError):
        handshake.refuse(KRB_ERROR)
    with pytest.raises(LocalProtocolError):
        handshake.deadline_passed()
