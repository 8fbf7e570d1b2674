"""SCRAM: the examples of the RFCs, two other implementations as clients, every downgrade, and any octets."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scramp import ScramClient

from popproxy.errors import LocalProtocolError
from popproxy.sasl.credentials import ScramCredential
from popproxy.sasl.mechanism import Challenge, NeedVerifier, SaslError, Verify
from popproxy.sasl.scram import ScramExchange
from popproxy.sasl.scram_verifier import ScramVerifier, make_verifier, scheme_of
from popproxy.types import AuthFailure, Mechanism, Secret
from tests.peers.gnu_sasl import GnuSaslClient, GnuSaslError
from tests.peers.scram_client import HandMadeClient

SHA_1, SHA_256 = Mechanism.SCRAM_SHA_1, Mechanism.SCRAM_SHA_256
SHA_1_PLUS, SHA_256_PLUS = Mechanism.SCRAM_SHA_1_PLUS, Mechanism.SCRAM_SHA_256_PLUS
MECHANISMS = (SHA_1, SHA_1_PLUS, SHA_256, SHA_256_PLUS)
BINDINGS = {"tls-server-end-point": b"\x01" * 32, "tls-unique": b"\x02" * 12}
SALT = b"0123456789abcdef"
NONCE = "servernonce"


def verifier(mechanism: Mechanism = SHA_256, password: bytes = b"pencil", salt: bytes = SALT) -> ScramVerifier:
    return make_verifier(scheme_of(mechanism), password, salt, 4096)


def asked(exchange: ScramExchange, client_first: bytes) -> NeedVerifier:
    step = exchange.step(client_first)
    assert isinstance(step, NeedVerifier)
    return step


def challenged(step: object) -> bytes:
    assert isinstance(step, Challenge)
    return step.data


def judged(step: object) -> ScramCredential:
    assert isinstance(step, Verify)
    assert isinstance(step.credential, ScramCredential)
    return step.credential


def finished(
    exchange: ScramExchange, client: HandMadeClient, known: ScramVerifier | None = None, **changes: bytes
) -> object:
    """The step behind the client's last message."""
    asked(exchange, client.first)
    server_first = challenged(exchange.verifier_found(known or verifier(client.mechanism)))
    return exchange.step(client.final(server_first, **changes))


# ---- the examples ----

