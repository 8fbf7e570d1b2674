"""Certificate revocation lists (RFC 5280 section 5), read again when they are replaced."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from popproxy.errors import ConfigError, Problem, Unavailable
from popproxy.state.executors import BoundedExecutor
from popproxy.state.reread import RereadFile

logger = logging.getLogger(__name__)

_PEM_END = b"-----END X509 CRL-----"


class RevocationLists:
    """The lists in one file, in PEM, each signed by one of the authorities that clients' certificates come from.

    A list that is past its next update says nothing any more: the answer is Unavailable, as it is for a certificate
    whose issuer has no list here.
    """

    def __init__(self, path: Path, authorities: Sequence[x509.Certificate], executor: BoundedExecutor) -> None:
        """Raises ConfigError if the file cannot be used."""
        self._executor = executor
        try:
            self._file = RereadFile(path, lambda octets: parse_lists(octets, str(path), authorities), logger)
        except OSError as error:
            cure = "make it, or correct client_crl"
            raise ConfigError([Problem(str(path), "", f"cannot be read: {error.strerror}", cure)]) from None

    async def revoked(self, certificate: x509.Certificate) -> bool:
        """Is it on the list of its issuer? Raises Unavailable."""
        if self._file.is_stale():
            await self._executor.run(self._file.refresh)
        found = self._file.value.get(certificate.issuer.public_bytes())
        if found is None:
            raise Unavailable(f"there is no revocation list of {certificate.issuer.rfc4514_string()}")
        until = found.next_update_utc
        if until is not None and until.timestamp() < time.time():
            raise Unavailable(f"the revocation list of {certificate.issuer.rfc4514_string()} is out of date")
        return found.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


def parse_lists(
    octets: bytes, source: str, authorities: Sequence[x509.Certificate]
) -> dict[bytes, x509.CertificateRevocationList]:
    """The lists in a file by the name of their issuer in DER, signatures checked. Raises ConfigError."""
    blocks = [part + _PEM_END + b"\n" for part in octets.split(_PEM_END)[:-1]]
    if not blocks:
        raise ConfigError([Problem(source, "", "no revocation list in PEM", "it must begin with BEGIN X509 CRL")])
    found: dict[bytes, x509.CertificateRevocationList] = {}
    for number, block in enumerate(blocks, start=1):
        try:
            one = x509.load_pem_x509_crl(block)
            one.issuer.public_bytes()  # read only now
        except (ValueError, x509.InvalidVersion):
            raise ConfigError([Problem(source, "", f"revocation list {number} is damaged", "fetch it again")]) from None
        issuer = one.issuer.rfc4514_string()
        signers = [authority for authority in authorities if authority.subject == one.issuer]
        if not signers:
            cure = "add the certificate of that authority to client_ca, or remove the list"
            raise ConfigError([Problem(source, "", f"the list of {issuer} is of no authority in client_ca", cure)])
        if not any(_signed(one, authority) for authority in signers):
            raise ConfigError([Problem(source, "", f"the list of {issuer} is not signed by it", "fetch it again")])
        if not _whole(one):
            what = f"the list of {issuer} is only a part: a delta list, or one for some certificates"
            raise ConfigError([Problem(source, "", what, "fetch the whole one (the base list)")])
        earlier = found.get(one.issuer.public_bytes())
        if earlier is None or earlier.last_update_utc <= one.last_update_utc:
            found[one.issuer.public_bytes()] = one
    return found


def _whole(one: x509.CertificateRevocationList) -> bool:
    """Does it have all certificates of its issuer that clients may have? RFC 5280 section 5.2: critical extensions."""
    try:
        extensions = list(one.extensions)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return False
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.IssuingDistributionPoint):
            if value.only_contains_ca_certs or value.only_contains_attribute_certs or value.only_some_reasons:
                return False
            if value.indirect_crl or value.full_name or value.relative_name:
                return False
        elif extension.critical:
            return False
    return True


def _signed(one: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return one.is_signature_valid(authority.public_key())  # type: ignore[arg-type] # raises for what it cannot be
    except TypeError:
        return False
