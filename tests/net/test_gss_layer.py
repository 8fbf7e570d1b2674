"""Security layers octet by octet, and on a channel over real sockets; `test_gss_layer_kerberos.py` has real tickets."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import LocalProtocolError, RemoteProtocolError
from popproxy.net.channel import NOBODY, Channel
from popproxy.net.gss_layer import GssLayer
from popproxy.net.reactor import Reactor
from tests.peers.gss_double import OVERHEAD, TransparentContext

SIZE = 4096


def layer(*, client_max: int = SIZE, our_max: int = SIZE, conf: bool = True) -> GssLayer:
    return GssLayer(TransparentContext(), client_max, our_max, conf)


def framed(token: bytes) -> bytes:
    return len(token).to_bytes(4, "big") + token


def tokens(octets: bytes) -> list[bytes]:
    """Takes the lengths off."""
    found = []
    while octets:
        end = 4 + int.from_bytes(octets[:4], "big")
        found.append(octets[4:end])
        octets = octets[end:]
    return found


def from_client(*messages: bytes, conf: bool = True) -> list[bytes]:
    client = TransparentContext()
    return [framed(client.wrap(message, confidential=conf)) for message in messages]


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_every_split_gives_the_same_plaintext(messages: list[bytes], data: st.DataObject) -> None:
    octets = b"".join(from_client(*messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=8)))
    edges = [0, *cuts, len(octets)]
    ours, dripped = layer(), layer()
    pieces = [ours.decode(octets[start:end]) for start, end in itertools.pairwise(edges)]
    assert [plain for piece in pieces for plain in piece] == [message for message in messages if message]
    assert ours.buffered == 0
    assert b"".join(b"".join(dripped.decode(bytes([octet]))) for octet in octets) == b"".join(messages)


@given(st.binary(max_size=2000), st.integers(OVERHEAD + 1, 300), st.booleans())
def test_no_token_to_the_client_is_longer_than_it_takes(data: bytes, client_max: int, conf: bool) -> None:
    sent = tokens(layer(client_max=client_max, conf=conf).encode(data))
    client = TransparentContext()
    assert all(len(token) <= client_max for token in sent)
    assert b"".join(client.unwrap(token)[0] for token in sent) == data
    assert len(sent) == -(-len(data) // (client_max - OVERHEAD))


def test_encoding_takes_views_and_leaves_them_usable() -> None:
    buffer = bytearray(b"+OK\r\nrest of a buffer that is reused")
    sent = tokens(layer().encode(memoryview(buffer)[:5]))
    buffer[:] = b"overwritten"
    assert TransparentContext().unwrap(sent[0]) == (b"+OK\r\n", True)


@pytest.mark.parametrize(
    "head", [b"\0\0\0\0", (SIZE + 1).to_bytes(4, "big"), b"\xff\xff\xff\xff", b"QUIT\r\n", b"\x16\x03\x01\x02"]
)
def test_a_length_that_was_not_agreed_is_refused_at_once(head: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="length") as caught:
        layer().decode(head)
    assert caught.value.reason == "gss_layer"


def test_the_longest_token_is_taken_and_no_more_is_buffered() -> None:
    (token,) = from_client(b"x" * (SIZE - OVERHEAD))
    ours = layer()
    assert ours.decode(token[:-1]) == []
    assert ours.buffered == SIZE + 3
    assert ours.decode(token[-1:]) == [b"x" * (SIZE - OVERHEAD)]


def test_replayed_reordered_and_forged_tokens_are_refused() -> None:
    one, two, three = from_client(b"DELE 1\r\n", b"RSET\r\n", b"QUIT\r\n")
    damaged = one[:-1] + b"!"
    for octets in (one + one, one + three, two, damaged, framed(b"DELE 1\r\n"), one + two + one):
        with pytest.raises(RemoteProtocolError, match="cannot be verified"):
            layer().decode(octets)


def test_an_unencrypted_token_is_refused_where_encryption_was_chosen() -> None:
    (token,) = from_client(b"STAT\r\n", conf=False)
    assert layer(conf=False).decode(token) == [b"STAT\r\n"]
    with pytest.raises(RemoteProtocolError, match="not encrypted"):
        layer(conf=True).decode(token)


@given(st.binary(min_size=1, max_size=60))
def test_any_octets_are_waited_for_or_refused(octets: bytes) -> None:
    ours = layer()
    length = int.from_bytes(octets[:4], "big")
    complete = len(octets) >= 4 + length
    if len(octets) >= 4 and (complete or not 0 < length <= SIZE):
        with pytest.raises(RemoteProtocolError):
            ours.decode(octets)
    else:
        assert ours.decode(octets) == []
        assert ours.buffered == len(octets)


def test_a_client_that_takes_no_octet_at_all_gets_no_layer() -> None:
    with pytest.raises(LocalProtocolError):
        layer(client_max=OVERHEAD)


def test_an_expired_context_is_reported() -> None:
    context = TransparentContext()
    context.expired = True
    with pytest.raises(RemoteProtocolError) as caught:
        GssLayer(context, SIZE, SIZE, True).encode(b"x")
    assert caught.value.reason == "gss_layer"


# ---- on a channel ----


class Ear:
    """Keeps what a channel says."""

    def __init__(self) -> None:
        self.data = b""
        self.ends: list[str] = []
        self.drains = 0
        self.changed = asyncio.Event()

    def data_received(self, buffer: bytearray, end: int) -> None:
        self.data += buffer[:end]
        self.changed.set()

    def eof_received(self) -> None:
        self.ends.append("eof")
        self.changed.set()

    def drained(self) -> None:
        self.drains += 1
        self.changed.set()

    def connection_lost(self, reason: str) -> None:
        self.ends.append(reason)
        self.changed.set()

    async def until(self, condition: str) -> None:
        """Waits until `condition`, an expression about self, holds."""
        async with asyncio.timeout(30):
            while not eval(condition, {}, {"self": self}):
                self.changed.clear()
                await self.changed.wait()


class Ends:
    """A channel and the client's socket."""

    def __init__(self, reactor: Reactor) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        ours.setblocking(False)
        theirs.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.loop = reactor.loop
        self.ear = Ear()
        self.channel = Channel(reactor, ours, self.ear)
        self.ours, self.socket = ours, theirs
        self.client = TransparentContext()

    async def say(self, message: bytes) -> None:
        await self.send(framed(self.client.wrap(message, confidential=True)))

    async def send(self, octets: bytes) -> None:
        async with asyncio.timeout(30):
            await self.loop.sock_sendall(self.socket, octets)

    async def receive(self, count: int) -> bytes:
        received = b""
        async with asyncio.timeout(30):
            while len(received) < count:
                piece = await self.loop.sock_recv(self.socket, count - len(received))
                if not piece:
                    raise EOFError(received)
                received += piece
        return received

    async def token(self) -> bytes:
        """The plaintext of the next token."""
        length = int.from_bytes(await self.receive(4), "big")
        plain, encrypted = self.client.unwrap(await self.receive(length))
        assert encrypted
        return plain


