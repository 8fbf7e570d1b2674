"""Every TLS context of the process, for both directions: TLS 1.2 and later, AEAD ciphers (Mozilla "intermediate")."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from popproxy.wire.clienthello import ClientHello

if TYPE_CHECKING:
    from popproxy.net.certificate import Leaf

ALPN = "pop3"
"""RFC 7301's identifier for POP3, asked for by RFC 8314."""
CIPHERS = ":".join(
    f"ECDHE-{key}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for key in ("ECDSA", "RSA")
)  # for TLS 1.2; those of 1.3 are all fit
_LEGACY_SERVER_CONNECT = 0x4  # OpenSSL's; Python has no name for it before 3.12: servers without RFC 5746
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True)
class _Entry:
    context: ssl.SSLContext
    leaf: Leaf


class ServerTls:
    """The certificates of one listener: (chain, key) files; the first serves clients that name nobody.

    With `client_ca` clients are asked for a certificate of one of the authorities in that file. None is needed, but one
    that cannot be verified ends the handshake.

    Raises OSError, ssl.SSLError or ValueError for files that cannot be used.
    """

    def __init__(
        self, certificates: Sequence[tuple[Path, Path | None]], minimum: str = "1.2", client_ca: Path | None = None
    ) -> None:
        self._entries = [_load(cert, key, minimum) for cert, key in certificates]
        if client_ca is not None:
            for entry in self._entries:
                _ask_for_certificates(entry.context, client_ca)

    def choose(self, hello: ClientHello) -> ssl.SSLContext | None:
        """The context for a client: by the name it asks for. None if it asks only for protocols other than POP3.

        Refusing those stops a browser that was led here from taking our answers for its own protocol's (ALPACA).
        """
        if hello.alpn is not None and ALPN.encode() not in hello.alpn:
            return None
        name = (hello.server_name or "").lower().rstrip(".")
        wildcard = "*." + name.partition(".")[2]
        for entry in self._entries:
            if name in entry.leaf.names or wildcard in entry.leaf.names:
                return entry.context
        return self._entries[0].context

    def end_point(self, context: ssl.SSLContext | None) -> bytes | None:
        """The channel binding of a connection under `context` (RFC 5929 section 4), with its prefix; None without."""
        return next((entry.leaf.end_point for entry in self._entries if entry.context is context), None)

    @property
    def expires(self) -> float:
        """When the first of the certificates ends, in seconds since the epoch."""
        return min(entry.leaf.expires for entry in self._entries)


def _load(cert: Path, key: Path | None, minimum: str) -> _Entry:
    from popproxy.net.certificate import read_leaf  # noqa: PLC0415 - large, and without TLS nobody needs it

    certificates = cert.read_bytes()
    if key is not None:
        key.open("rb").close()  # unlike the TLS library, this names the file it misses
    context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), minimum)
    context.load_cert_chain(cert, key)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_SINGLE_ECDH_USE
    return _Entry(context, read_leaf(certificates))


def _ask_for_certificates(context: ssl.SSLContext, authorities: Path) -> None:
    context.load_verify_locations(authorities)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the authority that issues them need not be a root
    context.verify_mode = ssl.CERT_OPTIONAL


def client_context(
    *,
    ca: Path | None = None,
    verify: bool = True,
    certificate: tuple[Path, Path | None] | None = None,
    legacy: bool = False,
) -> ssl.SSLContext:
    """Towards backends: certificate and host name are verified unless the configuration says otherwise.

    `certificate` (chain, key) is what we show. `legacy`: take what servers of 1999 can do as well.

    Raises OSError or ssl.SSLError for files that cannot be used.
    """
    context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "1.2")
    if legacy:
        _quarantine(context)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is not None:
        context.load_verify_locations(ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if certificate is not None:
        _show(context, *certificate)
    return context


def _quarantine(context: ssl.SSLContext) -> None:
    """TLS 1.0 and later, every cipher that encrypts and authenticates, short keys and SHA-1 signatures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that it is old is the point
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:!aNULL:!eNULL:@SECLEVEL=0")
    context.options |= _LEGACY_SERVER_CONNECT


def _show(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    for path in (cert, key):
        if path is not None:
            path.open("rb").close()  # unlike the TLS library, this names the file it misses
    context.load_cert_chain(cert, key, password=_no_passphrase)


def _no_passphrase() -> bytes:
    raise ssl.SSLError("the key is locked by a passphrase")  # else OpenSSL asks the terminal for one


def _strict(context: ssl.SSLContext, minimum: str) -> ssl.SSLContext:
    context.minimum_version = _VERSIONS[minimum]
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols([ALPN])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context
