"""The GS2 header (RFC 5801 section 4) that SCRAM and OAUTHBEARER begin with: channel binding flag and authzid."""

from __future__ import annotations

import re
from dataclasses import dataclass

from popproxy.sasl.mechanism import SaslError

_HEADER = re.compile(rb"(?:(?P<flag>[ny])|p=(?P<binding>[A-Za-z0-9.-]{1,64})),(?:a=(?P<authzid>[^,\0]{1,1024}))?,")
_NAME = re.compile(r"(?:[^=,\0]|=2C|=3D)+")


@dataclass(frozen=True, slots=True)
class Gs2Header:
    """`octets` as they came, with the last comma; `authzid` is "" if there is none.

    `flag` is n (no channel binding), y (the client could, and thinks that we cannot) or p (it has used `binding`).
    """

    octets: bytes
    flag: str
    binding: str
    authzid: str


def parse_header(message: bytes) -> Gs2Header | None:
    """The header at the beginning of `message`; None if there is none. Raises SaslError for a malformed authzid."""
    match = _HEADER.match(message)
    if match is None:
        return None
    flag, binding, authzid = match["flag"], match["binding"], match["authzid"]
    return Gs2Header(
        match[0],
        (flag or b"p").decode("ascii"),
        (binding or b"").decode("ascii"),
        "" if authzid is None else decode_saslname(authzid),
    )


def decode_saslname(raw: bytes) -> str:
    """A name in which "," and "=" are written =2C and =3D. Raises SaslError."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise SaslError("a name is not UTF-8", b"e=invalid-encoding") from None
    if not _NAME.fullmatch(text):
        raise SaslError("a name is not encoded as it should be", b"e=invalid-username-encoding")
    return text.replace("=2C", ",").replace("=3D", "=")


def encode_saslname(name: bytes) -> bytes:
    """The reverse."""
    return name.replace(b"=", b"=3D").replace(b",", b"=2C")