@pytest_asyncio.fixture
async def ends() -> AsyncIterator[Ends]:
    reactor = Reactor(asyncio.get_running_loop())
    both = Ends(reactor)
    yield both
    both.channel.abort()
    both.socket.close()
    reactor.close()


async def test_the_layer_starts_behind_the_ok_that_is_in_the_clear(ends: Ends) -> None:
    ends.channel.write(b"+OK Logged in\r\n")
    assert ends.channel.start_gss(layer()) == b""
    ends.channel.write(b"+OK 1 120\r\n")
    assert await ends.receive(15) == b"+OK Logged in\r\n"
    assert await ends.token() == b"+OK 1 120\r\n"
    await ends.say(b"STAT\r\n")
    await ends.say(b"RETR 1\r\n")
    await ends.ear.until("len(self.data) >= 14")
    assert ends.ear.data == b"STAT\r\nRETR 1\r\n"


@pytest.mark.parametrize("conf", [False, True])
async def test_integrity_alone_is_not_encryption(ends: Ends, conf: bool) -> None:
    ends.channel.start_gss(layer(conf=conf))
    assert ends.channel.encrypted is conf


async def test_what_was_read_before_the_start_is_decoded(ends: Ends) -> None:
    one, two = from_client(b"STAT\r\n", b"LIST\r\n")
    ours = layer()
    assert ends.channel.start_gss(ours, one + two[:7]) == b"STAT\r\n"
    await ends.send(two[7:])
    await ends.ear.until("self.data")
    assert ends.ear.data == b"LIST\r\n"


