"""Pass-through: the backend's answer to the client's own password decides."""

from __future__ import annotations

from popproxy.auth.result import Accepted, AuthResult, Declined, Prospect
from popproxy.sasl.credentials import Credential, PasswordCredential
from popproxy.types import Identity, Mechanism, Step


class PassThrough:
    """Accepts every password, with an identity that is not proven until the backend has accepted it too."""

    name = "passthrough"

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator."""
        if not isinstance(credential, PasswordCredential):
            return Declined()
        return Accepted(Identity(user, credential.authcid, credential.mechanism, proven=False))

    def prospect(self, user: str) -> Prospect:
        """See Foretelling."""
        return Prospect(Step("passthrough: the server decides"), Identity(user, user, Mechanism.USER, proven=False))
