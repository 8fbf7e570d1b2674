"""SASL EXTERNAL: from a client certificate that TLS has verified to a user."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509

from popproxy.auth.certificate_names import CertificateRule
from popproxy.auth.names import NameRefused
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Rejected
from popproxy.auth.revocation import RevocationLists
from popproxy.errors import Unavailable
from popproxy.sasl.credentials import CertificateCredential
from popproxy.types import AuthFailure, Identity

Vet = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class CertificateProver:
    """Judges certificates by `rules`, tried in order: the first that finds a user decides.

    TLS has checked who issued the certificate; its dates and its revocation are looked at here once more, for a resumed
    TLS session is older than this login. `vet` makes names canonical, and raises NameRefused.
    """

    rules: Sequence[CertificateRule]
    vet: Vet
    revocation: RevocationLists | None = None
    name: str = "certificate"

    async def prove(self, credential: CertificateCredential) -> AuthResult:
        """See Prover."""
        try:
            certificate = x509.load_der_x509_certificate(credential.certificate)
            now = time.time()
            if not certificate.not_valid_before_utc.timestamp() <= now < certificate.not_valid_after_utc.timestamp():
                return Rejected(AuthFailure.CERTIFICATE)
            if self.revocation is not None and await self.revocation.revoked(certificate):
                return Rejected(AuthFailure.CERTIFICATE)
            user = self._user(certificate, credential.authzid)
        except Unavailable as error:
            return CannotTell(f"certificates: {error}")
        except NameRefused as refused:
            return Rejected(refused.reason)
        except ValueError:  # cryptography: a part of it that TLS has not looked at is no ASN.1
            return Rejected(AuthFailure.MALFORMED)
        return Accepted(Identity(user, credential.authzid or user, credential.mechanism))

    def _user(self, certificate: x509.Certificate, wanted: str) -> str:
        """Raises NameRefused."""
        users = next((found for rule in self.rules if (found := rule.users(certificate))), [])
        if not users:
            raise NameRefused(AuthFailure.NOT_MAPPED)
        canonical = dict.fromkeys(self.vet(user) for user in users)
        if wanted:
            chosen = self.vet(wanted)
            if chosen not in canonical:
                raise NameRefused(AuthFailure.AUTHZID)
            return chosen
        if len(canonical) > 1:  # several users share it, and the client has not said which one it is
            raise NameRefused(AuthFailure.AUTHZID)
        return next(iter(canonical))