EXAMPLES = {
    SHA_1: (  # RFC 5802 section 5
        "3rfcNHYJY1ZVvWVs7j",
        "QSXCR+Q6sek8bf92",
        "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
        "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
        "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
    ),
    SHA_256: (  # RFC 7677 section 3
        "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        "W22ZaJ0SNY7soEsUEjb6gQ==",
        "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    ),
}


@pytest.mark.parametrize("mechanism", EXAMPLES)
def test_the_example_of_the_rfc(mechanism: Mechanism) -> None:
    nonce, salt, client_first, server_first, client_final, server_final = EXAMPLES[mechanism]
    exchange = ScramExchange(mechanism, nonce)
    assert asked(exchange, client_first.encode()) == NeedVerifier(mechanism, "user")
    known = verifier(mechanism, salt=base64.b64decode(salt))
    assert challenged(exchange.verifier_found(known)) == server_first.encode()
    assert challenged(exchange.step(client_final.encode())) == server_final.encode()
    assert judged(exchange.step(b"")) == ScramCredential(mechanism, "user")


def test_without_an_initial_response_an_empty_challenge_asks() -> None:
    exchange = ScramExchange(SHA_256, NONCE)
    assert exchange.step(None) == Challenge(b"")
    asked(exchange, b"n,,n=user,r=abc")


# ---- other implementations ----


def binding_of(mechanism: Mechanism, name: str = "tls-server-end-point") -> tuple[str, bytes] | None:
    return (name, BINDINGS[name]) if mechanism.endswith("PLUS") else None


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(
    ("user", "password"), [("user", "pencil"), ("al,ice=", "pen cil"), ("b\u00fccher", "pa\u0308ss\u2168")]
)
def test_scramp_logs_in(mechanism: Mechanism, user: str, password: str) -> None:
    client = ScramClient([mechanism.value], user, password, channel_binding=binding_of(mechanism))
    exchange = ScramExchange(mechanism, NONCE, BINDINGS)
    assert asked(exchange, client.get_client_first().encode()).authcid == user
    known = verifier(mechanism, password.encode())
    client.set_server_first(challenged(exchange.verifier_found(known)).decode())
    client.set_server_final(challenged(exchange.step(client.get_client_final().encode())).decode())
    assert judged(exchange.step(b"")).fault is AuthFailure.NONE


def test_scramp_with_a_wrong_password_does_not() -> None:
    client = ScramClient(["SCRAM-SHA-256"], "user", "pencil2")
    exchange = ScramExchange(SHA_256, NONCE)
    asked(exchange, client.get_client_first().encode())
    client.set_server_first(challenged(exchange.verifier_found(verifier())).decode())
    refused = exchange.step(client.get_client_final().encode())
    assert judged(refused) == ScramCredential(SHA_256, "user", fault=AuthFailure.BAD_CREDENTIALS)


@pytest.fixture
def gnu_client(request: pytest.FixtureRequest) -> Iterator[GnuSaslClient]:
    mechanism, properties = request.param
    client = GnuSaslClient(mechanism, **properties)
    yield client
    client.close()


GNU_CLIENTS = [
    (SHA_1, {"authid": "user", "password": "pencil"}),
    (SHA_256, {"authid": "al,ice=", "password": "pa\u0308ss\u2168", "authzid": "somebody=,"}),
    (SHA_1_PLUS, {"authid": "user", "password": "pencil", "tls_unique": BINDINGS["tls-unique"]}),
    (SHA_256_PLUS, {"authid": "user", "password": "pencil", "tls_unique": BINDINGS["tls-unique"]}),
]


@pytest.mark.real
@pytest.mark.parametrize("gnu_client", GNU_CLIENTS, indirect=True, ids=[str(client[0]) for client in GNU_CLIENTS])
def test_gnu_sasl_logs_in(gnu_client: GnuSaslClient, request: pytest.FixtureRequest) -> None:
    mechanism, properties = request.node.callspec.params["gnu_client"]
    exchange = ScramExchange(mechanism, NONCE, BINDINGS)
    asked(exchange, gnu_client.step(b""))
    known = verifier(mechanism, properties["password"].encode())
    final = gnu_client.step(challenged(exchange.verifier_found(known)))
    assert gnu_client.step(challenged(exchange.step(final))) == b""
    assert gnu_client.done
    credential = judged(exchange.step(b""))
    assert credential == ScramCredential(mechanism, properties["authid"], properties.get("authzid", ""))


@pytest.mark.real
@pytest.mark.parametrize("gnu_client", GNU_CLIENTS[:1], indirect=True)
def test_gnu_sasl_notices_a_server_that_does_not_know_the_verifier(gnu_client: GnuSaslClient) -> None:
    exchange = ScramExchange(SHA_1, NONCE)
    asked(exchange, gnu_client.step(b""))
    known = verifier(SHA_1)
    impostor = ScramVerifier(SHA_1, known.salt, 4096, known.stored_key, Secret(b"x" * 20))
    final = gnu_client.step(challenged(exchange.verifier_found(impostor)))
    with pytest.raises(GnuSaslError):
        gnu_client.step(challenged(exchange.step(final)))


# ---- who is it ----


@pytest.mark.parametrize(
    ("raw", "name"),
    [(b"user", "user"), (b"a=2Cb=3Dc", "a,b=c"), ("\u2168".encode(), "IX"), ("a\u00adb".encode(), "ab"), (b"A", "A")],
)
def test_names_are_decoded_and_prepared(raw: bytes, name: str) -> None:
    assert asked(ScramExchange(SHA_256, NONCE), HandMadeClient(user=raw).first).authcid == name


@pytest.mark.parametrize("raw", [b"a=2cb", b"a=", b"a=3", b"a==3D", b"a\x07", "\u06271".encode()])
def test_a_name_that_is_badly_encoded_is_refused_in_the_words_of_the_rfc(raw: bytes) -> None:
    with pytest.raises(SaslError) as caught:
        ScramExchange(SHA_256, NONCE).step(HandMadeClient(user=raw).first)
    assert caught.value.refusal == b"e=invalid-username-encoding"


def test_the_authzid_is_in_the_credential() -> None:
    exchange, client = ScramExchange(SHA_256, NONCE), HandMadeClient(header=b"n,a=some=2Cbody,")
    challenged(finished(exchange, client))
    assert judged(exchange.step(b"")) == ScramCredential(SHA_256, "user", "some,body")


@pytest.mark.parametrize("genuine", [True, False])
def test_a_made_up_verifier_is_answered_like_a_wrong_password(genuine: bool) -> None:
    known = verifier(password=b"another")
    made_up = ScramVerifier(SHA_256, known.salt, known.iterations, known.stored_key, known.server_key, genuine)
    exchange = ScramExchange(SHA_256, NONCE)
    refused = finished(exchange, HandMadeClient(), made_up)
    assert refused == Verify(ScramCredential(SHA_256, "user", fault=AuthFailure.BAD_CREDENTIALS), None)


def test_a_made_up_verifier_verifies_nothing_even_if_its_password_is_found() -> None:
    known = verifier()
    made_up = ScramVerifier(SHA_256, known.salt, known.iterations, known.stored_key, known.server_key, genuine=False)
    assert (
        judged(finished(ScramExchange(SHA_256, NONCE), HandMadeClient(), made_up)).fault is AuthFailure.BAD_CREDENTIALS
    )
    assert not made_up.matches(b"pencil")


# ---- the channel ----


@pytest.mark.parametrize("mechanism", [SHA_1_PLUS, SHA_256_PLUS])
@pytest.mark.parametrize("name", BINDINGS)
def test_a_bound_client_logs_in(mechanism: Mechanism, name: str) -> None:
    client = HandMadeClient(mechanism, f"p={name},,".encode())
    challenged(finished(ScramExchange(mechanism, NONCE, BINDINGS), client, data=BINDINGS[name]))


@pytest.mark.parametrize("data", [b"", b"\x01" * 31, b"\x03" * 32, BINDINGS["tls-unique"]])
def test_a_client_on_another_channel_is_refused(data: bytes) -> None:
    """As behind somebody who ends TLS and begins another one."""
    client = HandMadeClient(SHA_256_PLUS, b"p=tls-server-end-point,,")
    refused = finished(ScramExchange(SHA_256_PLUS, NONCE, BINDINGS), client, data=data)
    fault = ScramCredential(SHA_256_PLUS, "user", fault=AuthFailure.CHANNEL_BINDING)
    assert refused == Verify(fault, b"e=channel-bindings-dont-match")


@pytest.mark.parametrize("mechanism", [SHA_1, SHA_256])
def test_a_client_that_was_told_we_cannot_bind_is_refused(mechanism: Mechanism) -> None:
    """RFC 5802 section 6: y, although -PLUS was in our list."""
    step = ScramExchange(mechanism, NONCE, plus_offered=True).step(HandMadeClient(mechanism, b"y,,").first)
    fault = ScramCredential(mechanism, "user", fault=AuthFailure.CHANNEL_BINDING)
    assert step == Verify(fault, b"e=server-does-support-channel-binding")


def test_a_client_that_could_bind_may_come_where_we_cannot() -> None:
    challenged(finished(ScramExchange(SHA_256, NONCE), HandMadeClient(header=b"y,,")))


def test_a_client_that_cannot_bind_may_come_where_we_could() -> None:
    challenged(finished(ScramExchange(SHA_256, NONCE, plus_offered=True), HandMadeClient(header=b"n,,")))


@pytest.mark.parametrize(
    ("mechanism", "header", "error"),
    [
        (SHA_256_PLUS, b"n,,", b"e=other-error"),
        (SHA_256_PLUS, b"y,,", b"e=other-error"),
        (SHA_256, b"p=tls-server-end-point,,", b"e=channel-binding-not-supported"),
        (SHA_256_PLUS, b"p=tls-exporter,,", b"e=unsupported-channel-binding-type"),
        (SHA_256_PLUS, b"p=,,", b"e=other-error"),
        (SHA_256_PLUS, b"p=a b,,", b"e=other-error"),
    ],
)
def test_a_channel_binding_that_does_not_fit_is_refused(mechanism: Mechanism, header: bytes, error: bytes) -> None:
    with pytest.raises(SaslError) as caught:
        ScramExchange(mechanism, NONCE, BINDINGS).step(HandMadeClient(mechanism, header).first)
    assert caught.value.refusal == error


# ---- what is malformed ----


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (b"", b"e=other-error"),
        (b"n", b"e=other-error"),
        (b"n,,", b"e=other-error"),
        (b"x,,n=user,r=abc", b"e=other-error"),
        (b"n,n=user,r=abc", b"e=other-error"),
        (b"n,a=,n=user,r=abc", b"e=other-error"),
        (b"n,a=b=2X,n=user,r=abc", b"e=invalid-username-encoding"),
        (b"n,a=\xff,n=user,r=abc", b"e=invalid-encoding"),
        (b"n,,n=\xff,r=abc", b"e=invalid-encoding"),
        (b"n,,n=,r=abc", b"e=other-error"),
        (b"n,,n=user", b"e=other-error"),
        (b"n,,n=user,r=", b"e=other-error"),
        (b"n,,r=abc,n=user", b"e=other-error"),
        (b"n,,n=user,r=a b", b"e=other-error"),
        (b"n,,n=user,r=a\x7f", b"e=other-error"),
        (b"n,,n=user,r=" + b"a" * 513, b"e=other-error"),
        (b"n,,n=user,r=abc,", b"e=other-error"),
        (b"n,,n=user,r=abc,x", b"e=other-error"),
        (b"n,,m=ext,n=user,r=abc", b"e=extensions-not-supported"),
        (b"n,,n=user,r=abc" + b",x=y" * 3000, b"e=other-error"),
    ],
)
def test_a_malformed_first_message_is_refused_in_the_words_of_the_rfc(message: bytes, error: bytes) -> None:
    with pytest.raises(SaslError) as caught:
        ScramExchange(SHA_256, NONCE).step(message)
    assert caught.value.refusal == error
    assert "user" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"nonce": b"clientnonce"}, b"e=other-error"),
        ({"nonce": b"clientnonceservernoncex"}, b"e=other-error"),
        ({"channel": b"b=ws"}, b"e=invalid-encoding"),
        ({"proof": b"!"}, b"e=invalid-encoding"),
        ({"proof": b""}, b"e=invalid-proof"),
        ({"proof": base64.b64encode(b"x" * 31)}, b"e=invalid-proof"),
        ({"extra": b",x"}, b"e=other-error"),
    ],
)
def test_a_malformed_last_message_is_refused_in_the_words_of_the_rfc(changes: dict[str, bytes], error: bytes) -> None:
    with pytest.raises(SaslError) as caught:
        finished(ScramExchange(SHA_256, NONCE), HandMadeClient(), None, **changes)
    assert caught.value.refusal == error


