"""What a server keeps of a password for SCRAM (RFC 5802 section 3): enough to check a proof, not enough to make one."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from popproxy.errors import PopproxyError
from popproxy.sasl.saslprep import saslprep
from popproxy.types import Mechanism, Secret

ITERATIONS: Final = 15_000
"""Of new verifiers: RFC 7677 section 4's rule of thumb. It is the client that has to do them, at each login."""
MIN_ITERATIONS: Final = 4096
"""RFC 5802 section 5.1 and RFC 7677 section 4: servers should announce no fewer, and clients refuse fewer."""
MAX_ITERATIONS: Final = 1_000_000
"""A phone needs a minute for these."""
SALT_SIZE: Final = 16
"""Octets of salt in new verifiers."""

SCHEMES: Final = (Mechanism.SCRAM_SHA_1, Mechanism.SCRAM_SHA_256)
"""The hashes; -PLUS uses the same verifiers."""
_HASHES = {Mechanism.SCRAM_SHA_1: "sha1", Mechanism.SCRAM_SHA_256: "sha256"}
_FORM = re.compile(r"\{(SCRAM-SHA-(?:1|256))\}([1-9][0-9]{0,8}),([^,]+),([^,]+),([^,]+)", re.IGNORECASE | re.ASCII)


class UnusableVerifier(PopproxyError):
    """A stored text that is no verifier we can use. The message never holds it."""


def scheme_of(mechanism: Mechanism) -> Mechanism:
    """The scheme whose verifiers a mechanism uses: SCRAM-SHA-256 for SCRAM-SHA-256-PLUS."""
    return Mechanism(mechanism.removesuffix("-PLUS"))


def hash_name(scheme: Mechanism) -> str:
    """Its hash function, as hashlib calls it."""
    return _HASHES[scheme]


@dataclass(frozen=True, slots=True)
class ScramVerifier:
    """A user's verifier; of a user who has none, a made-up one, which is not `genuine` and verifies nothing."""

    scheme: Mechanism
    salt: bytes
    iterations: int
    stored_key: Secret
    server_key: Secret
    genuine: bool = True

    def matches(self, password: bytes) -> bool:
        """Does the verifier belong to this password? Does all the iterations, so it belongs in a thread."""
        try:
            found = make_verifier(self.scheme, password, self.salt, self.iterations, stored=False)
        except UnusableVerifier:
            return False
        return self.genuine and found.stored_key == self.stored_key

    def __str__(self) -> str:
        """As it stands in a users file, in the form that Dovecot uses: ``{SCRAM-SHA-256}iterations,salt,keys``."""
        octets = (self.salt, self.stored_key.reveal(), self.server_key.reveal())
        encoded = ",".join(base64.b64encode(value).decode() for value in octets)
        return f"{{{self.scheme}}}{self.iterations},{encoded}"

    def __repr__(self) -> str:
        return f"ScramVerifier({self.scheme}, iterations={self.iterations})"


def make_verifier(
    scheme: Mechanism, password: bytes, salt: bytes, iterations: int = ITERATIONS, *, stored: bool = True
) -> ScramVerifier:
    """The verifier of a password in UTF-8, which is prepared by SASLprep first. Slow on purpose.

    Raises UnusableVerifier for a password that SCRAM cannot carry; `stored` is stricter, for one that is to be kept.
    """
    name = _HASHES[scheme]
    try:
        prepared = saslprep(password.decode("utf-8"), stored=stored).encode()
    except (UnicodeDecodeError, PopproxyError):
        raise UnusableVerifier("the password has characters that SCRAM does not allow") from None
    if not prepared:
        raise UnusableVerifier("the password is empty")
    salted = hashlib.pbkdf2_hmac(name, prepared, salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", name)
    stored_key = hashlib.new(name, client_key).digest()
    return ScramVerifier(scheme, salt, iterations, Secret(stored_key), Secret(hmac.digest(salted, b"Server Key", name)))


def looks_like_verifier(text: str) -> bool:
    """Does it begin like the text of a verifier?"""
    return text[:7].upper() == "{SCRAM-"


def parse_verifier(text: str) -> ScramVerifier:
    """The verifier in a text as `str` makes it, and as Dovecot and GNU SASL do. Raises UnusableVerifier."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise UnusableVerifier("not a SCRAM verifier of the form {SCRAM-SHA-256}iterations,salt,StoredKey,ServerKey")
    scheme, iterations = Mechanism(match[1].upper()), int(match[2])
    if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
        raise UnusableVerifier(f"{iterations} iterations; clients take {MIN_ITERATIONS} to {MAX_ITERATIONS}")
    try:
        salt, stored_key, server_key = (base64.b64decode(part, validate=True) for part in match.group(3, 4, 5))
    except (binascii.Error, ValueError):
        raise UnusableVerifier("the SCRAM verifier is damaged") from None
    size = hashlib.new(_HASHES[scheme]).digest_size
    if not 8 <= len(salt) <= 64 or len(stored_key) != size or len(server_key) != size:
        raise UnusableVerifier("the SCRAM verifier is damaged")
    return ScramVerifier(scheme, salt, iterations, Secret(stored_key), Secret(server_key))
