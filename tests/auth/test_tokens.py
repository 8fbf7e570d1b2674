"""Bearer tokens against a real issuer: good ones, forged ones, and an issuer that is down, slow or lying."""

from __future__ import annotations

import base64
import hmac
import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from popproxy.app.oauth import IssuerSecrets
from popproxy.app.tokens import token_prover
from popproxy.auth.jwks import RETRY, UNKNOWN, KeySet
from popproxy.auth.names import vet_name
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Rejected
from popproxy.auth.tokens import TokenProver
from popproxy.config.model_oauth import OAuth
from popproxy.errors import Unavailable
from popproxy.net.json_http import JsonHttp
from popproxy.sasl.credentials import TokenCredential
from popproxy.types import AuthFailure, Mechanism, Secret
from tests.peers.certs import Authority
from tests.peers.issuer import Issuer, Key, Mood, issuing

SECONDS = 20.0
"""Deadline of questions: the machine may be busy."""


@pytest.fixture
def issuer(authority: Authority) -> Iterator[Issuer]:
    with issuing(authority) as it:
        yield it


def vet(name: str) -> str:
    return vet_name(name, None, "fold")


def secrets_of(issuer: Issuer) -> IssuerSecrets:
    return IssuerSecrets(ssl.create_default_context(cafile=str(issuer.authority.ca)), Secret(issuer.secret))


def prover(issuer: Issuer, *others: Issuer, leeway: str = "0s", **changes: Any) -> TokenProver:
    entries = [{**one.section(), **changes} for one in (issuer, *others)]
    section = OAuth.model_validate({"issuers": entries, "deadline": f"{SECONDS}s", "leeway": leeway})
    return token_prover(section, [secrets_of(one) for one in (issuer, *others)], vet)


async def judged(how: TokenProver, token: str, user: str = "") -> AuthResult:
    return await how.prove(TokenCredential(Mechanism.OAUTHBEARER, Secret(token), user))


def who(result: AuthResult) -> str:
    assert isinstance(result, Accepted), result
    return result.identity.user


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "PS256", "EdDSA"])
async def test_token_signed_by_the_issuer(authority: Authority, algorithm: str) -> None:
    with issuing(authority, Key("one", algorithm), Key("two", "ES256")) as issuer:
        how = prover(issuer)
        assert who(await judged(how, issuer.token("Alice@Example.com"), "alice@example.com")) == "alice@example.com"
        assert who(await judged(how, issuer.token("bob"))) == "bob"
        assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]


def _forged(issuer: Issuer, header: dict[str, Any], signature: Callable[[bytes], bytes]) -> str:
    """A token with the claims of a good one, and any header and signature."""
    claims = issuer.token().split(".")[1]
    text = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=") + b"." + claims.encode()
    return (text + b"." + base64.urlsafe_b64encode(signature(text)).rstrip(b"=")).decode()


def _unsigned(issuer: Issuer) -> str:
    return _forged(issuer, {"alg": "none", "kid": "one"}, lambda _text: b"")


def _hmac_with_public_key(issuer: Issuer) -> str:
    """The old confusion: the public key, which everybody knows, taken for a shared secret."""
    pem = issuer.keys[0].private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return _forged(issuer, {"alg": "HS256", "kid": "one"}, lambda text: hmac.digest(pem, text, "sha256"))


def _own_key(issuer: Issuer) -> str:
    """A key in the header, which proves itself."""
    own = Key("own")
    header = {"kid": "own", "jwk": own.public(), "jku": f"{issuer.url}/keys"}
    return jwt.encode(jwt.decode(issuer.token(), options=_NOT_VERIFIED), own.private, "ES256", headers=header)


def _critical(issuer: Issuer) -> str:
    """Rightly signed, with an extension that must be understood (RFC 7515 section 4.1.11)."""
    claims = jwt.decode(issuer.token(), options=_NOT_VERIFIED)
    header = {"kid": "one", "crit": ["http://example.com/new"], "http://example.com/new": True}
    return jwt.encode(claims, issuer.keys[0].private, "ES256", headers=header)