def test_extensions_that_may_be_ignored_are() -> None:
    exchange, client = ScramExchange(SHA_256, NONCE), HandMadeClient()
    client.bare += b",x=anything,y=else"
    challenged(finished(exchange, client, extra=b",z=more"))


def test_a_header_that_was_changed_on_its_way_is_noticed() -> None:
    exchange, client = ScramExchange(SHA_256, NONCE), HandMadeClient(header=b"n,a=bob,")
    refused = finished(exchange, client, channel=base64.b64encode(b"n,,"))
    assert judged(refused).fault is AuthFailure.CHANNEL_BINDING


def test_something_behind_our_signature_is_malformed() -> None:
    exchange = ScramExchange(SHA_256, NONCE)
    challenged(finished(exchange, HandMadeClient()))
    assert judged(exchange.step(b"more")).fault is AuthFailure.MALFORMED


def test_steps_out_of_order_are_bugs_of_ours() -> None:
    exchange = ScramExchange(SHA_256, NONCE)
    with pytest.raises(LocalProtocolError):
        exchange.verifier_found(verifier())
    asked(exchange, HandMadeClient().first)
    with pytest.raises(LocalProtocolError):
        exchange.step(b"")


PIECES = st.lists(
    st.sampled_from(
        [b"n,", b"y,", b"p=tls-unique,", b",", b"a=", b"n=", b"r=", b"c=biws", b"p=", b"m=", b"x", b"=2C", b"\0"]
    )
)


