"""A real slapd: StartTLS and LDAPS verified, users by template and by search, its policy, its death and its silence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from popproxy.directories.entry import Entry, Refused
from popproxy.directories.ldap import LdapDirectory
from popproxy.errors import Unavailable
from popproxy.types import Address, AuthFailure, Location, Secret
from tests.directories.conftest import MakeLdap
from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.scripted_ldap import scripted_ldap
from tests.peers.slapd import PEOPLE, SERVICE, SUFFIX, Person, Slapd, slapd

pytestmark = pytest.mark.real

ODD = "a,b+c *(d)"
_PEOPLE = [
    Person("alice", more="mailHost: pop1.example.com\n"),
    Person("bob", more="description: pop2.example.com\ndescription: pop3.example.com\n"),
    Person("twin1", "twin@example.com"),
    Person("twin2", "twin@example.com"),
    Person("locked", more=f"pwdPolicySubentry: cn=strict,{SUFFIX}\n"),
]


@pytest.fixture(scope="module")
def server(authority: Authority, server_certificate: CertificateFiles) -> Iterator[Slapd]:
    with slapd(authority, server_certificate, _PEOPLE) as running:
        yield running


@pytest.fixture
async def searching(make_ldap: MakeLdap, server: Slapd, authority: Authority) -> LdapDirectory:
    return make_ldap(
        f"127.0.0.1:{server.port}", account=SERVICE, password=server.passwords[""], ca=str(authority.ca), base=PEOPLE,
        filter="(&(objectClass=inetOrgPerson)(mail={user}))", attributes={"server": "mailHost", "mailbox": "mail"},
    )  # fmt: skip


async def test_bind_by_template_over_starttls(make_ldap: MakeLdap, server: Slapd, authority: Authority) -> None:
    directory = make_ldap(f"127.0.0.1:{server.port}", ca=str(authority.ca), user_dn=f"uid={{local}},{PEOPLE}")
    assert await directory.verify("alice@example.com", Secret(server.passwords["alice"])) == Entry()
    assert await directory.verify("alice", Secret(canary())) == Refused(stranger=True)
    assert await directory.verify("nobody", Secret(canary())) == Refused(stranger=True)
    assert "STARTTLS" in server.log()


async def test_bind_by_template_over_ldaps(make_ldap: MakeLdap, server: Slapd, authority: Authority) -> None:
    directory = make_ldap(
        f"127.0.0.1:{server.tls_port}", tls="implicit", ca=str(authority.ca), user_dn=f"uid={{local}},{PEOPLE}",
        attributes={"mailbox": "mail", "server": "mailHost"},
    )  # fmt: skip
    answer = await directory.verify("alice", Secret(server.passwords["alice"]))
    assert answer == Entry("alice@example.com", Location(server=Address("pop1.example.com", 0)))


async def test_search_then_bind(searching: LdapDirectory, server: Slapd) -> None:
    answer = await searching.verify("alice@example.com", Secret(server.passwords["alice"]))
    assert answer == Entry("alice@example.com", Location(server=Address("pop1.example.com", 0)))
    assert await searching.verify("alice@example.com", Secret(canary())) == Refused(AuthFailure.BAD_CREDENTIALS)
    assert await searching.verify("nobody@example.com", Secret(canary())) == Refused(stranger=True)


async def test_find_needs_no_password(searching: LdapDirectory) -> None:
    answer = await searching.find("alice@example.com")
    assert isinstance(answer, Entry)
    assert answer.location == Location(server=Address("pop1.example.com", 0))
    assert await searching.find("nobody@example.com") == Refused(stranger=True)


async def test_two_matches_are_refused_and_asked_for_no_more_than_one(searching: LdapDirectory, server: Slapd) -> None:
    answer = await searching.verify("twin@example.com", Secret(server.passwords["twin1"]))
    assert answer == Refused(AuthFailure.AMBIGUOUS)
    assert "nentries=1" in server.log()


async def test_an_attribute_with_two_values_is_ours_to_mend(
    make_ldap: MakeLdap, server: Slapd, authority: Authority
) -> None:
    directory = make_ldap(
        f"127.0.0.1:{server.port}", ca=str(authority.ca), user_dn=f"uid={{local}},{PEOPLE}",
        attributes={"server": "description"},
    )  # fmt: skip
    with pytest.raises(Unavailable, match="description has 2 values"):
        await directory.verify("bob", Secret(server.passwords["bob"]))


@pytest.mark.parametrize("user", ["*", "*)(uid=alice", "alice@example.com)(|(uid=*", "\\2a", "a\\", "(", "żółw"])
async def test_names_stay_values_in_the_filter(searching: LdapDirectory, server: Slapd, user: str) -> None:
    before = len(server.log())
    assert await searching.find(user) == Refused(stranger=True)
    (search,) = [line for line in server.log()[before:].splitlines() if "SRCH base" in line and "scope=2" in line]
    assert search.count("(") == 3, search
    assert "mail=*" not in search


async def test_an_account_that_the_policy_locks(
    make_ldap: MakeLdap, searching: LdapDirectory, server: Slapd, authority: Authority
) -> None:
    assert await searching.verify("locked@example.com", Secret(canary())) == Refused(AuthFailure.BAD_CREDENTIALS)
    answer = await searching.verify("locked@example.com", Secret(server.passwords["locked"]))
    assert answer == Refused(AuthFailure.ACCOUNT_LOCKED)


async def test_a_certificate_of_somebody_else(make_ldap: MakeLdap, server: Slapd, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "somebody else")
    for tls, port in (("starttls", server.port), ("implicit", server.tls_port)):
        directory = make_ldap(f"127.0.0.1:{port}", tls=tls, ca=str(stranger.ca), user_dn=f"uid={{local}},{PEOPLE}")
        before = len(server.log())
        with pytest.raises(Unavailable):
            await directory.verify("alice", Secret(server.passwords["alice"]))
        assert "BIND" not in server.log()[before:]


@pytest.mark.parametrize("kind", ["expired", "wrong_host"])
async def test_a_certificate_that_is_wrong(make_ldap: MakeLdap, authority: Authority, kind: str) -> None:
    with slapd(authority, getattr(authority, kind)(), [Person("alice")]) as server:
        for tls, port in (("starttls", server.port), ("implicit", server.tls_port)):
            directory = make_ldap(f"127.0.0.1:{port}", tls=tls, ca=str(authority.ca), user_dn=f"uid={{local}},{PEOPLE}")
            with pytest.raises(Unavailable):
                await directory.verify("alice", Secret(server.passwords["alice"]))
        assert "BIND" not in server.log()


async def test_an_old_version_of_tls(make_ldap: MakeLdap, authority: Authority) -> None:
    old = "TLSCipherSuite NORMAL:-VERS-ALL:+VERS-TLS1.1:%COMPAT"
    with slapd(authority, authority.server(), [Person("alice")], extra=old) as server:
        directory = make_ldap(f"127.0.0.1:{server.port}", ca=str(authority.ca), user_dn=f"uid={{local}},{PEOPLE}")
        with pytest.raises(Unavailable):
            await directory.verify("alice", Secret(server.passwords["alice"]))


async def test_a_wrong_password_of_the_service_is_not_the_users(
    make_ldap: MakeLdap, server: Slapd, authority: Authority
) -> None:
    directory = make_ldap(
        f"127.0.0.1:{server.port}", account=SERVICE, password=canary(), ca=str(authority.ca), base=PEOPLE,
        filter="(mail={user})",
    )  # fmt: skip
    with pytest.raises(Unavailable, match=rf"does not let {SERVICE} in: invalidCredentials"):
        await directory.verify("alice@example.com", Secret(server.passwords["alice"]))


@pytest.mark.parametrize("base", [f"ou=nowhere,{SUFFIX}", f"ou=away,{SUFFIX}", "dc=other"])
async def test_a_base_that_is_not_there_or_elsewhere(
    make_ldap: MakeLdap, server: Slapd, authority: Authority, base: str
) -> None:
    directory = make_ldap(f"127.0.0.1:{server.port}", ca=str(authority.ca), base=base, filter="(mail={user})")
    with pytest.raises(Unavailable, match="there is no"):
        await directory.verify("alice@example.com", Secret(server.passwords["alice"]))


async def test_down_and_up_again(searching: LdapDirectory, server: Slapd) -> None:
    assert isinstance(await searching.find("alice@example.com"), Entry)
    server.stop()
    try:
        with pytest.raises(Unavailable):
            await searching.find("alice@example.com")
        with pytest.raises(Unavailable):
            await searching.verify("alice@example.com", Secret(server.passwords["alice"]))
    finally:
        await asyncio.to_thread(server.start)
    assert isinstance(await searching.find("alice@example.com"), Entry)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_silent_and_awake_again(make_ldap: MakeLdap, server: Slapd, authority: Authority, tls: str) -> None:
    """The library waits for TLS without giving anybody a turn: in its own process."""
    port = server.port if tls == "starttls" else server.tls_port
    directory = make_ldap(
        f"127.0.0.1:{port}", tls=tls, ca=str(authority.ca), user_dn=f"uid={{local}},{PEOPLE}", deadline=2, connect=1
    )
    server.freeze()
    try:
        started = time.monotonic()
        turns = 0
        asked = asyncio.ensure_future(directory.verify("alice", Secret(server.passwords["alice"])))
        while not asked.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(Unavailable):
            await asked
        assert time.monotonic() - started < 8
        assert turns > 20
    finally:
        server.thaw()
    assert await directory.verify("alice", Secret(server.passwords["alice"])) == Entry()


async def test_fifty_at_a_time(searching: LdapDirectory, server: Slapd) -> None:
    right = [searching.verify("alice@example.com", Secret(server.passwords["alice"])) for _ in range(25)]
    wrong = [searching.verify("alice@example.com", Secret(canary())) for _ in range(25)]
    answers = await asyncio.gather(*right, *wrong)
    assert all(isinstance(answer, Entry) for answer in answers[:25])
    assert all(answer == Refused(AuthFailure.BAD_CREDENTIALS) for answer in answers[25:])


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_the_next_server_is_asked_when_one_is_silent(
    make_ldap: MakeLdap, server: Slapd, authority: Authority, tls: str
) -> None:
    with scripted_ldap(lambda request: b"") as silent:
        port = server.port if tls == "starttls" else server.tls_port
        directory = make_ldap(
            f"127.0.0.1:{silent.port}", f"127.0.0.1:{port}", tls=tls, ca=str(authority.ca), connect=1,
            user_dn=f"uid={{local}},{PEOPLE}", workers=1,
        )  # fmt: skip
        for _ in range(2):
            assert await directory.verify("alice", Secret(server.passwords["alice"])) == Entry()