_NOT_VERIFIED: Any = {"verify_signature": False}
FORGED: dict[str, tuple[Callable[[Issuer], str], AuthFailure]] = {
    "alg none": (_unsigned, AuthFailure.TOKEN_INVALID),
    "HS256 with the public key": (_hmac_with_public_key, AuthFailure.TOKEN_INVALID),
    "a key of its own": (_own_key, AuthFailure.TOKEN_INVALID),
    "another key of the same name": (lambda it: it.token("alice", Key()), AuthFailure.TOKEN_INVALID),
    "an algorithm not allowed": (lambda it: it.token("alice", Key("one", "ES384")), AuthFailure.TOKEN_INVALID),
    "an octet changed": (lambda it: it.token()[:-8] + "AAAAAAAA", AuthFailure.TOKEN_INVALID),
    "a critical extension": (_critical, AuthFailure.TOKEN_INVALID),
    "a part of the issuer's name": (lambda it: it.token(iss=it.name[:-2]), AuthFailure.TOKEN_INVALID),
    "another issuer": (lambda it: it.token(iss="https://elsewhere.example"), AuthFailure.TOKEN_INVALID),
    "no issuer": (lambda it: it.token(iss=None), AuthFailure.TOKEN_INVALID),
    "another audience": (lambda it: it.token(aud="wiki"), AuthFailure.TOKEN_INVALID),
    "no audience": (lambda it: it.token(aud=None), AuthFailure.TOKEN_INVALID),
    "no end": (lambda it: it.token(exp=None), AuthFailure.TOKEN_INVALID),
    "an end that is no time": (lambda it: it.token(exp="tomorrow"), AuthFailure.TOKEN_INVALID),
    "expired": (lambda it: it.token(exp=int(time.time()) - 5), AuthFailure.TOKEN_EXPIRED),
    "not valid yet": (lambda it: it.token(nbf=int(time.time()) + 900), AuthFailure.TOKEN_EXPIRED),
    "nobody's": (lambda it: it.token(email=None), AuthFailure.NOT_MAPPED),
    "a list of users": (lambda it: it.token(email=["alice", "bob"]), AuthFailure.NOT_MAPPED),
    "an address that nobody has verified": (lambda it: it.token(email_verified=False), AuthFailure.NOT_MAPPED),
    "a name with a line end": (lambda it: it.token("alice\r\nDELE 1"), AuthFailure.CONTROL_CHARACTER),
    "no token": (lambda _it: "not.a.token", AuthFailure.TOKEN_INVALID),
    "opaque": (lambda _it: "2YotnFZFEjr1zCsicMWpAA", AuthFailure.TOKEN_INVALID),
}


@pytest.mark.parametrize("kind", FORGED)
async def test_token_that_proves_nothing(issuer: Issuer, kind: str) -> None:
    make, reason = FORGED[kind]
    how = prover(issuer)
    assert await judged(how, make(issuer)) == Rejected(reason)
    assert who(await judged(how, issuer.token())) == "alice"


async def test_token_of_another_user_or_without_scope(issuer: Issuer) -> None:
    how = prover(issuer, scopes=["pop", "mail"])
    assert await judged(how, issuer.token()) == Rejected(AuthFailure.TOKEN_SCOPE)
    assert await judged(how, issuer.token(scope=None, scp=["pop", "mail"]), "bob") == Rejected(AuthFailure.AUTHZID)
    assert await judged(how, issuer.token(scope="mail pop"), "a\0b") == Rejected(AuthFailure.CONTROL_CHARACTER)
    assert who(await judged(how, issuer.token(scope="mail pop x"), "ALICE")) == "alice"


async def test_clocks_may_differ_by_the_leeway(issuer: Issuer) -> None:
    assert who(await judged(prover(issuer, leeway="60s"), issuer.token(exp=int(time.time()) - 30))) == "alice"
    late = await judged(prover(issuer, leeway="60s"), issuer.token(exp=int(time.time()) - 90))
    assert late == Rejected(AuthFailure.TOKEN_EXPIRED)


async def test_issuer_speaks_for_its_domains_only(issuer: Issuer) -> None:
    how = prover(issuer, domains=["Example.com"])
    assert who(await judged(how, issuer.token("alice@example.COM"))) == "alice@example.com"
    for stranger in ("alice", "alice@example.org", "alice@example.com@example.org", "example.com"):
        assert await judged(how, issuer.token(stranger)) == Rejected(AuthFailure.NOT_MAPPED)


async def test_an_issuer_cannot_sign_for_another(authority: Authority, issuer: Issuer) -> None:
    with issuing(authority) as other:
        how = prover(issuer, other)
        assert who(await judged(how, other.token("bob"))) == "bob"
        assert await judged(how, other.token("bob", iss=issuer.name)) == Rejected(AuthFailure.TOKEN_INVALID)