@given(st.one_of(st.binary(max_size=300), PIECES.map(b"".join)), st.sampled_from(MECHANISMS))
def test_any_octets_as_the_first_message(message: bytes, mechanism: Mechanism) -> None:
    with contextlib.suppress(SaslError):
        step = ScramExchange(mechanism, NONCE, BINDINGS, plus_offered=True).step(message)
        assert isinstance(step, NeedVerifier | Verify)


KNOWN = verifier()


@given(st.one_of(st.binary(max_size=300), PIECES.map(b"".join)))
def test_any_octets_as_the_last_message(message: bytes) -> None:
    exchange = ScramExchange(SHA_256, NONCE)
    asked(exchange, HandMadeClient().first)
    exchange.verifier_found(KNOWN)
    try:
        fault = judged(exchange.step(message)).fault
    except SaslError:
        return
    assert fault is not AuthFailure.NONE


@given(st.integers(0, 200), st.integers(1, 255))
def test_no_changed_octet_is_accepted(place: int, flip: int) -> None:
    exchange, client = ScramExchange(SHA_256, NONCE), HandMadeClient()
    asked(exchange, client.first)
    final = bytearray(client.final(challenged(exchange.verifier_found(KNOWN))))
    final[place % len(final)] ^= flip
    try:
        step = exchange.step(bytes(final))
    except SaslError:
        return
    assert judged(step).fault is not AuthFailure.NONE
