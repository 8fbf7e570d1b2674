"""LDAP servers that lie, die, stall or talk nonsense: only what says something of this user is a refusal."""

from __future__ import annotations

import asyncio
import time

import pytest

from popproxy.directories.entry import Answer, Entry, Refused
from popproxy.errors import Unavailable
from popproxy.types import Address, AuthFailure, Location, Secret
from tests.directories.conftest import MakeLdap
from tests.peers import scripted_ldap as ldap
from tests.peers.canaries import canary
from tests.peers.process import free_port
from tests.peers.scripted_ldap import BIND, SEARCH, Request, scripted_ldap

pytestmark = pytest.mark.long

BASE = "ou=people,dc=example,dc=com"
TEMPLATE = {"tls": "none", "user_dn": f"uid={{local}},{BASE}"}
SEARCHED = {"tls": "none", "base": BASE, "filter": "(mail={user})"}
DN = f"uid=alice,{BASE}".encode()


def honest(request: Request) -> bytes:
    if request.operation == BIND:
        return ldap.bind_result(request)
    return ldap.entry(request, DN, mail=b"alice@example.com") + ldap.search_done(request)


def refusing(diagnostic: str, code: int = 49) -> ldap.Answer:
    return lambda request: ldap.bind_result(request, code, diagnostic.encode())


async def verify(directory: object, user: str = "alice@example.com", password: str = "") -> Answer:
    from popproxy.directories.ldap import LdapDirectory

    assert isinstance(directory, LdapDirectory)
    return await directory.verify(user, Secret(password or canary()))


AD = "80090308: LdapErr: DSID-0C090439, comment: AcceptSecurityContext error, data {}, v4563"


@pytest.mark.parametrize(
    ("diagnostic", "answer"),
    [
        (AD.format("52e"), Refused(AuthFailure.BAD_CREDENTIALS)),
        (AD.format("525"), Refused(stranger=True)),
        (AD.format("530"), Refused(AuthFailure.ACCOUNT_RESTRICTED)),
        (AD.format("531"), Refused(AuthFailure.ACCOUNT_RESTRICTED)),
        (AD.format("532"), Refused(AuthFailure.PASSWORD_EXPIRED)),
        (AD.format("533"), Refused(AuthFailure.DISABLED)),
        (AD.format("701"), Refused(AuthFailure.ACCOUNT_EXPIRED)),
        (AD.format("773"), Refused(AuthFailure.PASSWORD_EXPIRED)),
        (AD.format("775"), Refused(AuthFailure.ACCOUNT_LOCKED)),
        (AD.format("999"), Refused(AuthFailure.BAD_CREDENTIALS, stranger=True)),
        ("", Refused(AuthFailure.BAD_CREDENTIALS, stranger=True)),
    ],
)
async def test_what_active_directory_says_of_an_account(make_ldap: MakeLdap, diagnostic: str, answer: Answer) -> None:
    with scripted_ldap(refusing(diagnostic)) as server:
        directory = make_ldap(f"127.0.0.1:{server.port}", tls="none", user_dn="{user}")
        assert await verify(directory) == answer
        assert [request.bind_name for request in server.requests if request.operation == BIND] == [b"alice@example.com"]


@pytest.mark.parametrize(
    ("code", "diagnostic", "reason"),
    [
        (53, "Account inactivated. Contact system administrator.", AuthFailure.DISABLED),
        (19, "Exceed password retry limit. Please try later.", AuthFailure.ACCOUNT_LOCKED),
    ],
)
async def test_what_389_directory_server_says(
    make_ldap: MakeLdap, code: int, diagnostic: str, reason: AuthFailure
) -> None:
    with scripted_ldap(refusing(diagnostic, code)) as server:
        assert await verify(make_ldap(f"127.0.0.1:{server.port}", **TEMPLATE)) == Refused(reason)


@pytest.mark.parametrize("code", [1, 2, 7, 8, 10, 13, 19, 34, 50, 51, 52, 53, 80])
async def test_other_results_say_nothing_of_the_user(make_ldap: MakeLdap, code: int) -> None:
    with scripted_ldap(refusing("sorry", code)) as server, pytest.raises(Unavailable):
        await verify(make_ldap(f"127.0.0.1:{server.port}", **TEMPLATE))


