"""KPOP's handshake against MIT's own client (`krb5_sendauth`) and beside MIT's own server (`krb5_recvauth`)."""

from __future__ import annotations

import ctypes
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from popproxy.kerberos.refusal import KerberosRefused
from popproxy.wire.kpop import APPLICATION_VERSION, SENDAUTH_VERSION, ApReqReceived, Failed, KpopFailure, KpopHandshake
from tests.peers.kpop_client import (
    BAD_APPLICATION_VERSION,
    REJECTED,
    KpopClient,
    KpopRefusedError,
    framed,
    hello,
)
from tests.peers.tickets import Tickets, tickets

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def kerberos() -> Iterator[Tickets]:
    with tickets() as it:
        yield it


class Server:
    """Accepts one client; shakes hands with it, then says +OK and echoes what came behind the AP-REQ."""

    def __init__(self, kerberos: Tickets, judge: Callable[[bytes], bytes] | None = None) -> None:
        self._kerberos = kerberos
        self._judge = judge or (lambda token: token)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.token = b""
        self.client = ""
        self.failure: KpopFailure | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        sock, _ = self._listener.accept()
        sock.settimeout(60)
        handshake = KpopHandshake()
        with sock, self._listener:
            while True:
                data = sock.recv(7)  # no message comes whole
                handshake.receive_data(data) if data else handshake.receive_eof()
                for event in handshake.events_received():
                    match event:
                        case ApReqReceived(token):
                            self._verify(handshake, self._judge(token))
                        case Failed(reason):
                            self.failure = reason
                sock.sendall(handshake.data_to_send())
                if self.failure is not None or self.token:
                    break
            if self.client:
                sock.sendall(b"+OK ready\r\n")
                while not handshake.eof and not handshake.rest.endswith(b"\r\n"):
                    data = sock.recv(4096)
                    handshake.receive_data(data) if data else handshake.receive_eof()
                sock.sendall(b"+OK " + handshake.rest)

    def _verify(self, handshake: KpopHandshake, token: bytes) -> None:
        self.token = token
        try:
            accepted = self._kerberos.verifier.verify(token)
        except KerberosRefused as refused:
            handshake.refuse(refused.token or b"")
        else:
            self.client = accepted.client
            handshake.accept(accepted.mutual_reply)


@pytest.mark.parametrize("mutual", [True, False])
def test_krb5_sendauth_gets_in(kerberos: Tickets, mutual: bool) -> None:
    server = Server(kerberos)
    with KpopClient(server.port) as client:
        client.authenticate(kerberos.realm.config, kerberos.ccache, kerberos.service, mutual=mutual)
        client.send(b"USER alice\r\n")
        assert client.line() == b"+OK ready"
        assert client.line() == b"+OK USER alice"
    server.join()
    assert server.client == f"alice@{kerberos.realm.name}"


def test_a_wrong_application_version_is_told_to_krb5_sendauth(kerberos: Tickets) -> None:
    server = Server(kerberos)
    with KpopClient(server.port) as client, pytest.raises(KpopRefusedError) as caught:
        client.authenticate(kerberos.realm.config, kerberos.ccache, kerberos.service, version=b"KPOPV2.0\0")
    server.join()
    assert (caught.value.code, server.failure) == (BAD_APPLICATION_VERSION, KpopFailure.APPLICATION_VERSION)


def test_a_refusal_reaches_krb5_sendauth_as_krb_error(kerberos: Tickets) -> None:
    server = Server(kerberos, lambda token: token[:-20] + bytes(20))
    with KpopClient(server.port) as client, pytest.raises(KpopRefusedError) as caught:
        client.authenticate(kerberos.realm.config, kerberos.ccache, kerberos.service)
    server.join()
    assert (caught.value.code, caught.value.wire_code) == (REJECTED, 31)
    assert server.client == ""


def test_a_replayed_ap_req_is_refused(kerberos: Tickets) -> None:
    first = Server(kerberos)
    with KpopClient(first.port) as client:
        client.authenticate(kerberos.realm.config, kerberos.ccache, kerberos.service, mutual=False)
        client.send(b"\r\n")
        client.rest()
    first.join()
    assert first.client
    second = Server(kerberos)
    with KpopClient(second.port) as client:
        client.send(hello(first.token) + b"USER alice\r\n")
        answer = client.rest()
    second.join()
    assert (second.token, second.client) == (first.token, "")
    assert answer[5:6] == b"\x7e"


VERSIONS = [
    (SENDAUTH_VERSION, APPLICATION_VERSION),
    (SENDAUTH_VERSION, APPLICATION_VERSION[:-1]),
    (SENDAUTH_VERSION, APPLICATION_VERSION + b"\0"),
    (SENDAUTH_VERSION, b"KPOPV2.0\0"),
    (SENDAUTH_VERSION, b""),
    (SENDAUTH_VERSION[:-1], APPLICATION_VERSION),
    (SENDAUTH_VERSION + b"x", APPLICATION_VERSION),
    (b"KRB5_SENDAUTH_V2.0\0", APPLICATION_VERSION),
    (b"KRB5_SENDAUTH_V2.0\0", b"nonsense"),
    (b"x", b""),
]


@pytest.mark.parametrize("versions", VERSIONS)
def test_versions_are_answered_as_mit_answers_them(kerberos: Tickets, versions: tuple[bytes, bytes]) -> None:
    octets = b"".join(map(framed, versions))
    handshake = KpopHandshake()
    handshake.receive_data(octets)
    assert handshake.data_to_send() == recvauth(octets)


def recvauth(octets: bytes) -> bytes:
    """What MIT's krb5_recvauth answers to `octets` and the end of the connection."""
    krb5 = ctypes.CDLL("libkrb5.so.3")
    context, exchange, ticket = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    assert krb5.krb5_init_context(ctypes.byref(context)) == 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(octets)
        theirs.shutdown(socket.SHUT_WR)
        descriptor = ctypes.c_int(ours.fileno())
        version = APPLICATION_VERSION.rstrip(b"\0")
        code = krb5.krb5_recvauth(
            context, ctypes.byref(exchange), ctypes.byref(descriptor), version, None, 0, None, ctypes.byref(ticket)
        )
        assert code != 0  # no AP-REQ ever comes
        ours.shutdown(socket.SHUT_WR)
        answer = theirs.recv(100)
    krb5.krb5_auth_con_free(context, exchange)
    krb5.krb5_free_context(context)
    return answer
