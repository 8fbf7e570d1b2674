"""What CPython's own test-suite (Lib/test/test_poplib.py) expects of a server, expected of popproxy.

The tests have the names they have there. Where its dummy server makes something up, Dovecot's answer is expected.
"""

from __future__ import annotations

import contextlib
import poplib
import ssl
from collections.abc import Iterator

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.clients import Account, Poplib
from tests.peers.dovecot import Dovecot
from tests.peers.proxy import Proxy, StartProxy, settings
from tests.peers.scripted import ScriptedBackend, in_thread

MESSAGE = (
    b"From: postmaster@python.org\nContent-Type: text/plain\nMIME-Version: 1.0\nSubject: Dummy\n\nline1\nline2\nline3\n"
)
LINES = MESSAGE.splitlines()
OCTETS = len(MESSAGE) + len(LINES)


@pytest.fixture(params=["plain", "stls", "tls"])
def account(
    request: pytest.FixtureRequest, dovecot_server: Dovecot, dovecot_proxy: Proxy, authority: Authority
) -> Account:
    """Five messages, as the dummy server has."""
    dovecot_proxy.settled()  # nobody is in the maildrop any more
    dovecot_server.deliver("bob", [MESSAGE] * 5)
    port = dovecot_proxy.port("pop3s" if request.param == "tls" else "pop3")
    return Account(port, "bob", dovecot_server.users["bob"], authority.ca, request.param)


@pytest.fixture
def client(account: Account) -> Iterator[poplib.POP3]:
    """In TRANSACTION."""
    session = Poplib.login(account)
    yield session
    session.close()


@contextlib.contextmanager
def unknown(proxy: Proxy, listener: str = "pop3") -> Iterator[poplib.POP3]:
    """In AUTHORIZATION."""
    session = poplib.POP3("127.0.0.1", proxy.port(listener), timeout=60)
    try:
        yield session
    finally:
        with contextlib.suppress(OSError):  # after a failed handshake
            session.close()


def test_getwelcome(client: poplib.POP3) -> None:
    assert client.getwelcome().startswith(b"+OK ")


def test_exceptions(client: poplib.POP3) -> None:
    with pytest.raises(poplib.error_proto, match="-ERR"):
        client._shortcmd("echo -err")  # type: ignore[attr-defined]


def test_user_and_pass(dovecot_proxy: Proxy, dovecot_server: Dovecot) -> None:
    with unknown(dovecot_proxy) as session:
        assert session.user("bob").startswith(b"+OK")
        assert session.pass_(dovecot_server.users["bob"]).startswith(b"+OK")


def test_user_and_pass_in_the_wrong_order(dovecot_proxy: Proxy, dovecot_server: Dovecot) -> None:
    with unknown(dovecot_proxy) as session, pytest.raises(poplib.error_proto):
        session.pass_(dovecot_server.users["bob"])


def test_wrong_password_is_told_with_its_code_and_may_be_repeated(
    dovecot_proxy: Proxy, dovecot_server: Dovecot
) -> None:
    with unknown(dovecot_proxy) as session:
        session.user("bob")
        with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\]"):
            session.pass_("wrong")
        session.user("bob")
        assert session.pass_(dovecot_server.users["bob"]).startswith(b"+OK")


def test_stat(client: poplib.POP3) -> None:
    assert client.stat() == (5, 5 * OCTETS)


def test_list(client: poplib.POP3) -> None:
    lines = [b"%d %d" % (number, OCTETS) for number in range(1, 6)]
    assert client.list()[1:] == (lines, sum(len(line) + 2 for line in lines))
    single: object = client.list(1)  # typeshed knows only the other form
    assert single == b"+OK 1 %d" % OCTETS


def test_retr(client: poplib.POP3) -> None:
    status, lines, octets = client.retr(1)
    assert status.startswith(b"+OK")
    assert (lines, octets) == (LINES, OCTETS)


def test_retr_of_a_message_that_is_not_there(client: poplib.POP3) -> None:
    with pytest.raises(poplib.error_proto, match="-ERR"):
        client.retr(99)
    assert client.noop().startswith(b"+OK")


def test_top(client: poplib.POP3) -> None:
    lines = LINES[:6]
    assert client.top(1, 1)[1] == lines
    assert client.top(1, 0)[1] == lines[:5]


def test_uidl(client: poplib.POP3) -> None:
    listing = client.uidl()[1]
    assert len({line.split()[1] for line in listing}) == 5
    assert client.uidl(1) == b"+OK " + listing[0]


def test_dele_rset_and_noop(client: poplib.POP3) -> None:
    assert client.dele(1).startswith(b"+OK")
    assert client.stat()[0] == 4
    assert client.rset().startswith(b"+OK")
    assert client.stat()[0] == 5
    assert client.noop().startswith(b"+OK")


