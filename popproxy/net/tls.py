"""Every TLS context of the process, for both directions: TLS 1.2 and later, AEAD ciphers (Mozilla "intermediate")."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from popproxy.wire.clienthello import ClientHello

ALPN = "pop3"
"""RFC 7301's identifier for POP3, asked for by RFC 8314."""
CIPHERS = ":".join(
    f"ECDHE-{key}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for key in ("ECDSA", "RSA")
)  # for TLS 1.2; those of 1.3 are all fit
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True)
class _Entry:
    context: ssl.SSLContext
    names: frozenset[str]
    expires: float
    end_point: bytes


class ServerTls:
    """The certificates of one listener: (chain, key) files; the first serves clients that name nobody.

    Raises OSError, ssl.SSLError or ValueError for files that cannot be used.
    """

    def __init__(self, certificates: Sequence[tuple[Path, Path | None]], minimum: str = "1.2") -> None:
        self._entries = [_load(cert, key, minimum) for cert, key in certificates]

    def choose(self, hello: ClientHello) -> ssl.SSLContext | None:
        """The context for a client: by the name it asks for. None if it asks only for protocols other than POP3.

        Refusing those stops a browser that was led here from taking our answers for its own protocol's (ALPACA).
        """
        if hello.alpn is not None and ALPN.encode() not in hello.alpn:
            return None
        name = (hello.server_name or "").lower().rstrip(".")
        wildcard = "*." + name.partition(".")[2]
        for entry in self._entries:
            if name in entry.names or wildcard in entry.names:
                return entry.context
        return self._entries[0].context

    def end_point(self, context: ssl.SSLContext | None) -> bytes | None:
        """The channel binding of a connection under `context` (RFC 5929 section 4), with its prefix; None without."""
        return next((entry.end_point for entry in self._entries if entry.context is context), None)

    @property
    def expires(self) -> float:
        """When the first of the certificates ends, in seconds since the epoch."""
        return min(entry.expires for entry in self._entries)


def _load(cert: Path, key: Path | None, minimum: str) -> _Entry:
    certificates = cert.read_bytes()
    if key is not None:
        key.open("rb").close()  # unlike the TLS library, this names the file it misses
    context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), minimum)
    context.load_cert_chain(cert, key)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_SINGLE_ECDH_USE
    leaf = x509.load_pem_x509_certificates(certificates)[0]
    return _Entry(context, frozenset(dns_names(leaf)), leaf.not_valid_after_utc.timestamp(), _end_point(leaf))


def end_point(certificate: bytes) -> bytes | None:
    """The channel binding of TLS with the server that has shown `certificate` (DER); None if it is no certificate."""
    try:
        return _end_point(x509.load_der_x509_certificate(certificate))
    except ValueError:
        return None


def _end_point(certificate: x509.Certificate) -> bytes:
    """The certificate's hash by the hash of its signature, or by SHA-256 if that is too weak, or there is none."""
    used = certificate.signature_hash_algorithm
    weak = used is None or isinstance(used, hashes.MD5 | hashes.SHA1)
    return b"tls-server-end-point:" + certificate.fingerprint(hashes.SHA256() if used is None or weak else used)


def dns_names(certificate: x509.Certificate) -> list[str]:
    """The host names a certificate is for, in lower case."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in names.get_values_for_type(x509.DNSName)]


def client_context(*, ca: Path | None = None, verify: bool = True) -> ssl.SSLContext:
    """Towards backends: certificate and host name are verified unless the configuration says otherwise."""
    context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "1.2")
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is not None:
        context.load_verify_locations(ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def _strict(context: ssl.SSLContext, minimum: str) -> ssl.SSLContext:
    context.minimum_version = _VERSIONS[minimum]
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols([ALPN])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context
