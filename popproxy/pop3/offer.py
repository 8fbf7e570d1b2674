"""What a client may do before its login, and the answer to CAPA that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from popproxy.pop3.capabilities import Capabilities
from popproxy.sasl.mechanism import SaslMechanism
from popproxy.types import Address


@dataclass(frozen=True, slots=True)
class Offer:
    """What this connection may do now; it changes once, when TLS starts.

    `passwords`: USER/PASS are taken. `mechanisms`: SASL name → factory. `timestamp`: APOP's, None where APOP is off.
    `rpop`: where the client is, None where RPOP is off or not for this client; it has no capability. `xclient`: the
    peer is a front that may say for whom it has come; the greeting tells it so.
    """

    passwords: bool
    mechanisms: Mapping[str, Callable[[], SaslMechanism]] = field(default_factory=dict)
    timestamp: bytes | None = None
    rpop: Address | None = None
    stls: bool = False
    xclient: bool = False
    backend: Capabilities = field(default_factory=dict)
    implementation: str = "popproxy"

    def capabilities(self) -> dict[str, tuple[str, ...]]:
        """The CAPA list of this moment (RFC 2449): nothing that would be refused."""
        found: dict[str, tuple[str, ...]] = dict(self.backend)
        if self.passwords:
            found["USER"] = ()
        if self.mechanisms:
            found["SASL"] = tuple(self.mechanisms)
        if self.stls:
            found["STLS"] = ()
        found |= {"RESP-CODES": (), "AUTH-RESP-CODE": (), "PIPELINING": (), "IMPLEMENTATION": (self.implementation,)}
        return found