@pytest.mark.parametrize(
    ("mood", "why"),
    [
        ("slow", "does not answer in time"),
        ("huge", "too long"),
        pytest.param("endless", "does not answer in time", marks=pytest.mark.long),
        ("elsewhere", "status 302"),
        ("broken", "status 500"),
        ("garbage", "not JSON"),
        ("list", "no JSON object"),
        ("bomb", "not JSON"),
    ],
)
async def test_issuer_that_gives_no_keys_is_no_refusal(
    issuer: Issuer, mood: Mood, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.mood = mood
    monkeypatch.setitem(globals(), "SECONDS", 0.3 if mood in ("slow", "endless") else SECONDS)
    result = await judged(prover(issuer), issuer.token())
    assert isinstance(result, CannotTell)
    assert why in result.detail


async def test_issuer_that_is_down_or_shows_another_certificate(issuer: Issuer) -> None:
    section = OAuth.model_validate({"issuers": [{**issuer.section(), "ca": None}]})
    stranger = token_prover(section, [IssuerSecrets(ssl.create_default_context())], vet)
    result = await judged(stranger, issuer.token())
    assert isinstance(result, CannotTell)
    assert "certificate is refused" in result.detail
    token = issuer.token()
    issuer.stop()
    assert isinstance(await judged(prover(issuer), token), CannotTell)


async def test_discovery_document_of_another_issuer(issuer: Issuer) -> None:
    issuer.name = "https://elsewhere.example"
    section = OAuth.model_validate({"issuers": [{**issuer.section(), "issuer": issuer.url}]})
    result = await judged(token_prover(section, [secrets_of(issuer)], vet), issuer.token(iss=issuer.url))
    assert isinstance(result, CannotTell)
    assert "of another issuer" in result.detail


@pytest.mark.parametrize("place", ["http://localhost/keys", "https://me:pw@localhost/", "https://a/\x1b[2J", 7, None])
async def test_discovery_document_that_leads_astray(issuer: Issuer, place: Any) -> None:
    issuer.document = lambda path, form: {"issuer": issuer.name, "jwks_uri": place}  # type: ignore[method-assign]
    result = await judged(prover(issuer), issuer.token())
    assert isinstance(result, CannotTell)
    assert "names no jwks_uri with https" in result.detail
    assert len(issuer.asked) == 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def key_set(issuer: Issuer, clock: Clock) -> KeySet:
    http = JsonHttp(secrets_of(issuer).context, SECONDS)
    return KeySet(http, issuer.name, f"{issuer.url}/keys", ["ES256", "RS256"], refresh=3600, keep=86400, clock=clock)


async def test_new_key_is_fetched_when_a_token_names_it_and_made_up_ones_cause_no_flood(issuer: Issuer) -> None:
    clock = Clock()
    keys = key_set(issuer, clock)
    assert await keys.find("one", "ES256") is not None
    issuer.keys.append(Key("two"))
    assert await keys.find("two", "ES256") is None  # it has been asked just now
    clock.now += UNKNOWN + 1
    assert await keys.find("two", "ES256") is not None
    for number in range(50):
        assert await keys.find(f"made-up-{number}", "ES256") is None
    assert len(issuer.asked) == 2


async def test_keys_are_kept_while_the_issuer_is_down_and_fetched_when_it_is_back(issuer: Issuer) -> None:
    clock = Clock()
    keys = key_set(issuer, clock)
    first = await keys.find("one", "ES256")
    assert first is not None
    issuer.stop()
    clock.now += 3601
    assert await keys.find("one", "ES256") is not None
    with pytest.raises(Unavailable):
        await keys.fetch()
    with pytest.raises(Unavailable):  # there may be one by now
        await keys.find("two", "ES256")
    clock.now += 86400
    with pytest.raises(Unavailable):
        await keys.find("one", "ES256")
    issuer.start()
    issuer.keys[:] = [Key("two")]
    with pytest.raises(Unavailable):  # it is not asked again so soon
        await keys.find("two", "ES256")
    clock.now += RETRY + 1
    assert await keys.find("two", "ES256") is not None
    assert await keys.find("one", "ES256") is None


async def test_keys_that_do_not_fit_are_none(issuer: Issuer) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    private = {**Key("private").public(), "d": "AAAA"}
    odd = [{"kty": "oct", "kid": "secret", "k": "AAAA"}, {"kty": "RSA", "kid": "huge", "e": "AQAB", "n": "A" * 9000}]
    published = [
        Key("weak", "RS256", weak).public(), {**Key("encrypts").public(), "use": "enc"}, private, *odd, "no key",
        {**Key("other curve").public(), "crv": "P-384"}, {**Key("alg").public(), "alg": "ES384"},
        {**Key("wrapping").public(), "key_ops": ["wrapKey"]}, Key("good").public(),
    ]  # fmt: skip
    issuer.document = lambda path, form: {"keys": published}  # type: ignore[method-assign]
    keys = key_set(issuer, Clock())
    assert await keys.find("good", "ES256") is not None
    for kid in ("encrypts", "private", "secret", "other curve", "alg", "wrapping"):
        assert await keys.find(kid, "ES256") is None
    assert await keys.find("weak", "RS256") is None
    assert await keys.find("huge", "RS256") is None


async def test_without_a_key_id_the_only_key_is_meant(issuer: Issuer) -> None:
    assert await key_set(issuer, Clock()).find(None, "ES256") is not None
    issuer.keys.append(Key("two"))
    assert await key_set(issuer, Clock()).find(None, "ES256") is None


# ---- introspection ----


def asking(issuer: Issuer, directory: Path, **more: Any) -> TokenProver:
    entry = issuer.introspecting(directory, **more)
    section = OAuth.model_validate({"issuers": [entry], "deadline": f"{SECONDS}s", "leeway": "0s"})
    return token_prover(section, [secrets_of(issuer)], vet)


async def test_issuer_is_asked_about_an_opaque_token_once(issuer: Issuer, tmp_path: Path) -> None:
    issuer.known["opaque"] = {"email": "alice", "aud": ["popproxy", "wiki"]}
    how = asking(issuer, tmp_path)
    for _ in range(3):
        assert who(await judged(how, "opaque", "alice")) == "alice"
        assert await judged(how, "opaque", "bob") == Rejected(AuthFailure.AUTHZID)
    assert issuer.asked == ["/introspect"]
    assert await judged(how, "revoked") == Rejected(AuthFailure.TOKEN_INVALID)
    forgetful = asking(issuer, tmp_path, cache="0s")
    assert who(await judged(forgetful, "opaque")) == "alice"
    del issuer.known["opaque"]
    assert await judged(forgetful, "opaque") == Rejected(AuthFailure.TOKEN_INVALID)
    assert who(await judged(how, "opaque")) == "alice"  # for a minute


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": "wiki"}, AuthFailure.TOKEN_INVALID),
        ({}, AuthFailure.TOKEN_INVALID),
        ({"aud": "popproxy", "iss": "https://elsewhere.example"}, AuthFailure.TOKEN_INVALID),
        ({"aud": "popproxy", "exp": 5}, AuthFailure.TOKEN_EXPIRED),
        ({"aud": "popproxy", "exp": True}, AuthFailure.TOKEN_INVALID),
        ({"aud": "popproxy", "exp": 10**400}, AuthFailure.TOKEN_INVALID),
        ({"aud": "popproxy", "nbf": 9999999999}, AuthFailure.TOKEN_EXPIRED),
        ({"aud": "popproxy", "active": "true"}, AuthFailure.TOKEN_INVALID),
        ({"aud": "popproxy", "email": ""}, AuthFailure.NOT_MAPPED),
    ],
)
async def test_what_the_issuer_says_is_looked_at(
    issuer: Issuer, tmp_path: Path, claims: dict[str, Any], reason: AuthFailure
) -> None:
    issuer.known["opaque"] = {"email": "alice", **claims}
    assert await judged(asking(issuer, tmp_path), "opaque") == Rejected(reason)


