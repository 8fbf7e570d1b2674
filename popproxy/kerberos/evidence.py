"""What a client has shown, kept for the time of its login: the KDC takes the ticket in it for the user's consent.

The replay cache has passed it once; only `popproxy.kerberos.delegation` looks at it again.
"""

from __future__ import annotations

from typing import Final

_KRB5_OID: Final = bytes.fromhex("06092a864886f712010202")
_AP_REQ: Final = b"\x01\x00"  # token id (RFC 4121 section 4.1)


class Evidence:
    """A client's first GSSAPI token; `target` is the principal of ours that it was for."""

    __slots__ = ("_token", "target")

    def __init__(self, token: bytes, target: str) -> None:
        self._token: bytes | None = token
        self.target = target

    @property
    def token(self) -> bytes | None:
        """The token; None once it has been cleared."""
        return self._token

    def clear(self) -> None:
        """The login is over."""
        self._token = None

    def __repr__(self) -> str:
        return "Evidence(****)"


def gss_framed(ap_req: bytes) -> bytes:
    """An AP-REQ (KPOP brings it bare) as the first token of GSSAPI's Kerberos mechanism (RFC 2743 section 3.1)."""
    inner = _KRB5_OID + _AP_REQ + ap_req
    length = len(inner)
    if length < 0x80:
        return b"\x60" + bytes([length]) + inner
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return b"\x60" + bytes([0x80 | len(octets)]) + octets + inner
