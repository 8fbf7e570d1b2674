"""A certificate authority for the tests, and the server certificates that go right or wrong under it."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

_UPN = ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """A chain and its private key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """Issues certificates into one directory. `ca` is the file that clients are told to trust."""

    def __init__(self, directory: Path, name: str = "popproxy test authority") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = (
            x509.CertificateBuilder(self._name, self._name, self._key.public_key(), x509.random_serial_number())
            .not_valid_before(now - 30 * _DAY)
            .not_valid_after(now + 30 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = directory / f"{name.replace(' ', '-')}.pem"
        self.ca.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        self._pairs: dict[str, CertificateFiles] = {}

    def issue(
        self, *names: str, valid_days: tuple[float, float] = (-1, 20), file: str | None = None
    ) -> CertificateFiles:
        """A server certificate for host names and addresses, valid from and until so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder(
                self._name,
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]),
                key.public_key(),
                x509.random_serial_number(),
            )
            .not_valid_before(now + valid_days[0] * _DAY)
            .not_valid_after(now + valid_days[1] * _DAY)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return self._write(file or names[0], certificate, key)

    def _write(self, stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> CertificateFiles:
        # Never anew under a name that a server may be reading: one that saw half a key will not serve TLS again.
        if (self._directory / f"{stem}.crt").exists():
            stem = f"{stem}-{secrets.token_hex(4)}"
        files = CertificateFiles(self._directory / f"{stem}.crt", self._directory / f"{stem}.key")
        files.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        files.key.chmod(0o600)
        return files

    def client(
        self,
        *,
        email: Sequence[str] = (),
        upn: str = "",
        common_name: str = "somebody",
        uid: str = "",
        valid_days: tuple[float, float] = (-1, 20),
        extra: Sequence[x509.GeneralName] = (),
    ) -> CertificateFiles:
        """A client's certificate, with these names in it; its file has no name of note."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        subject += [x509.NameAttribute(NameOID.USER_ID, uid)] if uid else []
        names: list[x509.GeneralName] = [x509.RFC822Name(address) for address in email]
        names += [x509.OtherName(_UPN, b"\x0c" + bytes([len(upn)]) + upn.encode())] if upn else []
        builder = (
            x509.CertificateBuilder(self._name, x509.Name(subject), key.public_key(), x509.random_serial_number())
            .not_valid_before(now + valid_days[0] * _DAY)
            .not_valid_after(now + valid_days[1] * _DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        )
        if names := [*names, *extra]:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return self._write(f"client-{secrets.token_hex(4)}", builder.sign(self._key, hashes.SHA256()), key)

    def revocation_list(
        self, *revoked: CertificateFiles, days: float = 7, age: float = 10, critical: x509.ExtensionType | None = None
    ) -> bytes:
        """In PEM, good for so many days, made so many days ago; with a critical extension."""
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateRevocationListBuilder(self._name, now - age * _DAY, now + days * _DAY)
        if critical is not None:
            builder = builder.add_extension(critical, critical=True)
        for files in revoked:
            serial = x509.load_pem_x509_certificate(files.cert.read_bytes()).serial_number
            builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, now - _DAY).build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def server(self) -> CertificateFiles:
        """What every peer on loopback shows: one pair for all."""
        return self._once("server", "localhost", "127.0.0.1", "::1")

    def expired(self) -> CertificateFiles:
        """Right names, ended yesterday."""
        return self._once("expired", "localhost", "127.0.0.1", valid_days=(-10, -1))

    def wrong_host(self) -> CertificateFiles:
        """Valid, but for somebody else."""
        return self._once("wrong-host", "mail.elsewhere.example")

    def _once(self, file: str, *names: str, valid_days: tuple[float, float] = (-1, 20)) -> CertificateFiles:
        if file not in self._pairs:
            self._pairs[file] = self.issue(*names, valid_days=valid_days, file=file)
        return self._pairs[file]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
