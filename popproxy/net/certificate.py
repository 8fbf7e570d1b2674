"""What TLS needs to know of certificates, which Python's ssl does not tell."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


@dataclass(frozen=True, slots=True)
class Leaf:
    """A server's certificate.

    `names` are the host names it is for, in lower case; `expires` is in seconds since the epoch; `end_point` is its
    channel binding (RFC 5929 section 4), with the prefix.
    """

    names: frozenset[str]
    expires: float
    end_point: bytes


def read_leaf(chain: bytes) -> Leaf:
    """The first certificate of a chain in PEM. Raises ValueError."""
    certificate = x509.load_pem_x509_certificates(chain)[0]
    return Leaf(_names(certificate), certificate.not_valid_after_utc.timestamp(), _end_point(certificate))


def end_point(certificate: bytes) -> bytes | None:
    """The channel binding of TLS with the server that has shown `certificate` (DER); None if it is no certificate."""
    try:
        return _end_point(x509.load_der_x509_certificate(certificate))
    except ValueError:
        return None


def key_pin(certificate: bytes) -> str:
    """SHA-256 of the public key (SubjectPublicKeyInfo) of a certificate in DER, in base64. Raises ValueError."""
    key = x509.load_der_x509_certificate(certificate).public_key()
    return b64encode(sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()).decode()


def _end_point(certificate: x509.Certificate) -> bytes:
    """The certificate's hash by the hash of its signature, or by SHA-256 if that is too weak, or there is none."""
    used = certificate.signature_hash_algorithm
    weak = used is None or isinstance(used, hashes.MD5 | hashes.SHA1)
    return b"tls-server-end-point:" + certificate.fingerprint(hashes.SHA256() if used is None or weak else used)


def _names(certificate: x509.Certificate) -> frozenset[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(name.lower() for name in names.get_values_for_type(x509.DNSName))
