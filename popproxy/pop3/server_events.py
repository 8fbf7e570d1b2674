"""What the client-facing core has to say to whoever drives it."""

from __future__ import annotations

from dataclasses import dataclass

from popproxy.sasl.credentials import Credential
from popproxy.types import CloseReason, Mechanism


@dataclass(frozen=True, slots=True)
class CredentialOffered:
    """Somebody to be judged. The core waits for `login_accepted` or `login_failed`."""

    credential: Credential


@dataclass(frozen=True, slots=True)
class GssStepNeeded:
    """A GSS context must take `token`. The core waits for `sasl_step_done` or `login_failed`."""

    token: bytes


@dataclass(frozen=True, slots=True)
class VerifierNeeded:
    """SCRAM needs what is stored for `authcid`. The core waits for `verifier_found` or `login_failed`."""

    mechanism: Mechanism
    authcid: str


@dataclass(frozen=True, slots=True)
class ExchangeBroken:
    """The client has sent what SASL GSSAPI does not allow, and been told.

    `principal` is who it has proved to be, "" before that.
    """

    principal: str


@dataclass(frozen=True, slots=True)
class TlsRequested:
    """STLS was answered +OK and nothing was pipelined behind it: start TLS, then call `upgrade_to_tls`."""


@dataclass(frozen=True, slots=True)
class FrontSpoke:
    """A trusted front says by XCLIENT for whom it has come. The core waits for `introduced` or `not_introduced`."""

    arguments: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """The last reply is in `data_to_send`; send it and close."""

    reason: CloseReason


Event = CredentialOffered | GssStepNeeded | VerifierNeeded | ExchangeBroken | TlsRequested | FrontSpoke | Finished
