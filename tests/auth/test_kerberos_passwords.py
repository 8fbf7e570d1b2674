"""Which principal a user name stands for, and what the answers mean; `tests/real/test_kerberos.py` asks a real KDC."""

from __future__ import annotations

import pytest

from popproxy.auth.kerberos import KerberosPasswordAuthenticator, RememberingKdc
from popproxy.auth.names import vet_name
from popproxy.auth.result import Accepted, CannotTell, Declined, Rejected
from popproxy.errors import Unavailable
from popproxy.kerberos.mapping import PrincipalMap, RealmRule
from popproxy.kerberos.password import KDC_NOT_PROVEN, PasswordRefusal, PasswordRefused
from popproxy.sasl.credentials import ApopCredential, PasswordCredential
from popproxy.state.remembered import Remembered
from popproxy.types import AuthFailure, Identity, Mechanism, Secret

REALMS = [RealmRule("A.TEST"), RealmRule("B.TEST", "b.example")]


class Kdc:
    """Answers with the principal that it was asked about, or raises."""

    def __init__(self, error: Exception | None = None, answer: str = "") -> None:
        self.asked: list[str] = []
        self.error, self._answer = error, answer

    async def check(self, user: str, password: Secret) -> str:
        self.asked.append(user)
        if self.error is not None:
            raise self.error
        return self._answer or user


def authenticator(
    kdc: Kdc, *, default_domain: str | None = None, decisive: bool = True
) -> KerberosPasswordAuthenticator:
    def vet(name: str) -> str:
        return vet_name(name, default_domain, "fold")

    return KerberosPasswordAuthenticator(kdc, PrincipalMap(REALMS), REALMS, default_domain, vet, decisive=decisive)


def password(user: str) -> PasswordCredential:
    return PasswordCredential(Mechanism.PLAIN, user, Secret("canary"))


@pytest.mark.parametrize(
    ("user", "default_domain", "principal", "mailbox"),
    [
        ("alice", None, "alice@A.TEST", "alice"),
        ("alice@a.test", None, "alice@A.TEST", "alice"),
        ("alice@a.example", "a.example", "alice@A.TEST", "alice@a.example"),
        ("bob@b.example", None, "bob@B.TEST", "bob@b.example"),
        ("bob@b.test", None, "bob@B.TEST", "bob@b.example"),
    ],
)
async def test_the_realm_of_a_name(user: str, default_domain: str | None, principal: str, mailbox: str) -> None:
    kdc = Kdc()
    result = await authenticator(kdc, default_domain=default_domain).authenticate(password(user), user)
    assert kdc.asked == [principal]
    assert result == Accepted(Identity(mailbox, user, Mechanism.PLAIN, principal=principal))


@pytest.mark.parametrize("user", ["alice@elsewhere.example", "a@b@a.test"])
async def test_names_of_no_realm_are_somebody_elses(user: str) -> None:
    kdc = Kdc()
    assert await authenticator(kdc).authenticate(password(user), user) == Declined()
    assert kdc.asked == []


async def test_only_passwords_are_asked_about() -> None:
    credential = ApopCredential("alice", b"<1@x>", Secret("0" * 32))
    assert await authenticator(Kdc()).authenticate(credential, "alice") == Declined()


@pytest.mark.parametrize("decisive", [True, False])
@pytest.mark.parametrize("reason", list(PasswordRefusal))
async def test_refusals(reason: PasswordRefusal, decisive: bool) -> None:
    result = await authenticator(Kdc(PasswordRefused(reason)), decisive=decisive).authenticate(password("a"), "a")
    declines = reason is PasswordRefusal.WRONG and not decisive
    assert result == (Declined() if declines else Rejected(AuthFailure.BAD_CREDENTIALS))


async def test_silence_is_no_refusal() -> None:
    result = await authenticator(Kdc(Unavailable("no answer", "kdc"))).authenticate(password("a"), "a")
    assert result == CannotTell("no answer")


async def test_kdc_that_does_not_know_our_key_is_on_record_as_such() -> None:
    kdc = Kdc(Unavailable("forged", KDC_NOT_PROVEN))
    result = await authenticator(kdc).authenticate(password("a"), "a")
    assert result == CannotTell("forged", AuthFailure.KDC_NOT_PROVEN)


async def test_principal_without_mailbox() -> None:
    result = await authenticator(Kdc(answer="a/admin@A.TEST")).authenticate(password("a"), "a")
    assert result == Rejected(AuthFailure.NOT_MAPPED)


async def test_a_password_that_was_right_a_moment_ago_is_right_while_the_kdc_is_silent() -> None:
    asked = Kdc(answer="alice@A.TEST")
    counted = {("kerberos", "hit"): 0.0, ("kerberos", "miss"): 0.0}
    clock = [0.0]
    kdc = RememberingKdc(asked, Remembered[str](30, clock=lambda: clock[0]), counted)
    assert await kdc.check("alice@A.TEST", Secret("a")) == "alice@A.TEST"
    asked.error = Unavailable("no answer", "kdc")
    assert await kdc.check("alice@A.TEST", Secret("a")) == "alice@A.TEST"
    for user, password in (("alice@A.TEST", "b"), ("bob@A.TEST", "a")):
        with pytest.raises(Unavailable):
            await kdc.check(user, Secret(password))
    clock[0] = 30.0
    with pytest.raises(Unavailable):
        await kdc.check("alice@A.TEST", Secret("a"))
    assert counted == {("kerberos", "hit"): 1, ("kerberos", "miss"): 4}
