"""Whose maildrop a ticket opens: principal, authzid and the rules between them."""

from __future__ import annotations

import pytest

from popproxy.auth.names import NameRefused, vet_name
from popproxy.kerberos.mapping import PrincipalMap, RealmRule, TableRule
from popproxy.sasl.credentials import GssapiCredential
from popproxy.session.tickets import user_of
from popproxy.types import AuthFailure

BOOK = {"asmith@A.TEST": "anna"}
TABLE = TableRule("table", lambda: BOOK)


def user(principal: str, authzid: str, *, domain: str | None = None, default: str | None = None) -> str:
    principals = PrincipalMap([RealmRule("A.TEST", domain), RealmRule("B.TEST", "b.test")], [TABLE])
    return user_of(
        GssapiCredential(principal, "pop/x", authzid), principals, lambda name: vet_name(name, default, "fold")
    )


@pytest.mark.parametrize("authzid", ["", "alice", "ALICE", "alice@A.TEST"])
def test_a_client_may_name_itself_in_several_ways(authzid: str) -> None:
    assert user("alice@A.TEST", authzid) == "alice"


@pytest.mark.parametrize("authzid", ["", "alice", "alice@a.test", "alice@A.TEST"])
def test_mailboxes_with_domains(authzid: str) -> None:
    assert user("alice@A.TEST", authzid, domain="a.test") == "alice@a.test"
    assert user("alice@A.TEST", authzid, default="a.test") == "alice@a.test"


@pytest.mark.parametrize("authzid", ["", "anna", "asmith", "asmith@A.TEST"])
def test_mailboxes_of_another_name(authzid: str) -> None:
    assert user("asmith@A.TEST", authzid) == "anna"


@pytest.mark.parametrize("authzid", ["bob", "alice@B.TEST", "alice/admin", "alice@b.test", "alice\\", "@A.TEST"])
def test_nobody_is_somebody_else(authzid: str) -> None:
    with pytest.raises(NameRefused) as caught:
        user("alice@A.TEST", authzid)
    assert caught.value.reason is AuthFailure.AUTHZID


@pytest.mark.parametrize("principal", ["alice@C.TEST", "alice/admin@A.TEST", "alice", "a\\@b@A.TEST"])
def test_principals_without_mailbox(principal: str) -> None:
    with pytest.raises(NameRefused) as caught:
        user(principal, "")
    assert caught.value.reason is AuthFailure.NOT_MAPPED


@pytest.mark.parametrize("authzid", ["al\tice", "a\udcffb"])
def test_names_that_cannot_be(authzid: str) -> None:
    with pytest.raises(NameRefused) as caught:
        user("alice@A.TEST", authzid)
    assert caught.value.reason in (AuthFailure.CONTROL_CHARACTER, AuthFailure.MALFORMED)
