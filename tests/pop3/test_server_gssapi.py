"""AUTH GSSAPI in the core: steps that somebody else takes, and what is made of a client that breaks off."""

from __future__ import annotations

import base64

import pytest

from popproxy.errors import LocalProtocolError
from popproxy.pop3.offer import Offer
from popproxy.pop3.server import GSSAPI_LINE_LIMIT, SASL_LINE_LIMIT, ServerConnection
from popproxy.pop3.server_events import CredentialOffered, ExchangeBroken, GssStepNeeded
from popproxy.sasl.credentials import GssapiCredential, Layer
from popproxy.sasl.gssapi import MAX_TOKEN, GssapiExchange, LayerOffer
from tests.peers.gss_double import TransparentContext

ALL = LayerOffer(Layer.NONE | Layer.INTEGRITY | Layer.CONFIDENTIALITY, 65536)


def connection() -> ServerConnection:
    core = ServerConnection(Offer(passwords=False, mechanisms={"GSSAPI": lambda: GssapiExchange(ALL)}))
    core.receive_data(b"")
    return core


def b64(octets: bytes) -> bytes:
    return base64.b64encode(octets) + b"\r\n"


def established(answer: bytes | None) -> TransparentContext:
    context = TransparentContext([answer])
    context.step(b"ticket")
    return context


def at_choice() -> tuple[ServerConnection, TransparentContext]:
    core, client = connection(), TransparentContext()
    core.receive_data(b"AUTH GSSAPI " + b64(b"ticket"))
    assert core.events_received() == [GssStepNeeded(b"ticket")]
    core.sasl_step_done(established(None), None)
    challenge = core.data_to_send()
    assert challenge.startswith(b"+ ")
    client.unwrap(base64.b64decode(challenge[2:]))
    return core, client


def test_a_whole_exchange() -> None:
    core, client = at_choice()
    core.receive_data(b64(client.wrap(b"\x01\0\0\0alice", confidential=False)))
    (event,) = core.events_received()
    assert isinstance(event, CredentialOffered)
    assert isinstance(event.credential, GssapiCredential)
    assert event.credential.authzid == "alice"


def test_mechanism_is_announced_without_passwords() -> None:
    core = connection()
    core.receive_data(b"CAPA\r\n")
    capa = core.data_to_send()
    assert b"\r\nSASL GSSAPI\r\n" in capa
    assert b"\r\nUSER\r\n" not in capa


@pytest.mark.parametrize("behind", [b"*\r\n", b"QUIT\r\n", b64(b"more")])
def test_what_comes_during_a_step_waits_for_it(behind: bytes) -> None:
    core = connection()
    core.receive_data(b"AUTH GSSAPI " + b64(b"ticket") + behind)
    assert core.events_received() == [GssStepNeeded(b"ticket")]
    assert core.data_to_send() == b""
    core.sasl_step_done(established(b"answer"), b"answer")
    assert core.data_to_send().startswith(b"+ " + b64(b"answer") + b"-ERR ")


def test_refused_ticket_ends_the_exchange() -> None:
    core = connection()
    core.receive_data(b"AUTH GSSAPI " + b64(b"ticket"))
    core.login_failed("authentication failed", "AUTH")
    assert core.data_to_send() == b"-ERR [AUTH] authentication failed\r\n"
    core.receive_data(b"NOOP\r\n")
    assert core.data_to_send() == b"+OK\r\n"
    with pytest.raises(LocalProtocolError):
        core.sasl_step_done(TransparentContext(), None)


def test_nonsense_behind_a_good_ticket_is_told_with_the_principal() -> None:
    core, client = at_choice()
    core.events_received()
    core.receive_data(b64(client.wrap(b"\x07\0\0\0", confidential=False)))
    assert core.events_received() == [ExchangeBroken(client.initiator)]
    assert core.data_to_send().startswith(b"-ERR ")


@pytest.mark.parametrize(
    "lines",
    [
        b"AUTH GSSAPI\r\nnot base64!\r\n",
        b"AUTH GSSAPI not base64!\r\n",
        b"AUTH GSSAPI\r\n\r\n",
        b"AUTH GSSAPI\r\n" + b"t" * (GSSAPI_LINE_LIMIT + 1) + b"\r\n",
    ],
    ids=["response", "initial-response", "empty", "line-too-long"],
)
def test_nonsense_for_a_ticket_is_told_without_a_principal(lines: bytes) -> None:
    core = connection()
    core.receive_data(lines)
    assert core.events_received() == [ExchangeBroken("")]
    assert b"-ERR " in core.data_to_send()


def test_an_exchange_that_the_client_cancels_is_not_broken() -> None:
    core = connection()
    core.receive_data(b"AUTH GSSAPI\r\n*\r\n")
    assert core.events_received() == []
    assert core.data_to_send().startswith(b"+ \r\n-ERR ")


def test_a_ticket_of_64_kib_is_taken_and_no_larger_one() -> None:
    core = connection()
    core.receive_data(b"AUTH GSSAPI " + b64(b"t" * MAX_TOKEN))
    assert core.events_received() == [GssStepNeeded(b"t" * MAX_TOKEN)]
    core = connection()
    core.receive_data(b"AUTH GSSAPI " + b64(b"t" * (MAX_TOKEN + 1)))
    assert core.events_received() == [ExchangeBroken("")]
    assert core.data_to_send().startswith(b"-ERR ")
    assert GSSAPI_LINE_LIMIT > SASL_LINE_LIMIT


def test_where_it_is_not_offered_lines_are_short() -> None:
    core = ServerConnection(Offer(passwords=True))
    core.receive_data(b"AUTH GSSAPI " + b64(b"t" * SASL_LINE_LIMIT))
    assert core.data_to_send() == b"-ERR line too long\r\n"