async def test_issuer_that_cannot_be_asked_or_does_not_know_us(issuer: Issuer, tmp_path: Path) -> None:
    issuer.known["opaque"] = {"email": "alice", "aud": "popproxy"}
    how = asking(issuer, tmp_path)
    right, issuer.secret = issuer.secret, "changed"
    result = await judged(how, "opaque")
    assert isinstance(result, CannotTell)
    assert "status 401" in result.detail
    assert right not in result.detail
    issuer.secret = right
    issuer.stop()
    assert isinstance(await judged(how, "opaque"), CannotTell)


TEXT = st.text("AZaz09-_.=", max_size=300)


@given(st.one_of(TEXT, st.lists(TEXT, min_size=3, max_size=3).map(".".join)))
def test_any_text_is_judged(text: str) -> None:
    """Without a question to anybody: it is of no issuer."""
    section = OAuth.model_validate({"issuers": [{"issuer": "https://a.example", "audience": ["a"]}]})
    how = token_prover(section, [IssuerSecrets(_CONTEXT)], vet)
    verdict = how.prove(TokenCredential(Mechanism.XOAUTH2, Secret(text), "alice"))
    with pytest.raises(StopIteration) as done:
        verdict.send(None)
    assert done.value.value == Rejected(AuthFailure.TOKEN_INVALID)


_CONTEXT = ssl.create_default_context()
