"""What several authenticators decide together, as a table over every triple of answers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from popproxy.auth.chain import ByDomain, Chain
from popproxy.auth.passthrough import PassThrough
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Declined, Rejected
from popproxy.sasl.credentials import ApopCredential, Credential, PasswordCredential
from popproxy.types import AuthFailure, Identity, Mechanism, Secret

PASSWORD = PasswordCredential(Mechanism.USER, "Alice", Secret("pw"))
APOP = ApopCredential("alice", b"<1@x>", Secret("0" * 32))


@dataclass
class Says:
    """An authenticator with one answer."""

    result: AuthResult
    name: str = "says"
    asked: int = 0

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        self.asked += 1
        return self.result


def accepted(proven: bool, by: int) -> Accepted:
    return Accepted(Identity(f"user{by}", "u", Mechanism.USER, proven))


ANSWERS = {"A": 0, "p": 0, "R": 0, "?": 0, "-": 0}


def answer(letter: str, position: int) -> AuthResult:
    match letter:
        case "A":
            return accepted(True, position)
        case "p":
            return accepted(False, position)
        case "R":
            return Rejected(AuthFailure.BAD_CREDENTIALS)
        case "?":
            return CannotTell(f"out of order {position}")
    return Declined()


def expected(letters: tuple[str, ...]) -> tuple[str, int]:
    """The rule in other words: strike those that decline; the rest reads as one of these patterns."""
    asked = [(letter, position) for position, letter in enumerate(letters) if letter != "-"]
    if not asked:
        return "R", -1
    first, where = asked[0]
    if first != "?":
        return first, where
    decided = next(((letter, position) for letter, position in asked if letter != "?"), ("?", where))
    return decided if decided[0] == "A" else ("?", where)


@pytest.mark.parametrize("letters", list(itertools.product(ANSWERS, repeat=3)), ids="".join)
async def test_truth_table(letters: tuple[str, ...]) -> None:
    members = [Says(answer(letter, position)) for position, letter in enumerate(letters)]
    result = await Chain(members).authenticate(PASSWORD, "alice")
    letter, position = expected(letters)
    assert result == answer(letter, position)


async def test_nobody_is_asked_after_the_decision() -> None:
    first, second = Says(Rejected()), Says(accepted(True, 1))
    assert await Chain([first, second]).authenticate(PASSWORD, "alice") == Rejected()
    assert (first.asked, second.asked) == (1, 0)


async def test_out_of_order_then_rejected_is_out_of_order() -> None:
    assert await Chain([Says(CannotTell("down")), Says(Rejected())]).authenticate(PASSWORD, "a") == CannotTell("down")


async def test_out_of_order_then_passthrough_does_not_hand_the_password_to_the_backend() -> None:
    assert await Chain([Says(CannotTell("down")), PassThrough()]).authenticate(PASSWORD, "a") == CannotTell("down")


async def test_empty_chain_rejects() -> None:
    assert await Chain([]).authenticate(PASSWORD, "alice") == Rejected(AuthFailure.BAD_CREDENTIALS)


async def test_passthrough_accepts_passwords_unproven_and_declines_the_rest() -> None:
    result = await PassThrough().authenticate(PASSWORD, "alice")
    assert result == Accepted(Identity("alice", "Alice", Mechanism.USER, proven=False))
    assert await PassThrough().authenticate(APOP, "alice") == Declined()
    assert await Chain([PassThrough()]).authenticate(APOP, "alice") == Rejected()


@pytest.mark.parametrize(
    ("user", "domain"),
    [
        ("alice@a.example", "a"), ("alice@A.Example", "a"), ("x@y@a.example", "a"), ("alice@b.example", "others"),
        ("alice", "others"), ("a.example", "others"), ("alice@sub.a.example", "others"), ("alice@", "others"),
    ],
)  # fmt: skip
async def test_users_of_a_domain_have_a_chain_of_their_own(user: str, domain: str) -> None:
    chains = {"a": Says(accepted(True, 1)), "others": Says(Rejected())}
    await ByDomain({"a.example": chains["a"]}, chains["others"]).authenticate(PASSWORD, user)
    assert {name: chain.asked for name, chain in chains.items()} == {"a": 0, "others": 0, domain: 1}
