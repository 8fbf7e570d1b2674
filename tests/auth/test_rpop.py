"""RPOP: trusted machines as in RFC 1081, and ids as in fetchmail's manual."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.auth.names import vet_name
from popproxy.auth.result import Accepted, CannotTell, Declined, Rejected
from popproxy.auth.rpop import RpopHostsAuthenticator, RpopIdAuthenticator, TrustedHosts, parse_hosts
from popproxy.errors import ConfigError, VaultError
from popproxy.sasl.credentials import PasswordCredential, RpopCredential
from popproxy.state.executors import BoundedExecutor
from popproxy.types import Address, Identity, Mechanism, Secret
from popproxy.vault.format import generate_key
from popproxy.vault.record import Record
from popproxy.vault.store import Vault
from tests.peers.hashes import ssha512

pytestmark = pytest.mark.usefixtures("quick_dummy")

HOSTS = """
# maildrop  machine         user there
Alice       192.0.2.3       ajones
alice       192.0.2.16/28   alice
bob         2001:db8::/32   bob
bob@x.org   10.0.0.1        bob
"""


def vet(name: str) -> str:
    return vet_name(name, "example.com", "fold")


def claim(argument: str, host: str = "192.0.2.3", user: str = "Alice") -> RpopCredential:
    return RpopCredential(user, Secret(argument), Address(host, 1000))


@pytest.fixture
def hosts(tmp_path: Path) -> TrustedHosts:
    (tmp_path / "hosts").write_text(HOSTS)
    return TrustedHosts.load(tmp_path / "hosts", vet)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    vault = Vault.create(tmp_path / "vault", Secret(generate_key()), recheck=0)
    vault.change({"alice": lambda record: record.with_rpop(Secret(ssha512("an id")))})
    vault.set("bob", Secret("a password"))
    return vault


@pytest.mark.parametrize(
    ("user", "host", "remote", "allowed"),
    [
        ("alice@example.com", "192.0.2.3", "ajones", True),
        ("alice@example.com", "192.0.2.3", "alice", False),
        ("alice@example.com", "192.0.2.17", "alice", True),
        ("alice@example.com", "192.0.2.32", "alice", False),
        ("alice@example.com", "192.0.2.3", "AJONES", False),
        ("alice@example.com", "2001:db8::1", "ajones", False),
        ("alice", "192.0.2.3", "ajones", False),
        ("bob@example.com", "2001:db8:1::1", "bob", True),
        ("bob@example.com", "2001:db8::1%eth0", "bob", True),
        ("bob@example.com", "2001:db9::1", "bob", False),
        ("bob@x.org", "10.0.0.1", "bob", True),
        ("carol@example.com", "192.0.2.3", "ajones", False),
    ],
)
async def test_who_is_trusted(
    hosts: TrustedHosts, executor: BoundedExecutor, user: str, host: str, remote: str, allowed: bool
) -> None:
    result = await RpopHostsAuthenticator(hosts, executor).authenticate(claim(remote, host), user)
    assert result == (Accepted(Identity(user, "Alice", Mechanism.RPOP)) if allowed else Rejected())


async def test_the_table_is_read_again(hosts: TrustedHosts, executor: BoundedExecutor, tmp_path: Path) -> None:
    judge = RpopHostsAuthenticator(hosts, executor)
    (tmp_path / "hosts").write_text("alice 192.0.2.4 ajones\n")
    hosts.file._next_look = 0
    assert await judge.authenticate(claim("ajones"), "alice@example.com") == Rejected()
    assert isinstance(await judge.authenticate(claim("ajones", "192.0.2.4"), "alice@example.com"), Accepted)


def test_every_mistake_in_the_table_is_told() -> None:
    text = b"alice\nalice 192.0.2.3\nalice 192.0.2.3/24 a\nalice here a\na\x07 192.0.2.3 a\n\xff 192.0.2.3 a\n"
    with pytest.raises(ConfigError) as caught:
        parse_hosts(text, "hosts", vet)
    assert [problem.where for problem in caught.value.problems] == [f"hosts:{line}" for line in range(1, 7)]
    assert all(problem.cure for problem in caught.value.problems)


@given(st.binary(max_size=100))
def test_any_table_is_read_or_refused(octets: bytes) -> None:
    try:
        parse_hosts(octets, "hosts", vet)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - one or the other


async def test_an_id_is_checked_by_its_hash(vault: Vault, executor: BoundedExecutor) -> None:
    judge = RpopIdAuthenticator(vault, executor)
    assert await judge.authenticate(claim("an id"), "alice") == Accepted(Identity("alice", "Alice", Mechanism.RPOP))
    for argument, user in [("another id", "alice"), ("", "alice"), ("a password", "bob"), ("an id", "nobody")]:
        assert await judge.authenticate(claim(argument), user) == Rejected()


async def test_passwords_are_declined(vault: Vault, hosts: TrustedHosts, executor: BoundedExecutor) -> None:
    password = PasswordCredential(Mechanism.USER, "alice", Secret("an id"))
    for judge in (RpopIdAuthenticator(vault, executor), RpopHostsAuthenticator(hosts, executor)):
        assert await judge.authenticate(password, "alice") == Declined()


async def test_a_vault_that_cannot_be_read_is_not_a_rejection(
    vault: Vault, executor: BoundedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(user: str) -> Record:
        raise VaultError("an entry of the vault has been altered")

    monkeypatch.setattr(vault, "record", fail)
    assert isinstance(await RpopIdAuthenticator(vault, executor).authenticate(claim("an id"), "alice"), CannotTell)


async def test_an_id_that_was_stored_damaged_is_not_a_rejection(vault: Vault, executor: BoundedExecutor) -> None:
    vault.change({"alice": lambda record: record.with_rpop(Secret("$argon2id$damaged"))})
    assert isinstance(await RpopIdAuthenticator(vault, executor).authenticate(claim("an id"), "alice"), CannotTell)
