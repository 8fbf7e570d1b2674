"""LOGIN (draft-murchison-sasl-login): the name, then the password. Obsolete, and still what many clients speak."""

from __future__ import annotations

from popproxy.sasl.credentials import PasswordCredential
from popproxy.sasl.mechanism import Challenge, Step, Verify, decode_name
from popproxy.types import Mechanism, Secret


class Login:
    """One LOGIN exchange. An initial response, which some clients send, is the name."""

    def __init__(self) -> None:
        self._authcid: bytes | None = None

    def step(self, response: bytes | None) -> Step:
        """``Username:`` and ``Password:`` are what clients look for, so the challenges say just that."""
        if response is None:
            return Challenge(b"Username:")
        if self._authcid is None:
            self._authcid = response
            return Challenge(b"Password:")
        return Verify(PasswordCredential(Mechanism.LOGIN, decode_name(self._authcid), Secret(response)))