async def test_no_name_and_no_password_goes_out_that_cannot_be_one(make_ldap: MakeLdap) -> None:
    with scripted_ldap(honest) as server:
        directory = make_ldap(f"127.0.0.1:{server.port}", tls="none", user_dn="{user}")
        assert await directory.verify("alice", Secret("")) == Refused(AuthFailure.EMPTY)
        assert await verify(directory, "cn=admin,dc=example,dc=com") == Refused(stranger=True)
        assert await verify(make_ldap(f"127.0.0.1:{server.port}", **TEMPLATE), "@example.com") == Refused(stranger=True)
        assert server.requests == []


async def test_a_name_with_everything_in_it_is_one_value(make_ldap: MakeLdap) -> None:
    with scripted_ldap(honest) as server:
        directory = make_ldap(f"127.0.0.1:{server.port}", **TEMPLATE)
        assert await verify(directory, "a,o=b+c *") == Entry()
        assert server.requests[0].bind_name == f"uid=a\\,o\\=b\\+c *,{BASE}".encode()


async def test_passwords_are_octets(make_ldap: MakeLdap) -> None:
    with scripted_ldap(honest) as server:
        assert await make_ldap(f"127.0.0.1:{server.port}", **TEMPLATE).verify("alice", Secret(b"m\xfcller")) == Entry()
        assert server.requests[0].body.endswith(b"\x80\x06m\xfcller")


async def test_two_entries(make_ldap: MakeLdap) -> None:
    def two(request: Request) -> bytes:
        if request.operation == BIND:
            return ldap.bind_result(request)
        return ldap.entry(request, DN) + ldap.entry(request, b"uid=other") + ldap.search_done(request)

    with scripted_ldap(two) as server:
        directory = make_ldap(f"127.0.0.1:{server.port}", **SEARCHED)
        assert await verify(directory) == Refused(AuthFailure.AMBIGUOUS)
        binds = [request.bind_name for request in server.requests if request.operation == BIND]
        assert binds == [b""]  # nobody was tried


async def test_a_size_limit_exceeded_means_two(make_ldap: MakeLdap) -> None:
    def limited(request: Request) -> bytes:
        if request.operation == BIND:
            return ldap.bind_result(request)
        return ldap.entry(request, DN) + ldap.search_done(request, 4)

    with scripted_ldap(limited) as server:
        assert await verify(make_ldap(f"127.0.0.1:{server.port}", **SEARCHED)) == Refused(AuthFailure.AMBIGUOUS)


def referral(request: Request) -> bytes:
    return ldap.bind_result(request) if request.operation == BIND else ldap.search_done(request, 10)


def nothing_there(request: Request) -> bytes:
    return ldap.bind_result(request) if request.operation == BIND else ldap.search_done(request, 32)


def busy(request: Request) -> bytes:
    return ldap.bind_result(request) if request.operation == BIND else ldap.search_done(request, 51)


def half(request: Request) -> bytes | None:
    return ldap.bind_result(request)[:7]


def dies(request: Request) -> bytes | None:
    return None


def dies_in_search(request: Request) -> bytes | None:
    return ldap.bind_result(request) if request.operation == BIND else None


def garbage(request: Request) -> bytes:
    return b"\xff\x00HTTP/1.1 400 Bad Request\r\n\r\n" * 20


def another_number(request: Request) -> bytes:
    request.number += 100
    return ldap.bind_result(request)


def another_kind(request: Request) -> bytes:
    return ldap.result(request, 0x69, 0)


def another_kind_in_search(request: Request) -> bytes:
    return ldap.bind_result(request) if request.operation == BIND else ldap.result(request, 0x69, 49)


def endless(request: Request) -> bytes:
    return b"\x30\x84\x7f\xff\xff\xff" + b"\x00" * 65536


def not_text(request: Request) -> bytes:
    if request.operation == BIND:
        return ldap.bind_result(request)
    return ldap.entry(request, DN, mailHost=b"\xff\xfe\x00") + ldap.search_done(request)


@pytest.mark.parametrize(
    "answer",
    [
        referral, nothing_there, busy, half, dies, dies_in_search, garbage, another_number, another_kind,
        another_kind_in_search, endless, not_text,
    ],
)  # fmt: skip
async def test_nonsense_is_nobodys_wrong_password(make_ldap: MakeLdap, answer: ldap.Answer) -> None:
    with scripted_ldap(answer) as server:
        directory = make_ldap(
            f"127.0.0.1:{server.port}", **SEARCHED, deadline=3, connect=1, attributes={"server": "mailHost"}
        )
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await verify(directory)
        assert time.monotonic() - started < 10
        server.answer = honest
        assert await verify(directory) == Entry()


