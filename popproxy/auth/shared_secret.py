"""APOP (RFC 1939 section 7) and CRAM-MD5 (RFC 2195) against the secrets of the vault."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from popproxy.auth.result import Accepted, AuthResult, CannotTell, Declined, Rejected
from popproxy.errors import VaultError
from popproxy.sasl import apop, cram_md5
from popproxy.sasl.credentials import ApopCredential, CramMd5Credential, Credential
from popproxy.types import AuthFailure, Identity, Secret

if TYPE_CHECKING:
    from popproxy.vault.store import Vault


class SharedSecretAuthenticator:
    """Judges digests. A user without a secret costs the same work as one with a wrong digest."""

    name = "vault"

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._nobody = Secret(secrets.token_bytes(16))

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator. CannotTell if the vault cannot be read."""
        if not isinstance(credential, ApopCredential | CramMd5Credential):
            return Declined()
        try:
            secret = self._vault.get(user)
        except VaultError as error:
            return CannotTell(f"vault: {error}")
        expected = _digest(credential, self._nobody if secret is None else secret)
        matches = expected == credential.digest  # in constant time
        if secret is None or not matches:
            return Rejected(AuthFailure.BAD_CREDENTIALS)
        return Accepted(Identity(user, credential.authcid, credential.mechanism))


def _digest(credential: ApopCredential | CramMd5Credential, secret: Secret) -> Secret:
    if isinstance(credential, ApopCredential):
        return apop.digest(credential.timestamp, secret)
    return cram_md5.digest(credential.challenge, secret)
