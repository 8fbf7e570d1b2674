"""Checks of the certificates that clients and servers are shown: readable, with their key, valid, named, complete?"""

from __future__ import annotations

import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from popproxy.app.checks.finding import Finding, counted, ok, problem, unreadable, warning
from popproxy.app.checks.permissions import group_id
from popproxy.config.model import Config
from popproxy.config.model_listeners import Certificate

EXPIRES_SOON = timedelta(days=14)


def check_certificates(config: Config) -> list[Finding]:
    """Findings about every certificate that a listener or a pool uses. Reads files; no network."""
    findings: list[Finding] = []
    used: dict[Certificate, None] = {}
    for listener in config.listeners:
        if listener.tls == "none":
            continue
        chosen = listener.certificates or config.tls.certificates
        if not chosen:
            cure = "name one in tls.certificates, or say tls: none"
            findings.append(problem(f"listener {listener.name}", f"tls: {listener.tls} but no certificate", cure))
        used.update(dict.fromkeys(chosen))
    for certificate in used:
        findings += _check(certificate, config.process.group or config.process.user)
    shown = [pool.certificate for pool in config.pools.values() if pool.certificate is not None and pool.tls != "none"]
    for certificate in dict.fromkeys(shown):
        findings += _check(certificate, config.process.group or config.process.user, to_servers=True)
    return findings


def _check(pair: Certificate, service_group: str | None, *, to_servers: bool = False) -> list[Finding]:
    area = f"certificate {pair.cert}"
    try:
        chain = x509.load_pem_x509_certificates(pair.cert.read_bytes())
    except OSError as error:
        return [unreadable(area, pair.cert, error)]
    except ValueError:
        return [
            problem(
                area,
                "no certificate in PEM can be read from the file",
                "the file must begin with -----BEGIN CERTIFICATE-----",
            )
        ]
    if to_servers:
        findings = [*_purpose(area, chain[0]), *_dates(area, chain)]
    else:
        findings = [*_names(area, chain[0]), *_dates(area, chain), *_chain(area, chain)]
    findings += _key(area, pair, chain[0])
    findings += _permissions(area, pair.key or pair.cert, service_group)
    return findings


def _names(area: str, leaf: x509.Certificate) -> Iterator[Finding]:
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        yield warning(
            area,
            "carries no subject alternative name; clients will refuse it",
            "ask for a certificate with the name that clients connect to",
        )
        return
    names = [*extension.get_values_for_type(x509.DNSName), *map(str, extension.get_values_for_type(x509.IPAddress))]
    yield ok(area, f"is for {', '.join(names)}")


def _purpose(area: str, leaf: x509.Certificate) -> Iterator[Finding]:
    yield ok(area, f"names {_common(leaf.subject)} to servers")
    try:
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return  # then it is good for everything
    if ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        cure = "ask for a certificate for TLS clients (extendedKeyUsage clientAuth)"
        yield problem(area, "is not meant for clients: servers will refuse it", cure)


def _dates(area: str, chain: list[x509.Certificate]) -> Iterator[Finding]:
    now = datetime.now(UTC)
    for certificate in chain:
        which = "" if certificate is chain[0] else f"intermediate {_common(certificate.subject)} "
        until, since = certificate.not_valid_after_utc, certificate.not_valid_before_utc
        if until <= now:
            yield problem(area, f"{which}expired on {until:%Y-%m-%d %H:%M} UTC", "renew it")
        elif since > now:
            yield problem(
                area,
                f"{which}is not valid before {since:%Y-%m-%d %H:%M} UTC",
                "wait, or correct the clock of this machine",
            )
        elif until - now < EXPIRES_SOON:
            yield warning(
                area, f"{which}expires in {counted((until - now).days, 'day')}, on {until:%Y-%m-%d}", "renew it"
            )
        elif not which:
            yield ok(area, f"is valid until {until:%Y-%m-%d}")


def _chain(area: str, chain: list[x509.Certificate]) -> Iterator[Finding]:
    for lower, upper in pairwise(chain):
        if lower.issuer != upper.subject:
            cure = "write the certificate first, then the one that signed it, and so on"
            yield warning(
                area, f"the chain breaks: {_common(lower.subject)} is not signed by {_common(upper.subject)}", cure
            )
            return
    top = chain[-1]
    if len(chain) == 1 and top.issuer == top.subject:
        yield warning(
            area, "is self-signed: clients must be told to trust it", "have it signed by an authority that clients know"
        )
    elif top.issuer != top.subject and not _is_authority_of_the_system(top.issuer):
        cure = f"append the certificate of {_common(top.issuer)}; an authority of your own must be known to the clients"
        yield warning(
            area,
            f"the chain may be incomplete: {_common(top.issuer)} is neither in it nor an authority of the system",
            cure,
        )


def _is_authority_of_the_system(name: x509.Name) -> bool:
    """Searches the octets: some roots have a serial number of 0, which `cryptography` will refuse to parse one day."""
    der = name.public_bytes()
    return any(der in octets for octets in ssl.create_default_context().get_ca_certs(binary_form=True))


def _key(area: str, pair: Certificate, leaf: x509.Certificate) -> Iterator[Finding]:
    path = pair.key or pair.cert
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        yield unreadable(area, path, error)
        return
    except TypeError:
        yield problem(area, f"the key in {path} is encrypted", f"decrypt it: openssl pkey -in {path} -out NEWFILE")
        return
    except (ValueError, UnsupportedAlgorithm):
        yield problem(
            area,
            f"no private key in PEM can be read from {path}",
            "give the key's file as key:, or put the key in the same file",
        )
        return
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        yield problem(
            area,
            f"the key in {path} belongs to another certificate",
            "give the key that the certificate was asked for with",
        )


def _permissions(area: str, path: Path, service_group: str | None) -> Iterator[Finding]:
    try:
        found = path.stat()
    except OSError:
        return  # reported by _key
    if found.st_mode & stat.S_IRWXO:
        yield problem(area, f"the private key in {path} may be read by everybody", f"chmod 600 {path}")
    elif found.st_mode & stat.S_IRGRP and found.st_gid != group_id(service_group):
        yield problem(area, f"the private key in {path} may be read by its group", f"chmod 600 {path}")


def _common(name: x509.Name) -> str:
    return name.rfc4514_string() or "(no name)"
