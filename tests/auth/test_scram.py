"""Where SCRAM's verifiers come from, and that nobody can tell who has none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from popproxy.auth.accounts import Accounts
from popproxy.auth.result import Accepted, Declined, Rejected
from popproxy.auth.scram import ScramAuthenticator, ScramVerifiers, UsersFileVerifiers, VaultVerifiers
from popproxy.auth.users_file import UsersFile
from popproxy.errors import Unavailable, VaultError
from popproxy.sasl.credentials import PasswordCredential, ScramCredential
from popproxy.sasl.scram_verifier import ITERATIONS, SALT_SIZE, make_verifier
from popproxy.state.executors import BoundedExecutor
from popproxy.types import AuthFailure, Identity, Mechanism, Secret
from popproxy.vault.format import generate_key
from popproxy.vault.record import VERIFIER_ITERATIONS, Record
from popproxy.vault.store import Vault

SHA_1, SHA_256, PLUS = Mechanism.SCRAM_SHA_1, Mechanism.SCRAM_SHA_256, Mechanism.SCRAM_SHA_256_PLUS
EVERYBODY: Callable[[str], bool] = lambda _: True  # noqa: E731
KEY = Secret("0123456789abcdef")


def line(user: str, password: str, scheme: Mechanism = SHA_256, iterations: int = 5000, salt: int = 12) -> str:
    return f"{user}:{make_verifier(scheme, password.encode(), os.urandom(salt), iterations)}\n"


@pytest.fixture
def users(tmp_path: Path) -> UsersFile:
    path = tmp_path / "users"
    path.write_text(line("alice", "pencil") + line("carol", "pencil", SHA_1) + "dave:!\nerin:CCX.K.MFy4Ois\n")
    return UsersFile.load(path, str.lower, recheck=0)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    vault = Vault.create(tmp_path / "vault", Secret(generate_key()), recheck=0)
    vault.set("alice", Secret("another"))
    vault.set("bob", Secret("pencil"))
    vault.set("dave", Secret("pencil"))
    return vault


@pytest.fixture
def verifiers(users: UsersFile, vault: Vault, executor: BoundedExecutor) -> ScramVerifiers:
    return ScramVerifiers(
        KEY, [UsersFileVerifiers(users, executor, EVERYBODY), VaultVerifiers(vault)], Accounts(users, executor)
    )


async def test_the_first_source_that_knows_the_user_decides(verifiers: ScramVerifiers) -> None:
    assert (await verifiers.find(SHA_256, "alice")).matches(b"pencil")
    assert (await verifiers.find(PLUS, "alice")).matches(b"pencil")
    assert (await verifiers.find(SHA_256, "bob")).matches(b"pencil")
    assert (await verifiers.find(SHA_1, "alice")).matches(b"another")  # the file has none of this scheme


@pytest.mark.parametrize(("user", "mechanism"), [("nobody", SHA_256), ("erin", SHA_1), ("dave", SHA_256), ("", SHA_1)])
async def test_who_has_no_verifier_gets_one_that_verifies_nothing(
    verifiers: ScramVerifiers, user: str, mechanism: Mechanism
) -> None:
    found = await verifiers.find(mechanism, user)
    assert not found.genuine
    assert found.scheme is mechanism


async def test_users_whose_passwords_others_judge_are_not_looked_up_in_the_file(
    users: UsersFile, executor: BoundedExecutor
) -> None:
    verifiers = ScramVerifiers(KEY, [UsersFileVerifiers(users, executor, lambda user: user != "alice")], None)
    assert not (await verifiers.find(SHA_256, "alice")).genuine


async def test_a_made_up_salt_is_the_same_in_every_process(verifiers: ScramVerifiers) -> None:
    again = ScramVerifiers(Secret(KEY.reveal()), [], None)
    for user in ("nobody", "\udcff", "x" * 300):
        found, other = await verifiers.find(SHA_256, user), await again.find(SHA_256, user)
        assert found.salt[:12] == other.salt[:12]
    salts = {(await verifiers.find(mechanism, f"nobody{n}")).salt for n in range(50) for mechanism in (SHA_1, SHA_256)}
    assert len(salts) == 100
    stranger = ScramVerifiers(Secret("fedcba9876543210"), [], None)
    assert (await stranger.find(SHA_256, "nobody")).salt != (await again.find(SHA_256, "nobody")).salt


async def test_made_up_verifiers_look_like_those_that_there_are(verifiers: ScramVerifiers) -> None:
    found = [await verifiers.find(SHA_256, f"nobody{n}") for n in range(300)]
    shapes = Counter((len(verifier.salt), verifier.iterations) for verifier in found)
    assert set(shapes) == {(12, 5000), (SALT_SIZE, VERIFIER_ITERATIONS)}
    assert min(shapes.values()) > 50
    again = [await verifiers.find(SHA_256, f"nobody{n}") for n in range(300)]
    assert [verifier.salt for verifier in found] == [verifier.salt for verifier in again]


async def test_a_vault_without_verifiers_lends_no_shape(
    tmp_path: Path, users: UsersFile, executor: BoundedExecutor
) -> None:
    vault = Vault.create(tmp_path / "empty", Secret(generate_key()), recheck=0)
    verifiers = ScramVerifiers(
        KEY, [UsersFileVerifiers(users, executor, EVERYBODY), VaultVerifiers(vault)], Accounts(users, executor)
    )
    assert {(await verifiers.find(SHA_256, f"nobody{n}")).iterations for n in range(50)} == {5000}
    vault.set("bob", Secret("pencil"))
    assert {(await verifiers.find(SHA_256, f"nobody{n}")).iterations for n in range(50)} == {5000, VERIFIER_ITERATIONS}


async def test_without_any_verifier_the_shape_is_that_of_new_ones() -> None:
    found = await ScramVerifiers(KEY, [], None).find(SHA_256, "nobody")
    assert (len(found.salt), found.iterations) == (SALT_SIZE, ITERATIONS)


async def test_long_salts_are_made_up_too(tmp_path: Path, executor: BoundedExecutor) -> None:
    path = tmp_path / "users"
    path.write_text(line("alice", "pencil", salt=64))
    users = UsersFile.load(path, str.lower)
    found = await ScramVerifiers(KEY, [UsersFileVerifiers(users, executor, EVERYBODY)], Accounts(users, executor)).find(
        SHA_256, "nobody"
    )
    assert len(found.salt) == 64


async def test_an_account_that_is_disabled_later_has_no_verifier_any_more(
    verifiers: ScramVerifiers, tmp_path: Path
) -> None:
    assert (await verifiers.find(SHA_256, "bob")).genuine
    (tmp_path / "users").write_text("bob:!\n")
    assert not (await verifiers.find(SHA_256, "bob")).genuine


async def test_a_vault_that_cannot_be_read_is_unavailable(
    verifiers: ScramVerifiers, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(user: str) -> Record:
        raise VaultError("an entry of the vault has been altered")

    monkeypatch.setattr(vault, "record", fail)
    with pytest.raises(Unavailable):
        await verifiers.find(SHA_256, "bob")
    assert (await verifiers.find(SHA_256, "alice")).genuine, "the users file has her"


async def test_the_proof_decides() -> None:
    judge = ScramAuthenticator()
    proven = ScramCredential(PLUS, "Alice")
    assert await judge.authenticate(proven, "alice") == Accepted(Identity("alice", "Alice", PLUS))
    for fault in (AuthFailure.BAD_CREDENTIALS, AuthFailure.CHANNEL_BINDING, AuthFailure.MALFORMED):
        assert await judge.authenticate(ScramCredential(PLUS, "alice", fault=fault), "alice") == Rejected(fault)
    password = PasswordCredential(Mechanism.PLAIN, "alice", Secret("x"))
    assert await judge.authenticate(password, "alice") == Declined()