def test_dele_without_quit_deletes_nothing(client: poplib.POP3, dovecot_proxy: Proxy, dovecot_server: Dovecot) -> None:
    before = len(dovecot_proxy.audit("session_end"))
    client.dele(1)
    client.close()
    end = dovecot_proxy.sessions(before + 1)[-1][-1]
    assert end["event.reason"] == "client_lost"
    assert end["pop3.abandoned_total"] == 1
    assert len(dovecot_server.maildrop("bob")) == 5


def test_rpop_is_refused(dovecot_proxy: Proxy) -> None:
    with unknown(dovecot_proxy) as session:
        session.user("bob")
        with pytest.raises(poplib.error_proto, match="-ERR"):
            session.rpop("foo")


def test_apop_normal(dovecot_proxy: Proxy, dovecot_server: Dovecot) -> None:
    with unknown(dovecot_proxy, "apop") as session:
        assert session.apop("bob", dovecot_server.users["bob"]).startswith(b"+OK")


def test_apop_timestamp_is_new_each_time(dovecot_proxy: Proxy) -> None:
    welcomes = set()
    for _ in range(20):
        with unknown(dovecot_proxy, "apop") as session:
            welcomes.add(session.getwelcome())
    assert len(welcomes) == 20


def test_apop_needs_a_timestamp(dovecot_proxy: Proxy, dovecot_server: Dovecot) -> None:
    with unknown(dovecot_proxy) as session:
        assert b"<" not in session.getwelcome()
        with pytest.raises(poplib.error_proto):
            session.apop("bob", dovecot_server.users["bob"])


def test_apop_redos_of_the_backend_reaches_nobody(start_proxy: StartProxy) -> None:
    evil = b"+OK " + b"<" * 400 + b">\r\n"
    with in_thread(ScriptedBackend([MESSAGE], greeting=evil)) as backend:
        proxy = start_proxy(settings(backend.address))
        with unknown(proxy) as session:
            assert b"<<" not in session.getwelcome()
            session.user("bob")
            assert session.pass_("canary-pw-any").startswith(b"+OK")


def test_utf8_raises_if_unsupported(dovecot_proxy: Proxy) -> None:
    with unknown(dovecot_proxy) as session:
        assert "UTF8" not in session.capa()
        with pytest.raises(poplib.error_proto):
            session.utf8()


def test_capa(client: poplib.POP3) -> None:
    capabilities = client.capa()
    assert {"TOP", "UIDL", "USER", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE"} <= capabilities.keys()


def test_quit(client: poplib.POP3) -> None:
    assert client.quit().startswith(b"+OK")


def test_too_long_lines_are_refused_and_the_session_ends(start_proxy: StartProxy) -> None:
    with in_thread(ScriptedBackend([MESSAGE])) as backend:
        proxy = start_proxy(settings(backend.address))
        with unknown(proxy) as session:
            session._putcmd("USER " + "x" * 5000)  # type: ignore[attr-defined]
            with pytest.raises((poplib.error_proto, OSError)):
                session._getresp()  # type: ignore[attr-defined]
    assert not backend.lines


def test_stls_capa(dovecot_proxy: Proxy) -> None:
    with unknown(dovecot_proxy) as session:
        assert "STLS" in session.capa()


def test_stls(dovecot_proxy: Proxy, authority: Authority) -> None:
    with unknown(dovecot_proxy) as session:
        assert session.stls(ssl.create_default_context(cafile=str(authority.ca))).startswith(b"+OK")
        assert "STLS" not in session.capa()


def test_stls_context(dovecot_proxy: Proxy) -> None:
    with unknown(dovecot_proxy) as session, pytest.raises(ssl.CertificateError):
        session.stls(ssl.create_default_context())


def test_stls_under_tls_is_refused(dovecot_proxy: Proxy, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.ca))
    session = poplib.POP3_SSL("127.0.0.1", dovecot_proxy.port("pop3s"), context=context, timeout=60)
    with contextlib.closing(session), pytest.raises(poplib.error_proto):
        session._shortcmd("STLS")  # type: ignore[attr-defined]


def test_stls_needs_a_certificate(start_proxy: StartProxy, dovecot_server: Dovecot) -> None:
    proxy = start_proxy(settings(f"127.0.0.1:{dovecot_server.port}"))
    with unknown(proxy) as session:
        assert "STLS" not in session.capa()
        with pytest.raises(poplib.error_proto):
            session.stls()


def test_pop3_ssl_with_alpn(dovecot_proxy: Proxy, authority: Authority, server_certificate: CertificateFiles) -> None:
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.set_alpn_protocols(["pop3"])
    session = poplib.POP3_SSL("localhost", dovecot_proxy.port("pop3s"), context=context, timeout=60)
    with contextlib.closing(session):
        assert isinstance(session.sock, ssl.SSLSocket)
        assert session.sock.selected_alpn_protocol() == "pop3"
        assert session.getwelcome().startswith(b"+OK")
