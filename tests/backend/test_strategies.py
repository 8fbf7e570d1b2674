"""Which logins a pool's strategies make of the credentials there are."""

from __future__ import annotations

import pytest

from popproxy.backend.pool import Pool
from popproxy.backend.strategies import logins_for
from popproxy.config.model import Pool as PoolConfig
from popproxy.pop3.logins import Plain, UserPass
from popproxy.sasl.credentials import GssapiCredential, PasswordCredential
from popproxy.types import Identity, Mechanism, Secret

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


@pytest.mark.parametrize("user", ["bob*admin", "bob*", "*"])
def test_user_with_the_separator_in_its_name_reaches_nobody(user: str) -> None:
    assert logins_for(pool("master"), user, who(), TICKET, lambda: None) == []
