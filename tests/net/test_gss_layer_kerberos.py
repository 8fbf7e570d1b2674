"""Security layers with real tickets: sizes, replays, and a whole megabyte through a channel."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import Iterator

import pytest

from popproxy.errors import RemoteProtocolError
from popproxy.net.channel import Channel
from popproxy.net.gss_layer import GssLayer
from popproxy.net.reactor import Reactor
from popproxy.sasl.credentials import Layer
from popproxy.sasl.gssapi import LayerOffer
from tests.net.test_gss_layer import Ear, framed, tokens
from tests.peers.tickets import Initiator, Tickets, tickets

pytestmark = pytest.mark.real
ALL = LayerOffer(Layer.NONE | Layer.INTEGRITY | Layer.CONFIDENTIALITY, 65536)


@pytest.fixture(scope="module")
def kerberos() -> Iterator[Tickets]:
    with tickets() as it:
        yield it


def pair(kerberos: Tickets, conf: bool, client_max: int = 1024, our_max: int = 65536) -> tuple[Initiator, GssLayer]:
    _, client, context, _ = kerberos.at_choice(ALL)
    choice = Layer.CONFIDENTIALITY if conf else Layer.INTEGRITY
    context.unwrap(client.wrap(bytes([choice]) + client_max.to_bytes(3, "big"), confidential=False))
    return client, GssLayer(context, client_max, our_max, conf)


@pytest.mark.parametrize("conf", [False, True])
@pytest.mark.parametrize("client_max", [200, 1023, 1024, 4097, 65536])
def test_no_token_is_longer_than_the_client_takes(kerberos: Tickets, conf: bool, client_max: int) -> None:
    client, layer = pair(kerberos, conf, client_max)
    data = os.urandom(100_000)
    sent = tokens(layer.encode(data))
    assert max(map(len, sent)) <= client_max
    opened = [client.unwrap(token) for token in sent]
    assert b"".join(plain for plain, _ in opened) == data
    assert {encrypted for _, encrypted in opened} == {conf}
    assert (data[:50] in b"".join(sent)) is not conf


@pytest.mark.parametrize("conf", [False, True])
def test_replayed_reordered_and_changed_tokens_are_refused(kerberos: Tickets, conf: bool) -> None:
    for order in ([0, 0], [0, 2], [1], [0, 1, 0]):
        client, layer = pair(kerberos, conf)
        sent = [framed(client.wrap(text, confidential=conf)) for text in (b"DELE 1\r\n", b"RSET\r\n", b"QUIT\r\n")]
        for index in order[:-1]:
            assert len(layer.decode(sent[index])) == 1
        with pytest.raises(RemoteProtocolError):
            layer.decode(sent[order[-1]])
    client, layer = pair(kerberos, conf)
    token = bytearray(client.wrap(b"DELE 1\r\n", confidential=conf))
    token[-1] ^= 1
    with pytest.raises(RemoteProtocolError):
        layer.decode(framed(bytes(token)))


def test_an_unencrypted_token_is_refused_where_encryption_was_chosen(kerberos: Tickets) -> None:
    client, layer = pair(kerberos, conf=True)
    with pytest.raises(RemoteProtocolError, match="not encrypted"):
        layer.decode(framed(client.wrap(b"STAT\r\n", confidential=False)))


@pytest.mark.parametrize("conf", [False, True])
async def test_a_megabyte_and_commands_through_a_channel(kerberos: Tickets, conf: bool) -> None:
    client, layer = pair(kerberos, conf)
    reactor = Reactor(asyncio.get_running_loop())
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(60)
    ear = Ear()
    channel = Channel(reactor, ours, ear)
    channel.start_gss(layer)
    body = os.urandom(1 << 20)

    def converse() -> bytes:
        with theirs, theirs.makefile("rb") as stream:
            for command in (b"NOOP\r\n", b"RETR 1\r\n"):
                theirs.sendall(framed(client.wrap(command, confidential=conf)))
            received = bytearray()
            while len(received) < len(body):
                received += client.unwrap(stream.read(int.from_bytes(stream.read(4), "big")))[0]
            return hashlib.sha256(received).digest()

    conversation = asyncio.create_task(asyncio.to_thread(converse))
    await ear.until("len(self.data) == 14")
    assert ear.data == b"NOOP\r\nRETR 1\r\n"
    channel.write(body)
    assert await conversation == hashlib.sha256(body).digest()
    channel.abort()
    reactor.close()
