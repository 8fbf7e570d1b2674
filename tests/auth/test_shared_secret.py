"""APOP and CRAM-MD5 against a real vault."""

from __future__ import annotations

from pathlib import Path

import pytest

from popproxy.auth.result import Accepted, CannotTell, Declined, Rejected
from popproxy.auth.shared_secret import SharedSecretAuthenticator
from popproxy.errors import VaultError
from popproxy.sasl.credentials import ApopCredential, CramMd5Credential, PasswordCredential
from popproxy.types import Identity, Mechanism, Secret
from popproxy.vault.format import generate_key
from popproxy.vault.store import Vault

TIMESTAMP = b"<1896.697170952@dbc.mtview.ca.us>"
DIGEST = "c4c9334bac560ecc979e58001b3e22fb"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    vault = Vault.create(tmp_path / "vault", Secret(generate_key()), recheck=0)
    vault.set("mrose", Secret("tanstaaf"))
    return vault


def claim(digest: str = DIGEST, timestamp: bytes = TIMESTAMP) -> ApopCredential:
    return ApopCredential("mrose", timestamp, Secret(digest))


async def test_example_of_rfc_1939(vault: Vault) -> None:
    result = await SharedSecretAuthenticator(vault).authenticate(claim(), "mrose")
    assert result == Accepted(Identity("mrose", "mrose", Mechanism.APOP))


async def test_any_other_digest_timestamp_or_user_is_rejected(vault: Vault) -> None:
    authenticator = SharedSecretAuthenticator(vault)
    for position in range(32):
        wrong = DIGEST[:position] + ("0" if DIGEST[position] != "0" else "1") + DIGEST[position + 1 :]
        assert await authenticator.authenticate(claim(wrong), "mrose") == Rejected()
    assert await authenticator.authenticate(claim(timestamp=b"<1@dbc.mtview.ca.us>"), "mrose") == Rejected()
    assert await authenticator.authenticate(claim(DIGEST[:31]), "mrose") == Rejected()
    assert await authenticator.authenticate(claim(""), "mrose") == Rejected()
    vault.set("other", Secret("otherwise"))
    assert await authenticator.authenticate(claim(), "other") == Rejected()
    assert await authenticator.authenticate(claim(), "nobody") == Rejected()


async def test_example_of_rfc_2195(vault: Vault) -> None:
    vault.set("tim", Secret("tanstaaftanstaaf"))
    challenge, digest = b"<1896.697170952@postoffice.reston.mci.net>", Secret("b913a602c7eda7a495b4e6e7334d3890")
    authenticator = SharedSecretAuthenticator(vault)
    right = CramMd5Credential("Tim", challenge, digest)
    assert await authenticator.authenticate(right, "tim") == Accepted(Identity("tim", "Tim", Mechanism.CRAM_MD5))
    assert await authenticator.authenticate(right, "mrose") == Rejected()
    assert await authenticator.authenticate(right, "nobody") == Rejected()
    as_apop = ApopCredential("tim", challenge, digest)
    assert await authenticator.authenticate(as_apop, "tim") == Rejected()
    assert await authenticator.authenticate(CramMd5Credential("tim", b"<2@x>", digest), "tim") == Rejected()


async def test_user_of_whom_only_verifiers_are_kept_is_rejected(vault: Vault) -> None:
    vault.change({"mrose": lambda record: record.with_verifiers(Secret("tanstaaf"))})
    assert await SharedSecretAuthenticator(vault).authenticate(claim(), "mrose") == Rejected()


async def test_passwords_are_declined(vault: Vault) -> None:
    credential = PasswordCredential(Mechanism.USER, "mrose", Secret("tanstaaf"))
    assert await SharedSecretAuthenticator(vault).authenticate(credential, "mrose") == Declined()


async def test_secret_changed_by_another_process_counts_at_once(vault: Vault, tmp_path: Path) -> None:
    authenticator = SharedSecretAuthenticator(vault)
    assert isinstance(await authenticator.authenticate(claim(), "mrose"), Accepted)
    Vault.open(tmp_path / "vault", vault._key).remove("mrose")
    assert await authenticator.authenticate(claim(), "mrose") == Rejected()


async def test_vault_that_cannot_be_read_is_not_a_rejection(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(user: str) -> Secret:
        raise VaultError("an entry of the vault has been altered")

    monkeypatch.setattr(vault, "get", fail)
    result = await SharedSecretAuthenticator(vault).authenticate(claim(), "mrose")
    assert result == CannotTell("vault: an entry of the vault has been altered")
