"""PLAIN (RFC 4616): ``[authzid] NUL authcid NUL passwd`` in one response."""

from __future__ import annotations

from popproxy.sasl.credentials import PasswordCredential
from popproxy.sasl.mechanism import Challenge, SaslError, Step, Verify, decode_name
from popproxy.types import Mechanism, Secret


class Plain:
    """One PLAIN exchange. A third NUL stays in the password, where control characters are refused."""

    def step(self, response: bytes | None) -> Step:
        """The message, or an empty challenge asking for it."""
        if response is None:
            return Challenge(b"")
        parts = response.split(b"\0", 2)
        if len(parts) != 3:
            raise SaslError("PLAIN needs authzid, authcid and password, separated by NUL")
        authzid, authcid, password = parts
        return Verify(PasswordCredential(Mechanism.PLAIN, decode_name(authcid), Secret(password), decode_name(authzid)))
