"""Keys of the audit log: Ed25519 (RFC 8032), in PEM. The private one signs, the public ones are for who verifies."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from popproxy.errors import AuditError
from popproxy.types import Secret

_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----[^-]+-----END PUBLIC KEY-----\n?")


class SigningKey:
    """Signs records. Raises AuditError if `pem` is no Ed25519 private key without a passphrase."""

    __slots__ = ("_key", "key_id")

    def __init__(self, pem: Secret) -> None:
        try:
            key = load_pem_private_key(pem.reveal(), None)
        except (ValueError, TypeError):
            raise AuditError("is not a private key in PEM without a passphrase") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise AuditError("is not an Ed25519 key")
        self._key = key
        self.key_id = key_id(key.public_key())

    def sign(self, octets: bytes) -> bytes:
        """The 64 octets of the signature."""
        return self._key.sign(octets)

    @property
    def public_key(self) -> Ed25519PublicKey:
        """Its public half."""
        return self._key.public_key()

    def public_pem(self) -> bytes:
        """Its public half, SubjectPublicKeyInfo in PEM."""
        return self.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def subkey(self, purpose: str) -> bytes:
        """32 octets for another purpose, from which this key cannot be told."""
        seed = self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return hmac.digest(seed, f"popproxy audit {purpose}".encode(), "sha256")


class PublicKeys:
    """The keys that signatures are checked with."""

    def __init__(self, keys: Mapping[str, Ed25519PublicKey]) -> None:
        self._keys = dict(keys)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def good(self, key: str, signature: bytes, octets: bytes) -> bool:
        """Whether the key of this id, which must be there, has signed `octets`."""
        try:
            self._keys[key].verify(signature, octets)
        except InvalidSignature:
            return False
        return True


def generate() -> bytes:
    """A new private key, PKCS #8 in PEM."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_id(key: Ed25519PublicKey) -> str:
    """The first 8 octets of the SHA-256 of the public key, in hex."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def read_public(paths: list[Path]) -> PublicKeys:
    """All public keys in PEM files, each of which may hold several. Raises OSError, and AuditError for a wrong file."""
    keys: dict[str, Ed25519PublicKey] = {}
    for path in paths:
        blocks = _PUBLIC.findall(path.read_bytes())
        if not blocks:
            raise AuditError(f"{path}: holds no public key in PEM")
        for block in blocks:
            try:
                key = load_pem_public_key(block)
            except ValueError:
                raise AuditError(f"{path}: holds a public key that cannot be read") from None
            if not isinstance(key, Ed25519PublicKey):
                raise AuditError(f"{path}: holds a public key that is not Ed25519")
            keys[key_id(key)] = key
    return PublicKeys(keys)
