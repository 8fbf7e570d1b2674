"""The GSSAPI exchange with real tickets from a real KDC, and clients that choose what they may not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from popproxy.sasl.credentials import GssapiCredential, Layer
from popproxy.sasl.gssapi import GssapiExchange, LayerOffer
from popproxy.sasl.mechanism import SaslError, Verify
from tests.peers.tickets import LAYERED, Flag, Tickets, tickets

pytestmark = pytest.mark.real
ALL = LayerOffer(Layer.NONE | Layer.INTEGRITY | Layer.CONFIDENTIALITY, 65536)


@pytest.fixture(scope="module")
def kerberos() -> Iterator[Tickets]:
    with tickets() as it:
        yield it


def finish(exchange: GssapiExchange, response: bytes) -> GssapiCredential:
    step = exchange.step(response)
    assert isinstance(step, Verify)
    assert isinstance(step.credential, GssapiCredential)
    return step.credential


@pytest.mark.parametrize("layer", list(Layer))
def test_a_mutual_client_chooses_a_layer(kerberos: Tickets, layer: Layer) -> None:
    exchange, client, context, message = kerberos.at_choice(ALL)
    assert message == b"\x07\x01\0\0"
    credential = finish(exchange, client.wrap(bytes([layer]) + b"\0\x04\0alice", confidential=False))
    size = 0 if layer is Layer.NONE else 1024
    assert credential == GssapiCredential(
        f"alice@{kerberos.realm.name}", kerberos.service, "alice", layer, size, context
    )


def test_a_client_that_is_not_mutual_gets_no_layer(kerberos: Tickets) -> None:
    exchange, client, _, message = kerberos.at_choice(ALL, Flag.integrity)  # as curl does
    assert message == b"\x01\0\0\0"
    assert finish(exchange, client.wrap(b"\x01\0\0\0", confidential=False)).authzid == ""


@pytest.mark.parametrize("mask", [0, 3, 5, 6, 7, 8, 255])
@pytest.mark.parametrize("confidential", [False, True])
def test_a_choice_that_is_none_is_refused(kerberos: Tickets, mask: int, confidential: bool) -> None:
    exchange, client, _, _ = kerberos.at_choice(ALL)
    with pytest.raises(SaslError):
        exchange.step(client.wrap(bytes([mask]) + b"\0\x04\0", confidential=confidential))


@pytest.mark.parametrize("message", [b"", b"\x01", b"\x01\0\0", b"\x02\0\0\0", b"\x04\0\0\x40", b"\x01\0\0\0alice\0"])
def test_other_nonsense_is_refused(kerberos: Tickets, message: bytes) -> None:
    exchange, client, _, _ = kerberos.at_choice(ALL)
    with pytest.raises(SaslError):
        exchange.step(client.wrap(message, confidential=False))


def test_octets_that_no_ticket_has_signed_are_refused(kerberos: Tickets) -> None:
    good = kerberos.at_choice(ALL)[1].wrap(b"\x01\0\0\0alice", confidential=False)  # of another context
    exchange, client, _, _ = kerberos.at_choice(ALL)
    mine = client.wrap(b"\x01\0\0\0alice", confidential=False)
    for response in (b"", b"\x01\0\0\0alice", good, mine[:-1], mine[:20], mine.replace(b"alice", b"admin"), b"\0" * 60):
        exchange = kerberos.at_choice(ALL)[0]
        with pytest.raises(SaslError, match="cannot be verified"):
            exchange.step(response)


def test_a_choice_under_a_later_number_is_refused(kerberos: Tickets) -> None:
    exchange, client, _, _ = kerberos.at_choice(ALL, LAYERED | Flag.replay_detection)
    client.wrap(b"\x01\0\0\0", confidential=False)
    with pytest.raises(SaslError):
        exchange.step(client.wrap(b"\x01\0\0\0", confidential=False))


def test_layers_need_a_context_that_notices_replays(kerberos: Tickets) -> None:
    message = kerberos.at_choice(ALL, Flag.mutual_authentication | Flag.integrity | Flag.confidentiality)[3]
    assert message == b"\x01\0\0\0"
