"""CRAM-MD5 (RFC 2195): a challenge of ours, the client's name and HMAC-MD5 of the challenge. Obsolete, still met."""

from __future__ import annotations

import hmac
import re

from popproxy.sasl.credentials import CramMd5Credential
from popproxy.sasl.mechanism import Challenge, SaslError, Step, Verify, decode_name
from popproxy.types import Secret

_DIGEST = re.compile(rb"[0-9A-Fa-f]{32}")


def digest(challenge: bytes, secret: Secret) -> Secret:
    """HMAC-MD5 of the challenge, keyed with the secret, as lower-case hex; MD5 is the protocol's choice, not ours."""
    return Secret(hmac.new(secret.reveal(), challenge, "md5").hexdigest())


class CramMd5:
    """One CRAM-MD5 exchange. `challenge` has the form of an APOP timestamp and must be as fresh and unguessable."""

    def __init__(self, challenge: bytes) -> None:
        self._challenge = challenge
        self._asked = False

    def step(self, response: bytes | None) -> Step:
        """The server speaks first: an initial response is an error (RFC 5034 section 4)."""
        if not self._asked:
            if response is not None:
                raise SaslError("CRAM-MD5 has no initial response")
            self._asked = True
            return Challenge(self._challenge)
        name, space, hexdigits = (response or b"").rpartition(b" ")
        if not space or not name or not _DIGEST.fullmatch(hexdigits):
            raise SaslError("CRAM-MD5 needs a name and a digest of 32 hex digits")
        return Verify(CramMd5Credential(decode_name(name), self._challenge, Secret(hexdigits.lower())))
