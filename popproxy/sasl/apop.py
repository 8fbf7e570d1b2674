"""APOP (RFC 1939 section 7): its timestamps and its digest, for both sides of the proxy."""

from __future__ import annotations

import hashlib
import re

from popproxy.sasl.credentials import ApopCredential
from popproxy.sasl.mechanism import SaslError, decode_name
from popproxy.types import Secret

_DIGEST = re.compile(rb"[0-9A-Fa-f]{32}")
# msg-id of RFC 5322 section 3.6.4, dot-atoms or a domain literal: what a colliding challenge (CVE-2007-1558) cannot be
_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_MSG_ID = re.compile(
    rb"<" + _ATOM + rb"(?:\." + _ATOM + rb")*@(?:" + _ATOM + rb"(?:\." + _ATOM + rb")*|\[[!-Z^-~]*\])>"
)


def make_timestamp(unique: str, host: str) -> bytes:
    """``<unique@host>``. `unique` must be fresh and unguessable: the caller draws at least 128 random bits in hex.

    Raises ValueError for a host that cannot stand in a msg-id.
    """
    timestamp = f"<{unique}@{host}>".encode("ascii")
    if not _MSG_ID.fullmatch(timestamp):
        raise ValueError(f"{host!r} cannot stand in an APOP timestamp")
    return timestamp


def find_timestamp(greeting: bytes) -> bytes | None:
    """The timestamp in a server's greeting, or None if there is none that is a proper msg-id."""
    match = _MSG_ID.search(greeting)
    return match[0] if match else None


def digest(timestamp: bytes, secret: Secret) -> Secret:
    """MD5 of timestamp and secret as lower-case hex, as the RFC asks; MD5 is the protocol's choice, not ours."""
    return Secret(hashlib.md5(timestamp + secret.reveal(), usedforsecurity=False).hexdigest())


def parse(text: bytes, timestamp: bytes) -> ApopCredential:
    """The argument of APOP, ``name digest``. Raises SaslError."""
    name, space, hexdigits = text.strip(b" ").rpartition(b" ")
    if not space or not name or not _DIGEST.fullmatch(hexdigits):
        raise SaslError("APOP needs a name and a digest of 32 hex digits")
    return ApopCredential(decode_name(name.strip(b" ")), timestamp, Secret(hexdigits.lower()))