async def test_a_server_that_repeats_the_password_does_not_get_it_into_the_log(make_ldap: MakeLdap) -> None:
    password = canary()

    def parrot(request: Request) -> bytes:
        return ldap.bind_result(request, 1, password.encode())

    with scripted_ldap(parrot) as server:
        with pytest.raises(Unavailable) as caught:
            await verify(make_ldap(f"127.0.0.1:{server.port}", **TEMPLATE), password=password)
        assert password not in str(caught.value)
        assert "operationsError" in str(caught.value)


async def test_a_silent_server_costs_the_deadline_and_stops_nobody_else(make_ldap: MakeLdap) -> None:
    with scripted_ldap(lambda request: b"") as server:
        directory = make_ldap(f"127.0.0.1:{server.port}", **TEMPLATE, deadline=1.5, connect=1)
        late = [0.0]

        async def watch() -> None:
            while True:
                started = time.monotonic()
                await asyncio.sleep(0.01)
                late.append(time.monotonic() - started)

        watching = asyncio.ensure_future(watch())
        started = time.monotonic()
        answers = await asyncio.gather(*(verify(directory) for _ in range(4)), return_exceptions=True)
        watching.cancel()
        assert all(isinstance(answer, Unavailable) for answer in answers)
        assert time.monotonic() - started < 8
        assert len(late) > 20  # the loop went on all the while


async def test_the_next_server_is_asked(make_ldap: MakeLdap) -> None:
    with scripted_ldap(honest) as server:
        directory = make_ldap(f"127.0.0.1:{free_port()}", f"127.0.0.1:{server.port}", **TEMPLATE)
        assert await verify(directory) == Entry()
        with scripted_ldap(lambda request: ldap.bind_result(request, 51)) as overworked:
            directory = make_ldap(f"127.0.0.1:{overworked.port}", f"127.0.0.1:{server.port}", **TEMPLATE)
            assert await verify(directory) == Entry()


async def test_no_other_server_is_asked_about_a_wrong_password(make_ldap: MakeLdap) -> None:
    with scripted_ldap(honest) as server, scripted_ldap(refusing("")) as strict:
        directory = make_ldap(f"127.0.0.1:{strict.port}", f"127.0.0.1:{server.port}", **TEMPLATE)
        assert await verify(directory) == Refused(stranger=True)
        assert server.requests == []


async def test_an_idle_connection_that_was_closed_is_opened_again(make_ldap: MakeLdap) -> None:
    with scripted_ldap(honest) as server:
        directory = make_ldap(f"127.0.0.1:{server.port}", **SEARCHED, workers=1)
        assert await directory.find("alice@example.com") == Entry()
        server.answer = lambda request: None  # for the one request that finds the old connection
        first = len(server.requests)

        def once(request: Request) -> bytes | None:
            if len(server.requests) == first + 1:
                return None
            return honest(request)

        server.answer = once
        assert await directory.find("alice@example.com") == Entry()


async def test_what_the_attributes_say(make_ldap: MakeLdap) -> None:
    def full(request: Request) -> bytes:
        if request.operation == BIND:
            return ldap.bind_result(request)
        return ldap.entry(
            request, DN, mail=b"Alice.Jones@example.com", mailHost=b"pop2.example.com:1110", uid=b"alice"
        ) + ldap.search_done(request)

    with scripted_ldap(full) as server:
        directory = make_ldap(
            f"127.0.0.1:{server.port}", **TEMPLATE,
            attributes={"mailbox": "mail", "server": "mailHost", "backend_user": "uid", "pool": "department"},
        )  # fmt: skip
        location = Location(None, Address("pop2.example.com", 1110), "alice")
        assert await verify(directory) == Entry("Alice.Jones@example.com", location)
        assert server.requests[1].operation == SEARCH


@pytest.mark.parametrize("host", [b"pop3://a", b"a b", b":110", b"a:99999"])
async def test_a_server_that_is_none(make_ldap: MakeLdap, host: bytes) -> None:
    def wrong(request: Request) -> bytes:
        if request.operation == BIND:
            return ldap.bind_result(request)
        return ldap.entry(request, DN, mailHost=host) + ldap.search_done(request)

    with scripted_ldap(wrong) as server:
        directory = make_ldap(f"127.0.0.1:{server.port}", **TEMPLATE, attributes={"server": "mailHost"})
        with pytest.raises(Unavailable, match="mailHost"):
            await verify(directory)
