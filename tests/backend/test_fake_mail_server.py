"""The POP3 cases of a public catalogue of fake servers, as scripts of our own: what would they get out of popproxy?

The catalogue is fake-mail-server of "Why TLS Is Better Without STARTTLS" (Poddebniak et al., USENIX Security 2021); the
cases have its names. Clients that go on in the clear, or take for an answer what came before TLS, give themselves away
there: O is negotiation, B buffering, the others are what servers may say besides.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from tests.backend.test_dialing import LATER, log_in, server_context
from tests.peers.certs import Authority, CertificateFiles
from tests.session.rig import Peer, running, users_file

READY = "+OK POP3 server ready.\r\n"
BEGIN = "+OK Begin fake TLS negotiation now.\r\n"
NO_STLS = "-ERR STARTTLS not supported.\r\n"
NO_SUCH = "-ERR no such command\r\n"
PERM = "[sys/perm] perm alert\r\n"
FULL = "TOP USER RESP-CODES LOGIN-DELAY_900 PIPELINING EXPIRE_60 UIDL IMPLEMENTATION_fake_mail_server SASL_PLAIN"
INJECTED = f"{BEGIN}+OK\r\nPLAIN\r\nLOGIN\r\n.\r\n"


class Case(NamedTuple):
    """A server. `starts_tls`: it really does, behind its answer to STLS. `says` takes precedence over what it would."""

    outcome: Literal["in", "later", "never"]
    greeting: str = READY
    stls: str = BEGIN
    starts_tls: bool = True
    capa: str = FULL
    says: Mapping[str, str] = {}


STRIPPED: dict[str, Any] = {"outcome": "later", "stls": NO_STLS, "starts_tls": False}
CASES = {
    "setup": Case("in"),
    "Buffering/B_1 as it comes": Case("in"),
    "Buffering/B_1 an answer injected": Case("later", stls=INJECTED),
    "Buffering/B_1 an answer injected, the real one kept back": Case("later", stls=INJECTED, says={"CAPA": ""}),
    "Buffering/B_2": Case("later", stls=BEGIN + "¹³¹²³¹²³¹²³¹²³²¹³¹²³¹²³²¹³¹²³¹²³²¹³¹²³¹²³¹²³¹²³"),
    "Negotiation/O_1 not announced, and refused": Case(**STRIPPED, capa=FULL),
    "Negotiation/O_2 announced, and refused": Case(**STRIPPED, capa=f"STLS {FULL}"),
    "Negotiation/O_3 no CAPA, and refused": Case(**STRIPPED, says={"CAPA": "-ERR bad command\r\n"}),
    "Negotiation/O_4 a timestamp, and other ways in": Case(
        "in", greeting="+OK POP3 server ready. <1234.123456789@example.org>\r\n", capa="USER SASL_PLAIN STLS"
    ),
    "others/P_1 a timestamp, and refused": Case(
        **STRIPPED, greeting="+OK POP3 server ready. <1896.697170952@example.org>\r\n"
    ),
    "others/X_1 every mechanism there is, and refused": Case(**STRIPPED, capa="SASL_APOP_CRAM-MD5_NTLM_PLAIN_LOGIN"),
    "others/X_1 no protocol at all": Case("later", greeting="+Do you even care?\r\n", stls="+Okay, do your thing.\r\n"),
    "others/auth/capa_err_auth_err": Case("in", says={"CAPA": NO_SUCH, "AUTH": NO_SUCH}),
    "others/auth/capa_err_auth_ok_all": Case("in", says={"CAPA": NO_SUCH}),
    "others/auth/capa_err_quit_err_sys_perm": Case("in", says={"CAPA": NO_SUCH, "QUIT": f"-ERR {PERM}"}),
    "others/auth/capa_err_quit_ok_sys_perm": Case("in", says={"CAPA": NO_SUCH, "QUIT": f"+OK {PERM}"}),
    "others/capa/capa_err": Case("in", says={"CAPA": NO_SUCH}),
    "others/capa/capa_err_code_sys_perm": Case("in", says={"CAPA": f"-ERR {PERM}"}),
    "others/capa/capa_ok_all": Case("in", capa=f"{FULL} EXPIRE_NEVER EXPIRE_0_USER STLS AUTH-RESP-CODE UTF8_USER LANG"),
    "others/capa/capa_ok_empty": Case("in", capa=""),
    "others/capa/capa_ok_sasl_no_stls": Case("in", capa="USER SASL_PLAIN_LOGIN_CRAM-MD5_GSSAPI_EXTERNAL"),
    "others/code": Case("in", greeting="+OK [in-use] POP3 server ready.\r\n"),
    "others/greeting/err": Case("later", greeting="-ERR POP3 server ready.\r\n"),
    "others/greeting/err_escape": Case("later", greeting="-ERR \x1b[31;1;4mPOP3\x1b[0m server ready.\r\n"),
    "others/greeting/err_sys_perm": Case("never", greeting=f"-ERR {PERM}"),
    "others/greeting/err_sys_temp": Case("later", greeting="-ERR [sys/temp] temp alert\r\n"),
    "others/greeting/err_timestamp": Case("later", greeting="-ERR POP3 server ready. <12345678.1234@example.org>\r\n"),
    "others/greeting/greeting_1": Case("in", capa=f"STLS {FULL}"),
    "others/greeting/greeting_2": Case("later", greeting="-ERR POP3 server ready.\r\n", capa=f"STLS {FULL}"),
    "others/greeting/ok": Case("in"),
    "others/greeting/ok_escape": Case("in", greeting="+OK \x1b[31;1;4mPOP3\x1b[0m server ready.\r\n"),
    "others/greeting/ok_sys_perm": Case("in", greeting=f"+OK {PERM}"),
    "others/greeting/ok_sys_temp": Case("in", greeting="+OK [sys/temp] temp alert\r\n"),
    "others/greeting/ok_timestamp": Case("in", greeting="+OK POP3 server ready. <12345678.12345@example.org>\r\n"),
    "others/quit/greeting_err_quit": Case("later", greeting="-ERR POP3 server ready.\r\n", says={"QUIT": NO_SUCH}),
    "others/quit/greeting_ok_capa_stls_stls_err_quit": Case("later", stls="-ERR nonono\r\n", starts_tls=False),
    "others/stls/greeting_ok_capa_ok_stls_err": Case("later", stls="-ERR not available\r\n", starts_tls=False),
    "others/stls/greeting_ok_capa_ok_stls_err_sys_perm": Case("later", stls=f"-ERR {PERM}", starts_tls=False),
    "others/stls/greeting_ok_capa_ok_stls_ok": Case("in", capa="STLS"),
    "others/stls/greeting_ok_capa_ok_stls_ok_sys_perm": Case("later", stls=f"+OK {PERM}", starts_tls=False),
    "others/unsolicited/multi_line_scan_listing": Case(
        "later", greeting="+OK 2 messages (320 octets)\r\n1 120\r\n2 200\r\n.\r\n"
    ),
}  # fmt: skip
ANSWERS = {"in": b"+OK Logged in", "later": LATER, "never": b"-ERR [SYS/PERM] your mail server refuses"}


async def serve(peer: Peer, case: Case, context: ssl.SSLContext) -> bytes:
    """Be the server until the end of the connection, obliging in the clear, too; everything that came in the clear."""
    lines = "".join(f"{name.replace('_', ' ')}\r\n" for name in case.capa.split(" ") if name)
    usual = {"CAPA": f"+OK list of capabilities\r\n{lines}.\r\n", "STLS": case.stls}
    usual |= {verb: f"+OK {verb} ok\r\n" for verb in ("USER", "PASS", "AUTH", "QUIT")}
    clear = heard = bytearray()
    await peer.send(case.greeting)
    while True:
        while b"\r\n" in peer.received:
            line, end, peer.received[:] = bytes(peer.received).partition(b"\r\n")
            heard += line + end
            verb = line.split(b" ")[0].decode("latin-1")
            await peer.send(case.says.get(verb, usual.get(verb, "")))
            if verb == "STLS" and case.starts_tls and heard is clear:
                try:
                    await peer.handshake(context, server=True)
                except (ssl.SSLError, ConnectionError):
                    return bytes(clear)
                heard = bytearray()
        if not await peer.more():
            return bytes(clear + peer.received if heard is clear else clear)


@pytest.mark.long
@pytest.mark.parametrize("login", ["forward", "master"])
async def test_fake_servers_get_no_octet_of_a_credential_in_the_clear(
    tmp_path: Path, authority: Authority, server_certificate: CertificateFiles, login: str
) -> None:
    (tmp_path / "master").write_text("canary-pw-master\n")
    (tmp_path / "master").chmod(0o600)
    master = {"user": "popproxy", "password": {"file": "master"}, "mechanism": "plain"}
    pool: dict[str, Any] = {
        "tls": "stls", "ca": str(authority.ca), "allow_cleartext": False, "balance": {"failures": 100},
        **({"login": ["master"], "master": master} if login == "master" else {}),
    }  # fmt: skip
    timeouts = {"handshake": "500ms", "connect": "2s", "connect_total": "3s", "backend_login": "3s"}
    listener = {"authenticate": ["users"]} if login == "master" else {}
    sections = {"users": users_file(tmp_path, alice="canary-pw-alice")} if login == "master" else {}
    context, wrong = server_context(server_certificate), []
    async with running(tmp_path, pool=pool, listener=listener, timeouts=timeouts, **sections) as rig:
        rig.expected_errors += ["TLS to a backend failed", "ways to log in", "the proxy's credential"]
        [backend] = rig.parts.pools["main"].backends
        for name, case in CASES.items():
            backend._known_until = 0.0  # it is another server
            client, answered = await log_in(rig)
            peer = await rig.backend.accept()
            serving = asyncio.create_task(serve(peer, case, context))
            got = await answered
            client.close()
            clear = await serving
            peer.close()
            assert clear[:6] in (b"", b"STLS\r\n"), (name, clear)
            assert clear[6:7] in (b"", b"\x16", b"\x15"), (name, clear)
            for secret in (b"alice", b"canary", b"USER", b"PASS", b"AUTH", b"APOP"):
                assert secret not in clear, (name, clear)
            if got != ANSWERS[case.outcome] and (login == "forward" or got == ANSWERS["in"]):
                wrong.append((name, got))  # without SASL PLAIN in its CAPA there is no way in for a master
    assert not wrong


async def test_client_that_goes_on_in_the_clear_would_be_noticed(
    tmp_path: Path, server_certificate: CertificateFiles
) -> None:
    async with running(tmp_path) as rig:
        _, answered = await log_in(rig)
        peer = await rig.backend.accept()
        serving = asyncio.create_task(
            serve(peer, CASES["Negotiation/O_1 not announced, and refused"], server_context(server_certificate))
        )
        assert await answered == ANSWERS["in"]
        peer.half_close()
        assert b"PASS canary-pw-alice" in await serving
