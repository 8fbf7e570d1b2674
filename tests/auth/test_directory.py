"""What a directory says, as an answer of the chain."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from popproxy.auth.directory import DirectoryAuthenticator
from popproxy.auth.names import vet_name
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Declined, Rejected
from popproxy.directories.entry import Answer, Entry, Refused
from popproxy.directories.measured import Measured
from popproxy.errors import Unavailable
from popproxy.observe.metrics import Metrics
from popproxy.sasl.credentials import ApopCredential, PasswordCredential
from popproxy.types import AuthFailure, Identity, Location, Mechanism, Secret, Visit

PASSWORD = PasswordCredential(Mechanism.PLAIN, "Alice", Secret("pw"))
STRANGER = Refused(stranger=True)
LOCKED = Refused(AuthFailure.ACCOUNT_LOCKED)


@dataclass
class Says:
    """A directory with one answer."""

    answer: Answer | Unavailable
    name: str = "corp"
    kind: str = "ldap"
    asked: list[tuple[str, bytes]] = field(default_factory=list)

    async def verify(self, user: str, password: Secret, visit: Visit | None = None) -> Answer:
        self.asked.append((user, password.reveal()))
        return await self.find(user)

    async def find(self, user: str) -> Answer:
        if isinstance(self.answer, Unavailable):
            raise self.answer
        return self.answer


async def judge(answer: Answer | Unavailable, *, decisive: bool = True) -> AuthResult:
    directory = Says(answer)
    authenticator = DirectoryAuthenticator(directory, lambda name: vet_name(name, None, "fold"), decisive=decisive)
    result = await authenticator.authenticate(PASSWORD, "alice")
    assert directory.asked == [("alice", b"pw")]
    return result


def identity(user: str = "alice", location: Location | None = None) -> Accepted:
    return Accepted(Identity(user, "Alice", Mechanism.PLAIN, location=location))


async def test_accepted_under_the_own_name_or_the_one_that_the_directory_has() -> None:
    location = Location(pool="main")
    assert await judge(Entry()) == identity()
    assert await judge(Entry("Alice.Jones@Example.com", location)) == identity("alice.jones@example.com", location)


@pytest.mark.parametrize(
    ("answer", "decisive", "result"),
    [
        (LOCKED, True, Rejected(AuthFailure.ACCOUNT_LOCKED)),
        (LOCKED, False, Rejected(AuthFailure.ACCOUNT_LOCKED)),
        (STRANGER, True, Rejected(AuthFailure.BAD_CREDENTIALS)),
        (STRANGER, False, Declined()),
    ],
)
async def test_refused(answer: Refused, decisive: bool, result: AuthResult) -> None:
    assert await judge(answer, decisive=decisive) == result


async def test_out_of_order_is_no_refusal() -> None:
    assert await judge(Unavailable("corp: down")) == CannotTell("directory corp: down")


@pytest.mark.parametrize("mailbox", ["a\r\nDELE 1", "\ufffe", "x" * 300])
async def test_a_mailbox_that_cannot_be_is_the_directorys_fault(mailbox: str) -> None:
    assert isinstance(await judge(Entry(mailbox)), CannotTell)


async def test_only_passwords_are_judged() -> None:
    directory = Says(Entry())
    authenticator = DirectoryAuthenticator(directory, str, decisive=True)
    apop = ApopCredential("alice", b"<1@x>", Secret("0" * 32))
    assert await authenticator.authenticate(apop, "alice") == Declined()
    assert directory.asked == []


async def test_every_answer_is_measured() -> None:
    metrics = Metrics(["pop3"], [], ["corp"])
    for answer in (Entry(), STRANGER, LOCKED, Unavailable("down")):
        directory = Measured(Says(answer), metrics)
        for asked in (directory.verify("alice", Secret("pw")), directory.find("alice")):
            try:
                await asked
            except Unavailable:
                assert isinstance(answer, Unavailable)
    counts = {
        key[1]: sum(histogram.counts()[0])
        for key, histogram in metrics.directory_duration.series.items()
        if isinstance(key, tuple)
    }
    assert counts == {"found": 2, "unknown": 2, "refused": 2, "unavailable": 2}
