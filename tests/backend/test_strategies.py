"""Which logins a pool's strategies make of the credentials there are."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import partial

import pytest

from popproxy.backend.pool import Pool
from popproxy.backend.strategies import logins_for
from popproxy.config.model_pools import Pool as PoolConfig
from popproxy.pop3.logins import Apop, Bearer, External, Plain, UserPass
from popproxy.sasl.credentials import GssapiCredential, PasswordCredential
from popproxy.types import Identity, Location, Mechanism, Secret
from popproxy.vault.record import Record

TICKET = GssapiCredential("alice@A.TEST", "pop/x@A.TEST")
PASSWORD = PasswordCredential(Mechanism.USER, "alice", Secret("canary-own"))
MASTER = Secret("canary-master")


def pool(*login: str, separator: str = "*", mechanism: str = "user") -> Pool:
    master = {"user": "admin", "password": {"env": "X"}, "separator": separator, "mechanism": mechanism}
    config = PoolConfig.model_validate({"servers": ["x"], "login": list(login), "master": master})
    return Pool("main", config, MASTER)


def who(*, proven: bool = True) -> Identity:
    return Identity("alice", "alice", Mechanism.GSSAPI, proven)


def test_master_user_behind_the_user() -> None:
    assert logins_for(pool("master"), "alice", who(), TICKET, lambda: None) == [
        UserPass("alice*admin", MASTER, strategy="master")
    ]
    assert logins_for(pool("master", separator="%"), "alice", who(), TICKET, lambda: None) == [
        UserPass("alice%admin", MASTER, strategy="master")
    ]


def test_master_user_beside_the_user() -> None:
    """The names are apart, so that any name will do."""
    for user in ("alice", "bob*admin"):
        logins = logins_for(pool("master", mechanism="plain"), user, who(), TICKET, lambda: None)
        assert logins == [Plain(user, "admin", MASTER)]


def test_ticket_cannot_be_forwarded() -> None:
    assert logins_for(pool("forward"), "alice", who(), TICKET, lambda: None) == []


def test_master_opens_nothing_for_whom_only_the_backend_could_judge() -> None:
    logins = logins_for(pool("forward", "master"), "alice", who(proven=False), PASSWORD, lambda: None)
    assert logins == [UserPass("alice", PASSWORD.password, users_own=True)]


def test_a_password_that_a_directory_gives_is_for_whom_it_has_judged() -> None:
    given = Location(password=Secret("canary-given"))
    for credential in (PASSWORD, TICKET):
        logins = logins_for(pool("forward"), "alice", replace(who(), location=given), credential, lambda: None)
        assert logins == [UserPass("alice", Secret("canary-given"))]
    unproven = replace(who(proven=False), location=given)
    logins = logins_for(pool("forward"), "alice", unproven, PASSWORD, lambda: None)
    assert logins == [UserPass("alice", PASSWORD.password, users_own=True)]


@pytest.mark.parametrize("user", ["bob*admin", "bob*", "*"])
def test_user_with_the_separator_in_its_name_reaches_nobody(user: str) -> None:
    assert logins_for(pool("master"), user, who(), TICKET, lambda: None) == []


class Tokens:
    """Names its sources."""

    def own(self) -> object:
        return "own"

    def of(self, user: str, refresh_token: Secret) -> object:
        return (user, refresh_token.reveal())


def cloud(**section: object) -> Pool:
    xoauth2 = {"endpoint": "https://a/token", "client_id": "a", "client_secret": {"env": "X"}, **section}
    config = PoolConfig.model_validate({"servers": ["x"], "login": ["xoauth2", "forward"], "xoauth2": xoauth2})
    return Pool("main", config, tokens=Tokens())


def test_stored_password_for_the_server_goes_before_the_users_own() -> None:
    own = Record().with_password(Secret("canary-own"))
    for record, password in ((own, "canary-own"), (own.with_backend(Secret("canary-behind")), "canary-behind")):
        assert logins_for(pool("apop", "stored"), "alice", who(), TICKET, partial(copy, record)) == [
            Apop("alice", Secret(password)),
            UserPass("alice", Secret(password), strategy="stored"),
        ]
    nothing = Record().with_verifiers(Secret("canary-own"))
    assert logins_for(pool("apop", "stored"), "alice", who(), TICKET, lambda: nothing) == []


def test_certificate() -> None:
    config = PoolConfig.model_validate({"servers": ["x"], "login": ["external"], "certificate": {"cert": "a.pem"}})
    assert logins_for(Pool("main", config), "alice", who(), TICKET, lambda: None) == [External("alice")]


def test_access_token_of_our_own() -> None:
    for more, login in (
        ({}, Bearer("alice", "own")),
        ({"mechanism": "oauthbearer", "two_lines": True}, Bearer("alice", "own", "OAUTHBEARER", two_lines=True)),
    ):
        assert logins_for(cloud(**more), "alice", who(), TICKET, lambda: None) == [login]


def test_access_token_by_the_users_refresh_token() -> None:
    """The vault knows him by his name here, the server by his name there."""
    record = Record().with_refresh_token(Secret("canary-refresh"))
    there = logins_for(cloud(grant="refresh_token"), "a.there", who(), TICKET, lambda: record)
    assert there == [Bearer("a.there", ("alice", b"canary-refresh"))]
    why = dict[str, str]()
    assert logins_for(cloud(grant="refresh_token"), "alice", who(), PASSWORD, Record, skipped=why.__setitem__) == [
        UserPass("alice", PASSWORD.password)
    ]
    assert why == {"xoauth2": "the vault has no refresh token of this user"}


@pytest.mark.parametrize("strategy", ["external", "xoauth2", "stored", "apop"])
def test_nothing_of_ours_opens_anything_for_whom_only_the_backend_could_judge(strategy: str) -> None:
    config = PoolConfig.model_validate({
        "servers": ["x"], "login": [strategy], "certificate": {"cert": "a.pem"},
        "xoauth2": {"endpoint": "https://a/token", "client_id": "a", "client_secret": {"env": "X"}},
    })  # fmt: skip
    record = Record().with_password(Secret("canary-own"))
    assert logins_for(Pool("main", config, tokens=Tokens()), "alice", who(proven=False), PASSWORD, lambda: record) == []
