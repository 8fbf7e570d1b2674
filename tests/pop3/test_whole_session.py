"""A whole session without a socket: both cores and the exchange between a client's octets and a server in memory."""

from __future__ import annotations

import poplib
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.pop3.capabilities import Capabilities, common
from popproxy.pop3.client import ClientConnection
from popproxy.pop3.client_events import LoggedIn
from popproxy.pop3.exchange import Exchange
from popproxy.pop3.exchanged import Exchanged
from popproxy.pop3.logins import UserPass
from popproxy.pop3.offer import Offer
from popproxy.pop3.server import ServerConnection
from popproxy.pop3.server_events import CredentialOffered
from popproxy.pop3.states import State
from popproxy.sasl.credentials import PasswordCredential
from tests.pop3.helpers import chunks
from tests.pop3.maildrop import Maildrop

MODERN = ("TOP", "UIDL", "PIPELINING", "SASL PLAIN", "IMPLEMENTATION backend 9")
MESSAGES = [b"Subject: one\r\n\r\nhello\r\n", b".\r\n..\r\n.dot\r\nlast\r\n", b"\r\n", b"", b"a\nb\rc\0\xff\r\n"]


@dataclass
class Proxy:
    """What a session does with the cores, in a dozen lines."""

    backend: Maildrop
    sizes: list[int] = field(default_factory=list)
    out: bytes = b""
    events: list[Exchanged] = field(default_factory=list)

    def __post_init__(self) -> None:
        declared: Capabilities = {"UIDL": ()}
        self.server = ServerConnection(Offer(passwords=True, backend=common([declared])))
        self.server.greet("ready")
        self.exchange: Exchange | None = None

    def client_says(self, octets: bytes) -> None:
        for piece in chunks(octets, self.sizes):
            if self.exchange is not None:
                self.exchange.receive_from_client(piece)
                self.pump(self.exchange)
                continue
            self.server.receive_data(piece)
            self.out += self.server.data_to_send()
            while offered := [e for e in self.server.events_received() if isinstance(e, CredentialOffered)]:
                self.log_in(offered[0])

    def log_in(self, offered: CredentialOffered) -> None:
        assert isinstance(offered.credential, PasswordCredential)
        login = UserPass(offered.credential.authcid, offered.credential.password)
        connection = ClientConnection([login])
        for piece in chunks(self.backend.greeting(), self.sizes):
            connection.receive_data(piece)
        while not (events := connection.events_received()):
            for piece in chunks(self.backend.hear(connection.data_to_send()), self.sizes):
                connection.receive_data(piece)
        event = events[0]
        if not isinstance(event, LoggedIn):
            self.server.login_failed("no", "AUTH")
            self.out += self.server.data_to_send()
            return
        self.server.login_accepted()
        self.out += self.server.data_to_send()
        assert event.learned is not None
        before = self.server.offer.capabilities()
        self.exchange = Exchange(pipelining="PIPELINING" in event.learned, before=before, declared={"UIDL": ()})
        self.exchange.receive_from_client(self.server.take_rest()[0])
        self.pump(self.exchange)

    def pump(self, exchange: Exchange) -> None:
        while True:
            commands = exchange.commands_to_send(client_drained=True)
            answers = exchange.local_answers()
            self.out += answers
            for piece in chunks(self.backend.hear(commands), self.sizes):
                shown = exchange.receive_from_backend(bytearray(piece), len(piece))
                self.out += piece if shown is None else shown
            assert exchange.violation is None
            for event in exchange.events:
                self.out += event.reply
            self.events += exchange.events
            exchange.events = []
            if not commands and not answers:
                return


class Recorded(poplib.POP3):
    """Python's own client, reading what the proxy has said."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self._debugging = 0
        self._tls_established = False
        proxy.out += proxy.server.data_to_send()
        self.welcome = self._getline()[0]

    def _getline(self) -> tuple[bytes, int]:
        line, _, self.proxy.out = self.proxy.out.partition(b"\r\n")
        return line, len(line) + 2

    def _putline(self, line: bytes) -> None:
        self.proxy.client_says(line + b"\r\n")


splits = st.lists(st.integers(1, 9), max_size=40)


@given(splits, st.sampled_from([MODERN, None]))
def test_poplib_reads_every_message_and_deletes_what_it_says(
    sizes: list[int], capabilities: tuple[str, ...] | None
) -> None:
    backend = Maildrop(MESSAGES, capabilities)
    proxy = Proxy(backend, sizes)
    client = Recorded(proxy)
    assert b"<" not in client.welcome, "the backend's APOP timestamp stays hidden"
    client.user("alice")
    with pytest.raises(poplib.error_proto, match="AUTH"):
        client.pass_("bad")
    client.user("alice")
    client.pass_("good")
    assert client.stat() == (5, sum(map(len, MESSAGES)))
    for number, text in enumerate(MESSAGES, 1):
        assert b"".join(line + b"\r\n" for line in client.retr(number)[1]) == text
    assert client.uidl()[1] == [b"%d uid-%d" % (n, n) for n in range(1, 6)]
    tags = client.capa()
    assert tags["IMPLEMENTATION"] == ["popproxy"]
    assert ("TOP" in tags) == (capabilities is not None)
    assert "SASL" not in tags
    client.dele(1)
    client.rset()
    client.dele(2)
    with pytest.raises(poplib.error_proto):
        client.dele(2)
    client.dele(5)
    assert backend.messages.keys() == {1, 2, 3, 4, 5}
    proxy.client_says(b"QUIT\r\n")
    assert proxy.out == b"+OK bye\r\n"
    assert backend.messages.keys() == {1, 3, 4}
    assert proxy.exchange is not None
    assert proxy.exchange.state is State.CLOSED
    assert proxy.exchange.deleted == {2: b"uid-2", 5: b"uid-5"}
    retrieved = [(event.number, event.ok) for event in proxy.events if event.verb == "RETR"]
    assert retrieved == [(number, True) for number in range(1, 6)]


@given(splits, st.sampled_from([MODERN, None]))
def test_all_pipelined_in_one_go_is_the_same_session(sizes: list[int], capabilities: tuple[str, ...] | None) -> None:
    octets = (
        b"USER alice\r\nPASS good\r\nSTAT\r\nUIDL\r\nLAST\r\nRETR 2\r\nLAST\r\nDELE 2\r\nNONSENSE\r\nLIST 1\r\nQUIT\r\n"
    )
    backend = Maildrop(MESSAGES, capabilities)
    proxy = Proxy(backend, sizes)
    proxy.client_says(octets)
    answers = (
        b"+OK ready|+OK send PASS|+OK Logged in|+OK 5 53|+OK|1 uid-1|2 uid-2|3 uid-3|4 uid-4|5 uid-5|.|+OK 0|"
        b"+OK|..|...|..dot|last|.|+OK 2|+OK|-ERR unknown command|+OK 1 23|+OK bye|"
    )
    assert proxy.out == answers.replace(b"|", b"\r\n")
    assert backend.messages.keys() == {1, 3, 4, 5}
    assert backend.lines.count(b"QUIT") == 1


def test_a_session_without_quit_deletes_nothing() -> None:
    backend = Maildrop(MESSAGES)
    proxy = Proxy(backend)
    proxy.client_says(b"USER alice\r\nPASS good\r\nDELE 1\r\nDELE 2\r\nQUIT")
    assert proxy.exchange is not None
    proxy.exchange.receive_client_eof()
    assert proxy.exchange.client_finished
    assert backend.open
    assert b"QUIT" not in backend.lines
    assert len(backend.messages) == 5
