"""Password hashes: made as argon2id, verified in every form that a file from an older system may hold.

A stored hash is ``$argon2id$...``, ``$2b$...``, ``$6$...`` and so on as crypt(5) writes them, or the same behind a
Dovecot prefix (``{BLF-CRYPT}``, ``{CRYPT}``), or an LDAP form (``{SSHA}``, RFC 2307 and its descendants), or a SCRAM
verifier (``{SCRAM-SHA-256}``).
Everything here may take long and belongs in a BoundedExecutor; the interpreter lock is released during the work.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import argon2
import bcrypt

from popproxy.auth import libcrypt
from popproxy.errors import PopproxyError, Unavailable
from popproxy.sasl.scram_verifier import (
    ITERATIONS,
    SALT_SIZE,
    SCHEMES,
    UnusableVerifier,
    make_verifier,
    parse_verifier,
)
from popproxy.types import Mechanism

_BCRYPT_LIMIT = 72  # octets of a password that bcrypt looks at

_HASHER = argon2.PasswordHasher.from_parameters(argon2.profiles.RFC_9106_LOW_MEMORY)
"""RFC 9106 section 4, second recommended option: argon2id, 64 MiB, 3 passes, 4 lanes, 16 octets of salt."""


class UnknownHash(PopproxyError):
    """A stored value that is not a password hash we verify. Tells what is wrong and the cure, never the value."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(f"{what}; {cure}")
        self.what = what
        self.cure = cure


def hash_password(password: bytes) -> str:
    """An argon2id hash with a fresh salt, in the PHC string format. Takes some 0.1 s and 64 MiB."""
    return _HASHER.hash(password)


def scram_verifier(password: bytes, scheme: Mechanism, iterations: int = ITERATIONS) -> str:
    """A SCRAM verifier with a fresh salt, as it stands in a users file. Raises UnusableVerifier."""
    return str(make_verifier(scheme, password, secrets.token_bytes(SALT_SIZE), iterations))


def verify(password: bytes, stored: str) -> bool:
    """Does `password` belong to the hash `stored`?

    Raises UnknownHash if `stored` is not a hash that we know, and Unavailable if the work could not be done (no memory,
    no libcrypt), which must never look like a wrong password.
    """
    scheme, value = _recognise(stored)
    return scheme.verify(password, value)


def describe(stored: str) -> str | None:
    """The name of the scheme (``argon2id``, ``bcrypt``, ``sha512-crypt``, ``ssha`` ...), or None if not recognised."""
    try:
        return _recognise(stored)[0].name
    except UnknownHash:
        return None


def require_known(stored: str) -> None:
    """Raise UnknownHash, with the cure, if `verify` would."""
    _recognise(stored)


def verify_dummy(password: bytes) -> None:
    """Take as long as verifying a hash made by `hash_password`, to no effect: for users that do not exist."""
    verify(password, _dummy_hash())


@functools.cache
def _dummy_hash() -> str:
    return hash_password(b"nobody has this password")


def _verify_argon2(password: bytes, stored: str) -> bool:
    try:
        return _HASHER.verify(stored, password)
    except argon2.exceptions.VerifyMismatchError:
        return False
    except argon2.exceptions.InvalidHashError:
        raise _damaged("argon2") from None
    except argon2.exceptions.VerificationError as error:
        # The library reports damage in the parameters and lack of memory alike, apart only by the text.
        if "Memory allocation" in str(error):
            raise Unavailable("argon2 could not get its memory", "no_memory") from None
        raise _damaged("argon2") from None


def _verify_bcrypt(password: bytes, stored: str) -> bool:
    # Other systems cut what is longer without a word, so their hashes belong to the first 72 octets.
    try:
        return bcrypt.checkpw(password[:_BCRYPT_LIMIT], stored.encode())
    except ValueError:
        raise _damaged("bcrypt") from None


def _verify_crypt(password: bytes, stored: str) -> bool:
    expected = stored.encode()
    try:
        hashed = libcrypt.crypt(password, expected)
    except libcrypt.InvalidSetting:
        raise _damaged("crypt") from None
    return hashed is not None and hmac.compare_digest(hashed, expected)


def _ldap_verifier(algorithm: str, salted: bool) -> Callable[[bytes, str], bool]:
    size = hashlib.new(algorithm, usedforsecurity=False).digest_size

    def verify_ldap(password: bytes, stored: str) -> bool:
        try:
            octets = base64.b64decode(stored, validate=True)
        except binascii.Error:
            raise _damaged("base64") from None
        digest, salt = octets[:size], octets[size:]
        if len(digest) < size or bool(salt) != salted:
            raise _damaged("base64")
        return hmac.compare_digest(hashlib.new(algorithm, password + salt, usedforsecurity=False).digest(), digest)

    return verify_ldap


