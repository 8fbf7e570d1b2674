"""Garbage at every step of KPOP's handshake and of AUTH GSSAPI, at the real proxy's ports."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from popproxy.pop3.server import GSSAPI_LINE_LIMIT
from popproxy.wire.kpop import APPLICATION_VERSION, SENDAUTH_VERSION
from tests.peers.certs import CertificateFiles
from tests.peers.kpop_client import KpopClient, error_code, framed, hello
from tests.peers.krb5_client import ApReqClient, gss_framed
from tests.peers.line_client import LineClient
from tests.peers.process import public_directory
from tests.peers.proxy import proxies
from tests.real.kerberos_clients import (
    IN,
    WRONG,
    b64,
    complaints,
    next_session_is_fine,
    quiet,
    refused,
    watched,
)
from tests.real.kerberos_rig import Site, configuration

FUZZ = settings(
    max_examples=int(os.environ.get("POPPROXY_EXAMPLES", "150")),
    derandomize="POPPROXY_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
VERSIONS = framed(SENDAUTH_VERSION) + framed(APPLICATION_VERSION)
USE_KPOP = b"-ERR this port takes only Kerberos clients that speak KPOP\r\n"
ALERT = b"\x15\x03\x01\x00\x02\x02\x28"

SPNEGO = bytes.fromhex("602806062b0601050502a01e301ca01a3018060a2b06010401823702020a060a2b0601040182370202")


# ---- KPOP ----


@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        # not even the first four octets
        (b"\xff", b""),
        (b"\xff\xff\xff\xff", b""),
        (b"\x00\x01\x00\x13", b""),
        (b"\x80\x00\x00\x13" + SENDAUTH_VERSION, b""),
        # somebody else
        (b"USER alice\r\n", USE_KPOP),
        (b"\r\n", USE_KPOP),
        (b"\x6e\x82\x02\x00", USE_KPOP),
        (b"GET / HTTP/1.1\r\n\r\n", USE_KPOP),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", USE_KPOP),
        (b"AUTH GSSAPI\r\n", USE_KPOP),
        (b"AUTHV0.1KPOPV0.1" + bytes(200), b"-ERR Kerberos 4 is not supported\r\n"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ALERT),
        # the first version
        (framed(b"") + framed(APPLICATION_VERSION), b"\1"),
        (framed(b"KRB5_SENDAUTH_V1.0") + framed(APPLICATION_VERSION), b"\1"),
        (framed(b"KRB5_SENDAUTH_V2.0\0") + framed(APPLICATION_VERSION), b"\1"),
        (framed(b"\xff" * 255) + framed(APPLICATION_VERSION), b"\1"),
        (framed(b"x") + framed(b"") + framed(b"y" * 1000), b"\1"),
        (framed(b"x") + b"\xff\xff\xff\xff", b"\1"),
        # the second one
        (framed(SENDAUTH_VERSION) + framed(b""), b"\2"),
        (framed(SENDAUTH_VERSION) + framed(b"KPOPV1.0"), b"\2"),
        (framed(SENDAUTH_VERSION) + framed(b"KPOPV0.1\0"), b"\2"),
        (framed(SENDAUTH_VERSION) + framed(b"\0" * 255), b"\2"),
        (framed(SENDAUTH_VERSION) + b"\x00\x00\x01\x00", b"\2"),
        (framed(SENDAUTH_VERSION) + b"\xff\xff\xff\xff", b"\2"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else None,
)
def test_kpop_client_that_gets_no_further_than_the_versions(maildrop: Site, octets: bytes, answer: bytes) -> None:
    it = maildrop
    with refused(it.proxy, "KPOP", "malformed", "protocol"), LineClient(it.proxy.port("kpop")) as client:
        client.send(octets)
        assert client.rest() == answer
    next_session_is_fine(it)


@pytest.mark.parametrize("length", [0, 64 * 1024 + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_impossible_length_of_an_ap_req(maildrop: Site, length: int) -> None:
    it = maildrop
    with refused(it.proxy, "KPOP", "malformed", "protocol"), LineClient(it.proxy.port("kpop")) as client:
        client.send(VERSIONS + length.to_bytes(4, "big") + b"USER alice\r\nPASS x\r\n")
        assert krb_error(client.rest()) == 60
    next_session_is_fine(it)


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (b"\x6e", 60),
        (b"\0" * 600, 40),
        (b"\x6e\x82\xff\xff" + b"A" * 500, 60),
        (b"\x6e\x80" + b"\0" * 64, 60),
        (b"\x6f\x82\x01\x00" + b"\0" * 256, 40),
        (b"\x7e\x03\x30\x01\x00", 40),
        (b"USER alice\r\nPASS x\r\n", 40),
        (gss_framed(b"\x6e\x82\x02\x00" + bytes(512)), 40),
        (SPNEGO, 40),
        (b"A" * 65536, 40),
    ],
    ids=lambda value: repr(value[:8]) if isinstance(value, bytes) else None,
)
def test_ap_req_that_is_none(maildrop: Site, token: bytes, code: int) -> None:
    it = maildrop
    with (
        refused(it.proxy, "KPOP", "kerberos_garbage", "too_many_failures"),
        LineClient(it.proxy.port("kpop")) as client,
    ):
        client.send(VERSIONS + framed(token))
        assert krb_error(client.rest()) == code
    next_session_is_fine(it)


@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        (b"", b""),
        (b"\0", b""),
        (b"\0\0\0\x13", b""),
        (framed(SENDAUTH_VERSION)[:-1], b""),
        (framed(SENDAUTH_VERSION), b""),
        (VERSIONS[:-1], b""),
        (VERSIONS, b"\0"),
        (VERSIONS + b"\0\0\x02", b"\0"),
        (VERSIONS + b"\0\0\x02\x4a", b"\0"),
        (VERSIONS + b"\0\0\x02\x4a\x6e\x82", b"\0"),
    ],
    ids=lambda value: str(len(value)),
)
def test_client_that_goes_away_in_the_handshake(maildrop: Site, octets: bytes, answer: bytes) -> None:
    """It has said nothing wrong, so there is nothing to hold against it."""
    it = maildrop
    with watched(it.proxy, ["session_end client_lost"]), LineClient(it.proxy.port("kpop")) as client:
        client.send(octets)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == answer


def test_kpop_client_that_does_not_go_on(maildrop: Site, server_certificate: CertificateFiles) -> None:
    """One that waits for a greeting is told why there is none; the time for a handshake is not that for a login."""
    it = maildrop
    with proxies() as start, public_directory("secrets") as directory:
        complete = configuration(it.realm, it.backend, server_certificate, directory, password="x")
        complete["pools"] = it.proxy.configuration["pools"]
        complete["timeouts"] = {**complete.get("timeouts", {}), "handshake": "1s"}
        proxy = start(complete, env=it.realm.environment)
        with KpopClient(proxy.port("kpop")) as patient:
            patient.authenticate(it.realm.config, it.tickets["alice"], it.service)
            patient.line()
            for octets, answer in ((b"", USE_KPOP), (b"\0\0", b""), (VERSIONS, b"\0"), (VERSIONS + b"\0\0\2", b"\0")):
                with LineClient(proxy.port("kpop")) as client:
                    client.send(octets)
                    assert client.rest() == answer
            assert patient.command("USER alice").startswith(b"+OK")
            assert patient.command("PASS x") == IN
            assert patient.command("QUIT").startswith(b"+OK")
        proxy.settled()
        reasons = [record["event.reason"] for record in proxy.audit("session_end")]
        assert sorted(reasons) == ["login_timeout"] * 4 + ["logout"]
        metrics = proxy.metrics()
        for reason, count in (("silent", 1), ("timeout", 3), ("none", 1)):
            assert metrics[f'popproxy_kpop_handshakes_total{{listener="kpop",reason="{reason}"}}'] == count


def test_mutated_kpop_handshakes(maildrop: Site) -> None:
    """A handshake, otherwise good, whose AP-REQ has been used: whatever is changed in it, nobody gets in by it."""
    it = maildrop
    used = ApReqClient(it.tickets["alice"], it.service).ap_req
    with LineClient(it.proxy.port("kpop")) as client:
        client.send(hello(used))
        assert client.take(5) == bytes(5)
    good = hello(used) + b"USER alice\r\nPASS x\r\nSTAT\r\nQUIT\r\n"
    before, log = len(quiet(it.proxy)), len(it.proxy.log())
    runs = 0

    @FUZZ
    @given(pieces=mutants(good))
    def try_it(pieces: list[bytes]) -> None:
        nonlocal runs
        runs += 1
        talk(it.proxy.port("kpop"), pieces)

    try_it()
    witness(it, before, log, runs)


# ---- AUTH GSSAPI ----


@pytest.mark.parametrize(
    ("lines", "answers"),
    [
        ([b"AUTH GSSAPI !"], [b"-ERR this is not base64"]),
        ([b"AUTH GSSAPI YII"], [b"-ERR this is not base64"]),
        ([b"AUTH GSSAPI YII= more"], [b"-ERR this is not base64"]),
        ([b"AUTH GSSAPI ="], [b"+ "]),
        ([b"AUTH GSSAPI", b""], [b"+ ", b"-ERR a GSSAPI token was expected"]),
        ([b"AUTH GSSAPI", b"="], [b"+ ", b"-ERR this is not base64"]),
        ([b"AUTH GSSAPI", b"QUIT!"], [b"+ ", b"-ERR this is not base64"]),
        ([b"AUTH GSSAPI", b"\0\xff"], [b"+ ", b"-ERR this is not base64"]),
        ([b"AUTH GSSAPI", b64(b"t" * 65537)], [b"+ ", b"-ERR GSSAPI token too long"]),
        ([b"AUTH GSSAPI", b"A" * (GSSAPI_LINE_LIMIT + 1)], [b"+ ", b"-ERR line too long"]),
    ],
    ids=lambda value: repr(value[-1][:24]) if isinstance(value[0], bytes) else None,
)
def test_lines_that_carry_no_token(maildrop: Site, lines: list[bytes], answers: list[bytes]) -> None:
    it = maildrop
    if answers[-1] == b"+ ":  # an empty token is asked for again: the exchange goes on
        lines, answers = [*lines, b""], [*answers, b"-ERR a GSSAPI token was expected"]
    with refused(it.proxy, "GSSAPI", "malformed", "quit_before_login"), LineClient(it.proxy.port()) as client:
        client.line()
        assert [client.command(line) for line in lines] == answers
        assert client.command("NOOP").startswith(b"+OK")
        assert client.command("QUIT").startswith(b"+OK")
    next_session_is_fine(it)


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize(
    "token",
    [
        b"garbage",
        b"\x00",
        b"\x60",
        b"\x60\x00",
        b"\x60\x82\xff\xff",
        b"\x60\x84\xff\xff\xff\xff" + bytes(100),
        b"\0" * 1000,
        b"\xff" * 65_000,
        b"\x00alice\x00password",
        b"NTLMSSP\0" + bytes(40),
        SPNEGO,
        gss_framed(b"\x6e\x82\x02\x00" + b"A" * 512),
        gss_framed(b"\x6f\x82\x02\x00" + b"A" * 512),
        gss_framed(b"\x6e" + b"\0" * 512).replace(b"\x01\x00\x6e", b"\x02\x00\x6e"),
    ],
    ids=lambda value: repr(value[:8]),
)
def test_token_that_is_none(maildrop: Site, token: bytes, initial: bool) -> None:
    it = maildrop
    with refused(it.proxy, "GSSAPI", "kerberos_garbage", "quit_before_login"), LineClient(it.proxy.port()) as client:
        client.line()
        if initial:
            assert client.command(b"AUTH GSSAPI " + b64(token)) == WRONG
        else:
            assert client.command(b"AUTH GSSAPI") == b"+ "
            assert client.command(b64(token)) == WRONG
        assert client.command("NOOP").startswith(b"+OK")
        assert client.command("QUIT").startswith(b"+OK")
    next_session_is_fine(it)


def test_third_token_is_the_last(maildrop: Site) -> None:
    it = maildrop
    story = [*["auth GSSAPI failure kerberos_garbage"] * 3, "session_end too_many_failures"]
    with watched(it.proxy, story), LineClient(it.proxy.port()) as client:
        client.line()
        client.send(b"AUTH GSSAPI YWJj\r\n" * 5)
        assert client.rest() == (WRONG + b"\r\n") * 3


def test_tenth_broken_exchange_is_the_last(maildrop: Site) -> None:
    it = maildrop
    story = [*["auth GSSAPI failure malformed"] * 10, "session_end too_many_errors"]
    with watched(it.proxy, story), LineClient(it.proxy.port()) as client:
        client.line()
        client.send(b"AUTH GSSAPI !\r\n" * 12)
        assert client.rest() == b"-ERR this is not base64\r\n" * 9 + b"-ERR too many errors\r\n"


@pytest.mark.parametrize("lines", [[], [b"AUTH GSSAPI"], [b"AUTH GSSAPI", b"YII"]], ids=len)
def test_client_that_goes_away_in_the_exchange(maildrop: Site, lines: list[bytes]) -> None:
    it = maildrop
    with watched(it.proxy, ["session_end client_lost"]), LineClient(it.proxy.port()) as client:
        client.line()
        client.send(b"\r\n".join(lines))
        client.socket.shutdown(socket.SHUT_WR)
        client.rest()


def test_mutated_gssapi_exchanges(maildrop: Site) -> None:
    """The same with an exchange whose token has been used."""
    it = maildrop
    used = gss_framed(ApReqClient(it.tickets["alice"], it.service).ap_req)
    with LineClient(it.proxy.port()) as client:
        client.line()
        assert client.command(b"AUTH GSSAPI " + b64(used)).startswith(b"+ ")
    good = b"CAPA\r\nAUTH GSSAPI\r\n" + b64(used) + b"\r\n\r\nBQQF/wAMAAAAAAAA\r\nSTAT\r\nQUIT\r\n"
    before, log = len(quiet(it.proxy)), len(it.proxy.log())
    runs = 0

    @FUZZ
    @given(pieces=mutants(good))
    def try_it(pieces: list[bytes]) -> None:
        nonlocal runs
        runs += 1
        talk(it.proxy.port(), pieces)

    try_it()
    witness(it, before, log, runs)


# ---- mutants ----


@st.composite
def mutants(draw: st.DrawFn, good: bytes) -> list[bytes]:
    """`good` with up to four changes, in up to four segments."""
    octets = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(octets)))
        match draw(st.sampled_from(["flip", "replace", "insert", "cut", "remove", "repeat"])):
            case "flip" if at < len(octets):
                octets[at] ^= 1 << draw(st.integers(0, 7))
            case "replace":
                octets[at : at + 4] = draw(st.binary(max_size=8))
            case "insert":
                octets[at:at] = draw(st.binary(min_size=1, max_size=64))
            case "cut":
                del octets[at:]
            case "remove":
                del octets[at : at + draw(st.integers(1, 32))]
            case _:
                octets[at:at] = octets[at : at + 100]
    ends = sorted(draw(st.lists(st.integers(0, len(octets)), max_size=3)))
    return [bytes(octets[start:end]) for start, end in zip([0, *ends], [*ends, len(octets)], strict=True)]


def talk(port: int, pieces: list[bytes]) -> None:
    """Sends the pieces, closes its side, and reads to the end, which must come."""
    with LineClient(port) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        try:
            for piece in pieces:
                client.send(piece)
            client.socket.shutdown(socket.SHUT_WR)
        except OSError:  # it has had enough
            pass
        client.rest()


def witness(it: Site, before: int, log: int, runs: int) -> None:
    """Of `runs` sessions each has ended, once, none has logged in, and nothing of ours is broken."""
    records = quiet(it.proxy)[before:]
    ends = [record for record in records if record["event.action"] == "session_end"]
    assert len(ends) == len({record["session.id"] for record in ends}) == runs
    assert {record["event.action"] for record in records} <= {"auth", "session_end"}
    assert {record["event.outcome"] for record in records if record["event.action"] == "auth"} <= {"failure"}
    assert "internal" not in {record["event.reason"] for record in ends}
    assert complaints(it.proxy.log()[log:]) == []
    next_session_is_fine(it)


def krb_error(answer: bytes) -> int:
    """The error-code in the answer to a handshake with good versions."""
    assert answer[0] == 0
    assert int.from_bytes(answer[1:5], "big") == len(answer) - 5
    return error_code(answer[5:])
