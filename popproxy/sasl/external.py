"""EXTERNAL (RFC 4422 appendix A): TLS has asked for a certificate already; the client only says whom it wants to be."""

from __future__ import annotations

from typing import Final

from popproxy.sasl.credentials import CertificateCredential
from popproxy.sasl.mechanism import Challenge, SaslError, Step, Verify, decode_name

MAX_AUTHZID: Final = 1024
"""Octets. Names are vetted later; this keeps nonsense out of there."""


class External:
    """One EXTERNAL exchange on a connection whose client has shown `certificate` (DER), which TLS has verified."""

    def __init__(self, certificate: bytes) -> None:
        self._certificate = certificate

    def step(self, response: bytes | None) -> Step:
        """The authorization identity, perhaps empty; or an empty challenge asking for it."""
        if response is None:
            return Challenge(b"")
        if len(response) > MAX_AUTHZID or b"\0" in response:
            raise SaslError("malformed authorization identity")
        return Verify(CertificateCredential(self._certificate, decode_name(response)))
