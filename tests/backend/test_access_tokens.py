"""Access tokens from a real HTTP server that tells the truth, is down, slow, or lies."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.backend.access_tokens import MARGIN, PAUSE, YOUNG, AccessTokens, NoAccessToken
from popproxy.config.model_backends import XOAuth2
from popproxy.errors import VaultError
from popproxy.net.json_http import MAX_ANSWER, JsonHttp
from popproxy.types import Secret
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.process import free_port
from tests.peers.token_endpoint import CLIENT, Said, TokenEndpoint, token_endpoint


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Site:
    """Tokens of a pool, and what they have told the rest of popproxy."""

    def __init__(self, endpoint: TokenEndpoint, ca: Path | None = None, **section: Any) -> None:
        self.endpoint = endpoint
        self.clock = Clock()
        self.counted: list[str] = []
        self.kept: list[tuple[str, Secret, Secret]] = []
        self.broken_vault = False
        config = {"endpoint": f"{endpoint.url}/token", "client_id": CLIENT, "client_secret": {"env": "X"}, **section}
        ask = JsonHttp(ssl.create_default_context(cafile=ca or endpoint.ca), 2.0).request_token
        self.tokens = AccessTokens(
            XOAuth2.model_validate(config), ask, Secret(endpoint.secret) if config["client_secret"] else None,
            keep=self._keep, count=self.counted.append, clock=self.clock,
        )  # fmt: skip

    async def _keep(self, user: str, before: Secret, token: Secret) -> None:
        if self.broken_vault:
            raise VaultError("the vault is broken")
        self.kept.append((user, before, token))

    async def own(self) -> Secret:
        return await self.tokens.own().token()


@pytest.fixture
def endpoint(authority: Authority, server_certificate: CertificateFiles) -> Iterator[TokenEndpoint]:
    with token_endpoint(server_certificate, authority.ca) as endpoint:
        yield endpoint


@pytest.mark.parametrize("how", ["basic", "form"])
async def test_client_proves_itself_as_configured(endpoint: TokenEndpoint, how: str) -> None:
    endpoint.secret = "canary+with: ü and %"
    site = Site(endpoint, client_auth=how, scope="mail pop")
    token = await site.own()
    assert token.reveal().decode() in endpoint.tokens
    (asked,) = endpoint.asked
    assert (asked.form["grant_type"], asked.form["scope"]) == ("client_credentials", "mail pop")
    assert (asked.basic is not None, "client_secret" in asked.form) == (how == "basic", how == "form")
    assert site.counted == ["ok"]


async def test_many_sessions_ask_once_and_again_shortly_before_the_end(endpoint: TokenEndpoint) -> None:
    site = Site(endpoint)
    first, *others = await asyncio.gather(*(site.own() for _ in range(50)))
    assert set(map(Secret.reveal, others)) == {first.reveal()}
    site.clock.now += 3600 - MARGIN - 1
    assert await site.own() == first
    assert len(endpoint.asked) == 1
    site.clock.now += 1
    assert await site.own() != first
    assert len(endpoint.asked) == 2


@pytest.mark.parametrize(
    ("lifetime", "good"), [("3599", 3539), (None, 270), (10, 9), (1e9, 86340), pytest.param(10**400, 86340, id="huge")]
)
async def test_how_long_a_token_is_good(endpoint: TokenEndpoint, lifetime: object, good: float) -> None:
    endpoint.lifetime = lifetime
    site = Site(endpoint)
    await site.own()
    site.clock.now += good - 0.5
    await site.own()
    assert len(endpoint.asked) == 1
    site.clock.now += 1
    await site.own()
    assert len(endpoint.asked) == 2


async def test_who_goes_away_leaves_the_others_their_token(endpoint: TokenEndpoint) -> None:
    site = Site(endpoint)
    waiting = [asyncio.create_task(site.own()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert (await waiting[1]) == (await waiting[2])
    assert waiting[0].cancelled()
    assert len(endpoint.asked) == 1


OK = b'{"access_token":"abc","token_type":"Bearer"'


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (Said(500, b"{}"), "unavailable"),
        (Said(302, b"", location="https://127.0.0.1:9/token"), "unavailable"),
        (Said(200, b"<html>log in"), "unavailable"),
        (Said(200, b"[1]"), "unavailable"),
        (Said(200, b"{}"), "unavailable"),
        (Said(200, b"[" * 100_000), "unavailable"),
        (Said(200, b" " * (MAX_ANSWER + 1)), "unavailable"),
        (Said(200, b'{"access_token":"a b","token_type":"Bearer"}'), "unavailable"),
        (Said(200, b'{"access_token":"a\\r\\nDELE 1","token_type":"Bearer"}'), "unavailable"),
        (Said(200, b'{"access_token":"' + b"a" * 20_000 + b'","token_type":"Bearer"}'), "unavailable"),
        (Said(200, b'{"access_token":"abc","token_type":"mac"}'), "unavailable"),
        (Said(200, b'{"access_token":"abc"}'), "unavailable"),
        (Said(200, OK + b',"expires_in":0}'), "unavailable"),
        (Said(200, OK + b',"expires_in":-1}'), "unavailable"),
        (Said(200, OK + b',"expires_in":NaN}'), "unavailable"),
        (Said(200, OK + b',"expires_in":true}'), "unavailable"),
        (Said(400, b'{"error":"temporarily_unavailable"}'), "unavailable"),
        (Said(400, b'{"error":{}}'), "unavailable"),
        (Said(401, b"no"), "unavailable"),
        (Said(401, b'{"error":"invalid_client"}'), "refused"),
        (Said(400, b'{"error":"unauthorized_client"}'), "refused"),
    ],
)
async def test_endpoint_that_lies_is_no_wrong_credential(endpoint: TokenEndpoint, said: Said, outcome: str) -> None:
    site = Site(endpoint)
    endpoint.said = said
    for _ in range(3):
        with pytest.raises(NoAccessToken) as raised:
            await site.own()
        assert (raised.value.outcome, raised.value.temporary) == (outcome, outcome == "unavailable")
    assert len(endpoint.asked) == 1, "asked again at once"
    endpoint.said = None
    site.clock.now += PAUSE[outcome]
    assert await site.own()
    assert site.counted == [outcome, "ok"]


async def test_refusal_names_microsofts_reason_and_nothing_that_was_sent(endpoint: TokenEndpoint) -> None:
    site = Site(endpoint)
    secret, endpoint.secret = endpoint.secret, "another"
    with pytest.raises(NoAccessToken, match=r"invalid_client \(AADSTS7000215\)$") as raised:
        await site.own()
    assert secret not in str(raised.value)


async def test_endpoint_that_is_down_or_slow(endpoint: TokenEndpoint) -> None:
    down = TokenEndpoint(url=f"https://127.0.0.1:{free_port()}", ca=endpoint.ca)
    with pytest.raises(NoAccessToken, match=r"Connect call failed|refused") as raised:
        await Site(down).own()
    assert raised.value.temporary
    site = Site(endpoint)
    endpoint.said = Said(delay=4)
    with pytest.raises(NoAccessToken, match="in time") as raised:
        await site.own()
    assert raised.value.temporary


async def test_endpoint_whose_certificate_is_nobodys(endpoint: TokenEndpoint, tmp_path: Path) -> None:
    with pytest.raises(NoAccessToken, match="certificate is refused") as raised:
        await Site(endpoint, Authority(tmp_path, "stranger").ca).own()
    assert raised.value.temporary
    assert endpoint.asked == []


async def test_token_that_a_server_refuses_is_replaced_unless_it_is_new(endpoint: TokenEndpoint) -> None:
    site = Site(endpoint)
    source = site.tokens.own()
    token = await source.token()
    source.refused()
    assert await source.token() == token
    site.clock.now += YOUNG + 1
    source.refused()
    assert await source.token() != token


async def test_each_user_has_a_token_of_its_own(endpoint: TokenEndpoint) -> None:
    alice, bob = endpoint.grant("alice"), endpoint.grant("bob")
    site = Site(endpoint, grant="refresh_token")
    tokens = [await site.tokens.of(user, Secret(grant)).token() for user, grant in (("alice", alice), ("bob", bob))]
    assert [endpoint.tokens[token.reveal().decode()] for token in tokens] == ["alice", "bob"]
    with pytest.raises(NoAccessToken, match="invalid_grant") as raised:
        await site.tokens.of("alice", Secret("another")).token()
    assert not raised.value.temporary
    again = await site.tokens.of("alice", Secret(alice)).token()
    assert endpoint.tokens[again.reveal().decode()] == "alice", "a new refresh token in the vault counts at once"


@pytest.mark.parametrize("broken", [False, True])
async def test_refresh_token_that_works_once(endpoint: TokenEndpoint, broken: bool) -> None:
    """The next one is kept, in the vault if it can be, and used."""
    endpoint.rotates = True
    first = Secret(endpoint.grant("alice"))
    site = Site(endpoint, grant="refresh_token")
    site.broken_vault = broken
    await site.tokens.of("alice", first).token()
    second = Secret(endpoint.grants["alice"])
    assert site.kept == ([] if broken else [("alice", first, second)])
    in_vault = first if broken else second
    await site.tokens.of("alice", in_vault).token()
    assert len(endpoint.asked) == 1
    site.clock.now += 3600
    await site.tokens.of("alice", in_vault).token()
    assert endpoint.asked[1].form["refresh_token"] == second.reveal().decode()


@pytest.mark.parametrize("odd", ["", 5, "caf\u00e9", "\ud800", "a b", "x" * 20_000])
async def test_refresh_token_that_cannot_be_one_leaves_the_old_one_in_use(endpoint: TokenEndpoint, odd: object) -> None:
    first = Secret(endpoint.grant("alice"))
    site = Site(endpoint, grant="refresh_token")
    fields = {"access_token": "abc", "token_type": "Bearer", "refresh_token": odd}
    endpoint.said = Said(200, json.dumps(fields).encode())
    assert (await site.tokens.of("alice", first).token()).reveal() == b"abc"
    endpoint.said = None
    site.clock.now += 3600
    await site.tokens.of("alice", first).token()
    assert endpoint.asked[1].form["refresh_token"] == first.reveal().decode()
    assert site.kept == []


async def test_public_client_has_no_secret(endpoint: TokenEndpoint) -> None:
    endpoint.secret = ""
    site = Site(endpoint, grant="refresh_token", client_secret=None)
    await site.tokens.of("alice", Secret(endpoint.grant("alice"))).token()
    assert endpoint.asked[0].form["client_id"] == CLIENT
    assert endpoint.asked[0].basic is None


async def test_end_of_popproxy_ends_the_asking(endpoint: TokenEndpoint) -> None:
    endpoint.said = Said(delay=1.5)
    site = Site(endpoint)
    waiting = asyncio.create_task(site.own())
    while not endpoint.asked:
        await asyncio.sleep(0.01)
    site.tokens.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
