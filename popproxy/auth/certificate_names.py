"""The names in a client certificate (RFC 5280), and the rules that make users of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID, ObjectIdentifier

from popproxy.errors import ConfigError, Problem

Field = Literal["email", "upn", "dns", "uri", "common_name", "uid", "subject", "fingerprint"]

_UPN = ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")  # Microsoft's user principal name, on smart cards
_UTF8_STRING = 0x0C  # its tag in DER
_HEX = re.compile(r"(?:[0-9a-f]{2}:?){32}", re.IGNORECASE)


def values(certificate: x509.Certificate, field: Field) -> list[str]:
    """What stands in a field, none or several. Raises ValueError for what is no ASN.1."""
    match field:
        case "subject":
            return [certificate.subject.rfc4514_string()]
        case "fingerprint":
            return [certificate.fingerprint(SHA256()).hex()]
        case "common_name" | "uid":
            oid = NameOID.COMMON_NAME if field == "common_name" else NameOID.USER_ID
            return [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(oid)]
        case _:
            return list(_alternative_names(certificate, field))


def _alternative_names(certificate: x509.Certificate, field: Field) -> Iterator[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    if field == "upn":
        for other in names.get_values_for_type(x509.OtherName):
            if other.type_id == _UPN:
                yield utf8_string(other.value)
    elif field == "email":
        yield from names.get_values_for_type(x509.RFC822Name)
    elif field == "dns":
        yield from names.get_values_for_type(x509.DNSName)
    else:
        yield from names.get_values_for_type(x509.UniformResourceIdentifier)


def utf8_string(der: bytes) -> str:
    """The text of a UTF8String in DER, up to 255 octets. Raises ValueError."""
    if len(der) >= 2 and der[0] == _UTF8_STRING:
        start = 3 if der[1] == 0x81 and len(der) > 2 else 2
        if der[start - 1] == len(der) - start:
            return der[start:].decode("utf-8")
    raise ValueError("not a UTF8String")


@dataclass(frozen=True, slots=True)
class CertificateRule:
    """Makes users of the values of `field`: `find` returns the user of a value, or None."""

    field: Field
    find: Callable[[str], str | None]

    def users(self, certificate: x509.Certificate) -> list[str]:
        """Those that the rule finds, not canonical yet."""
        return [user for value in values(certificate, self.field) if (user := self.find(value))]


def by_pattern(pattern: str, user: str) -> Callable[[str], str | None]:
    """Values that match as a whole; `user` may name the groups, as in re.Match.expand."""
    compiled = re.compile(pattern)

    def find(value: str) -> str | None:
        match = compiled.fullmatch(value)
        return None if match is None else match.expand(user)

    return find


def parse_table(octets: bytes, source: str, field: str) -> Mapping[str, str]:
    """A file with a line for each value: the value, spaces, the user, who has no space. # begins a comment.

    Fingerprints may have colons and capitals. Raises ConfigError with every problem.
    """
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for number, raw in enumerate(octets.split(b"\n"), start=1):
        line = raw.decode("utf-8", "replace").strip()
        if not line or line.startswith("#"):
            continue
        value, space, user = line.rpartition(" ")
        value = value.strip()
        what = ""
        if not space or not value or "\ufffd" in line:
            what = f"not a {field} and a user in UTF-8"
        elif field == "fingerprint":
            what = "" if _HEX.fullmatch(value) else "not a SHA-256 fingerprint of 64 hex digits"
            value = value.replace(":", "").lower()
        if not what and value in found:
            what = "the same as on an earlier line"
        if what:
            problems.append(Problem(f"{source}:{number}", "", what, f"write {field} and user, with a space between"))
        found[value] = user
    if problems:
        raise ConfigError(problems)
    return found