async def test_commands_in_the_clear_before_the_start_are_refused(ends: Ends) -> None:
    with pytest.raises(RemoteProtocolError):
        ends.channel.start_gss(layer(), b"DELE 1\r\nQUIT\r\n")
    assert ends.ear.data == b""


@pytest.mark.parametrize("octets", [b"DELE 1\r\n", b"\0\0\0\0", framed(b"STAT\r\n"), b"\xff" * 100])
async def test_nonsense_ends_the_connection(ends: Ends, octets: bytes) -> None:
    ends.channel.start_gss(layer())
    await ends.say(b"NOOP\r\n")
    await ends.ear.until("self.data")
    await ends.send(octets)
    await ends.ear.until("self.ends")
    assert (ends.ear.ends, ends.ear.data) == (["gss_layer"], b"NOOP\r\n")
    assert ends.channel.closed
    with pytest.raises((EOFError, ConnectionResetError)):
        await ends.receive(1)


async def test_a_replayed_token_ends_the_connection(ends: Ends) -> None:
    ends.channel.start_gss(layer())
    (token,) = from_client(b"DELE 1\r\n")
    await ends.send(token)
    await ends.ear.until("self.data")
    await ends.send(token)
    await ends.ear.until("self.ends")
    assert (ends.ear.ends, ends.ear.data) == (["gss_layer"], b"DELE 1\r\n")


async def test_an_expired_context_ends_the_connection(ends: Ends) -> None:
    context = TransparentContext()
    ends.channel.start_gss(GssLayer(context, SIZE, SIZE, True))
    context.expired = True
    assert ends.channel.write(b"+OK\r\n")
    assert ends.ear.ends == ["gss_layer"]


async def test_a_large_message_keeps_back_pressure(ends: Ends) -> None:
    ends.channel.start_gss(layer(client_max=1024))
    ends.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    body = bytes(range(256)) * 8 * 1024  # 2 MiB: more than the buffers of the sockets hold
    assert not ends.channel.write(body)
    assert ends.channel.pending > 0
    received = bytearray()
    while len(received) < len(body):
        received += await ends.token()
    assert received == body
    await ends.ear.until("self.drains")
    assert (ends.channel.pending, ends.ear.drains) == (0, 1)


async def test_a_paused_channel_reads_nothing(ends: Ends) -> None:
    ends.channel.start_gss(layer())
    ends.channel.pause()
    await ends.say(b"STAT\r\n")
    for _ in range(5):
        await asyncio.sleep(0)
    assert ends.ear.data == b""
    ends.channel.resume()
    await ends.ear.until("self.data")
    assert ends.ear.data == b"STAT\r\n"


async def test_the_end_of_the_peer_is_heard_inside_the_layer(ends: Ends) -> None:
    ends.channel.start_gss(layer())
    await ends.say(b"NOOP\r\n")
    ends.socket.shutdown(socket.SHUT_WR)
    await ends.ear.until("self.ends")
    assert (ends.ear.ends, ends.ear.data) == (["eof"], b"NOOP\r\n")
    ends.channel.write(b"+OK\r\n")
    assert await ends.token() == b"+OK\r\n"


async def test_last_words_reach_a_client_that_sends_nonsense_meanwhile(ends: Ends) -> None:
    ends.channel.start_gss(layer(client_max=65536))
    ends.channel.write(bytes(16 << 20))  # more than the buffers of the sockets hold
    ends.channel.write(b"-ERR shutting down\r\n")
    ends.channel.close(linger=True)
    assert ends.channel.receiver is NOBODY
    await ends.send(b"\xff" * 1000)
    for _ in range(5):
        await asyncio.sleep(0)
    received = 0
    while received < 16 << 20:
        received += len(await ends.token())
    assert await ends.token() == b"-ERR shutting down\r\n"
    with pytest.raises(EOFError):
        await ends.receive(1)


async def test_layers_are_not_piled_up(ends: Ends) -> None:
    ends.channel.start_gss(layer())
    with pytest.raises(LocalProtocolError):
        ends.channel.start_gss(layer())
    with pytest.raises(LocalProtocolError):
        await ends.channel.accept_tls(lambda hello: None)