def _scram_verifier(scheme: Mechanism) -> Callable[[bytes, str], bool]:
    def verify_scram(password: bytes, stored: str) -> bool:
        try:
            return parse_verifier(f"{{{scheme}}}{stored}").matches(password)
        except UnusableVerifier:
            raise _damaged("SCRAM") from None

    return verify_scram


def _damaged(kind: str) -> UnknownHash:
    return UnknownHash(f"the {kind} hash is damaged", "copy it again, or make a new one with popproxy hash-password")


@dataclass(frozen=True, slots=True)
class _Scheme:
    """One kind of hash: its form (without prefix), the Dovecot prefixes under which it may stand, how to verify it."""

    name: str
    form: re.Pattern[str]
    prefixes: frozenset[str]
    verify: Callable[[bytes, str], bool]


def _scheme(name: str, form: str, prefixes: str, verifier: Callable[[bytes, str], bool]) -> _Scheme:
    return _Scheme(name, re.compile(form, re.ASCII), frozenset(prefixes.split()), verifier)


_C = "[./0-9A-Za-z]"  # the alphabet of crypt(3)
_SALT = r"[^$:\s]"
_ARGON2 = r"\$(?:v=\d+\$)?m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+"

_BARE = (
    _scheme("argon2id", rf"\$argon2id{_ARGON2}", "ARGON2ID ARGON2", _verify_argon2),
    _scheme("argon2i", rf"\$argon2i{_ARGON2}", "ARGON2I ARGON2", _verify_argon2),
    _scheme("bcrypt", rf"\$2[aby]\$\d\d\${_C}{{53}}", "BLF-CRYPT CRYPT", _verify_bcrypt),
    _scheme("yescrypt", rf"\$y\${_C}+\${_C}{{0,86}}\${_C}{{43}}", "CRYPT", _verify_crypt),
    _scheme("scrypt", rf"\$7\${_C}{{11}}{_SALT}{{0,86}}\${_C}{{43}}", "CRYPT", _verify_crypt),
    _scheme("sha512-crypt", rf"\$6\$(?:rounds=\d+\$)?{_SALT}{{0,16}}\${_C}{{86}}", "SHA512-CRYPT CRYPT", _verify_crypt),
    _scheme("sha256-crypt", rf"\$5\$(?:rounds=\d+\$)?{_SALT}{{0,16}}\${_C}{{43}}", "SHA256-CRYPT CRYPT", _verify_crypt),
    _scheme("md5-crypt", rf"\$1\${_SALT}{{0,8}}\${_C}{{22}}", "MD5-CRYPT MD5 CRYPT", _verify_crypt),
    _scheme("des-crypt", rf"{_C}{{13}}", "DES-CRYPT CRYPT", _verify_crypt),
)

_BASE64 = r"(?:[A-Za-z0-9+/]{4})+(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
_LDAP = tuple(
    _scheme(prefixes.split()[0].lower(), _BASE64, prefixes, _ldap_verifier(algorithm, salted))
    for prefixes, algorithm, salted in (
        ("SHA SHA1", "sha1", False),
        ("SSHA", "sha1", True),
        ("SHA256", "sha256", False),
        ("SSHA256", "sha256", True),
        ("SHA512", "sha512", False),
        ("SSHA512", "sha512", True),
    )
)
_SCRAM = tuple(
    _scheme(scheme.lower(), rf"\d+,{_BASE64},{_BASE64},{_BASE64}", scheme, _scram_verifier(scheme))
    for scheme in SCHEMES
)
_PREFIXED = _BARE + _LDAP + _SCRAM

_PREFIX = re.compile(r"\{([A-Za-z0-9._-]+)\}(.*)", re.ASCII | re.DOTALL)
_IN_CLEAR = frozenset(("PLAIN", "CLEAR", "CLEARTEXT", "PLAIN-TRUNC"))


def _recognise(stored: str) -> tuple[_Scheme, str]:
    """The scheme of a stored hash, and the hash without its prefix. Raises UnknownHash."""
    match = _PREFIX.fullmatch(stored)
    prefix, value = (match[1].upper(), match[2]) if match else ("", stored)
    if prefix in _IN_CLEAR:
        raise UnknownHash("the password stands here in clear", "replace it with the output of popproxy hash-password")
    candidates = [scheme for scheme in _PREFIXED if prefix in scheme.prefixes] if prefix else _BARE
    for scheme in candidates:
        if scheme.form.fullmatch(value):
            return scheme, value
    if candidates and prefix:
        raise UnknownHash("what follows the prefix is not a hash of that kind", "copy it again, or make a new one")
    raise UnknownHash("not a password hash that popproxy knows", "make one with popproxy hash-password")
