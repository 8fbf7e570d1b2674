"""Real mail clients, through popproxy, to Dovecot and popa3d: every message whole, every deletion right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.certs import Authority
from tests.peers.clients import CLIENTS, Account, Auth, Client, Curl, Transport
from tests.peers.messages import SAMPLES, multiline, wire
from tests.peers.proxy import Proxy, Record
from tests.real.conftest import Backend

LIMIT = 1000
SMALL = [number for number, message in enumerate(SAMPLES, 1) if len(wire(message)) < LIMIT]
ON_THE_WIRE = [len(multiline(wire(message))) - len(b".\r\n") for message in SAMPLES]
LARGE = [number for number in range(1, len(SAMPLES) + 1) if number not in SMALL]

_LISTENERS: dict[Transport, str] = {"plain": "pop3", "stls": "pop3", "tls": "pop3s"}


every_client = pytest.mark.parametrize(
    ("client", "transport", "auth"),
    [(client, transport, auth) for client in CLIENTS for transport, auth in client.ways()],
    ids=lambda value: value.name if isinstance(value, Client) else value,
)
every_backend = pytest.mark.parametrize("backend", ["dovecot", "popa3d"])


@pytest.fixture
def stage(request: pytest.FixtureRequest, backend: str) -> tuple[Backend, Proxy]:
    """A backend with the sample maildrop, and the proxy in front of it."""
    server: Backend = request.getfixturevalue(f"{backend}_server")
    proxy: Proxy = request.getfixturevalue(f"{backend}_proxy")
    server.deliver("alice", SAMPLES)
    return server, proxy


def _account(stage: tuple[Backend, Proxy], authority: Authority, transport: Transport, auth: Auth) -> Account:
    server, proxy = stage
    listener = _LISTENERS[transport]
    if auth == "apop":
        listener = listener.replace("pop3", "apop")
    return Account(proxy.port(listener), "alice", server.users["alice"], authority.ca, transport, auth)


def _messages(records: list[Record], action: str) -> list[Record]:
    return sorted((r for r in records if r["event.action"] == action), key=lambda record: record["pop3.message_number"])


@every_client
@every_backend
def test_client_fetches_every_message_byte_for_byte_and_deletes_none(
    stage: tuple[Backend, Proxy], authority: Authority, home: Path, client: Client, transport: Transport, auth: Auth
) -> None:
    server, proxy = stage
    before = len(proxy.settled())

    fetched = client.fetch(_account(stage, authority, transport, auth), home)

    assert sorted(fetched) == sorted(map(wire, SAMPLES))
    records = proxy.settled(before)
    retrievals = _messages(records, "retr")
    assert [record["pop3.message_number"] for record in retrievals] == list(range(1, len(SAMPLES) + 1))
    assert all(record["pop3.complete"] for record in retrievals)
    assert [record["pop3.octets"] for record in retrievals] == ON_THE_WIRE
    assert not _messages(records, "dele")
    assert server.maildrop("alice") == list(SAMPLES)


@every_client
@every_backend
def test_client_deletes_exactly_the_messages_it_took(
    stage: tuple[Backend, Proxy], authority: Authority, home: Path, client: Client, transport: Transport, auth: Auth
) -> None:
    server, proxy = stage
    before = len(proxy.settled())

    taken = client.take(_account(stage, authority, transport, auth), home, LIMIT)

    assert sorted(taken) == sorted(wire(SAMPLES[number - 1]) for number in SMALL)
    records = proxy.settled(before)
    assert server.maildrop("alice") == [SAMPLES[number - 1] for number in LARGE]
    assert [record["pop3.message_number"] for record in _messages(records, "dele")] == SMALL
    committed = [r for r in records if r["event.action"] == "update" and r["pop3.deleted"]]
    assert [(r["pop3.committed"], r["event.outcome"]) for r in committed] == [(True, "success")]
    assert sorted(message["number"] for message in committed[0]["pop3.deleted"]) == SMALL


@every_client
def test_login_is_recorded_as_the_client_made_it(
    dovecot_server: Backend,
    dovecot_proxy: Proxy,
    authority: Authority,
    home: Path,
    client: Client,
    transport: Transport,
    auth: Auth,
) -> None:
    stage = (dovecot_server, dovecot_proxy)
    dovecot_server.deliver("alice", SAMPLES[:1])
    before = len(dovecot_proxy.settled())

    client.fetch(_account(stage, authority, transport, auth), home)

    login = next(r for r in dovecot_proxy.settled(before) if r["event.action"] == "login")
    if auth != "user" or not isinstance(client, Curl):  # curl prefers SASL as soon as it is offered
        assert login["auth.mechanism"] == auth.upper()
    assert login["user.name"] == "alice"
    assert login.get("tls.version", "none") == ("none" if transport == "plain" else "1.3")


@every_backend
@pytest.mark.parametrize("transport", ["plain", "stls", "tls"])
def test_curl_reads_listings_and_tops(
    stage: tuple[Backend, Proxy], authority: Authority, home: Path, transport: Transport
) -> None:
    curl = Curl()
    account = _account(stage, authority, transport, "user")

    assert curl.sizes(account, home) == {n: len(wire(message)) for n, message in enumerate(SAMPLES, 1)}
    uids = dict(line.split() for line in curl.request(account, home, "UIDL").splitlines())
    assert list(uids) == [str(number) for number in range(1, len(SAMPLES) + 1)]
    assert len(set(uids.values())) == len(SAMPLES)
    header, _, body = wire(SAMPLES[5]).partition(b"\r\n\r\n")
    top = curl.request(account, home, "TOP 6 2").encode()
    assert top.split() == (header + b"\r\n\r\n" + b"\r\n".join(body.split(b"\r\n")[:2])).split()


@every_backend
def test_wrong_password_ends_every_client_and_the_right_one_still_works(
    stage: tuple[Backend, Proxy], authority: Authority, home: Path
) -> None:
    server, proxy = stage
    good = _account(stage, authority, "stls", "user")
    wrong = Account(good.port, good.user, f"{good.password}x", good.ca, good.transport, good.auth)
    before = len(proxy.settled())

    for client in CLIENTS:
        directory = home / client.name
        directory.mkdir()
        usable = wrong if "stls" in client.transports else _account(stage, authority, "plain", "user")
        if usable is not wrong:
            usable = Account(usable.port, usable.user, wrong.password, usable.ca, "plain", "user")
        with pytest.raises(Exception):  # noqa: B017, PT011 - each client has its own way to fail
            assert client.fetch(usable, directory)

    records = proxy.settled(before)
    refused = [r for r in records if r["event.action"] == "auth"]
    assert refused
    assert {(r["event.outcome"], r["event.reason"]) for r in refused} == {("failure", "bad_credentials")}
    assert not [r for r in records if r["event.action"] == "login"]
    (home / "again").mkdir()
    assert Curl().fetch(good, home / "again")
    assert server.maildrop("alice") == list(SAMPLES)
