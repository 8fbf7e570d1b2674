"""What the vault keeps for one user, and how that is written inside its entry.

::

    secret tanstaaf
    verifier {SCRAM-SHA-1}4096,...
    verifier {SCRAM-SHA-256}4096,...
    rpop $argon2id$...

A line for each thing there is, LF behind each; no value has a control character.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from popproxy.errors import VaultError
from popproxy.sasl.scram_verifier import (
    MIN_ITERATIONS,
    SALT_SIZE,
    SCHEMES,
    ScramVerifier,
    UnusableVerifier,
    make_verifier,
    parse_verifier,
)
from popproxy.types import Mechanism, Secret

MAX_SECRET: Final = 1024
"""Octets of a secret."""


VERIFIER_ITERATIONS: Final = MIN_ITERATIONS
"""The least: the vault is encrypted. All have the same, lest one tell its user from those who have none."""


class Kind(StrEnum):
    """What can be kept for a user."""

    PASSWORD = "password"  # in clear, and as verifiers # noqa: S105
    SCRAM = "scram"  # verifiers alone
    RPOP = "rpop"  # the hash of an RPOP id


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that is kept for one user: a secret in clear, SCRAM verifiers by scheme, the hash of an RPOP id."""

    secret: Secret | None = None
    verifiers: Mapping[Mechanism, ScramVerifier] = field(default_factory=dict)
    rpop: Secret | None = None

    def with_password(self, secret: Secret) -> Record:
        """The same with another password, in clear. One that SCRAM cannot carry has no verifiers.

        Raises VaultError for one that POP3 cannot carry.
        """
        _check(secret)
        try:
            verifiers = _verifiers(secret)
        except UnusableVerifier:
            verifiers = {}
        return replace(self, secret=secret, verifiers=verifiers)

    def with_verifiers(self, password: Secret) -> Record:
        """The same with another password, of which only verifiers are kept.

        Raises VaultError for one that POP3 or SCRAM cannot carry.
        """
        _check(password)
        try:
            return replace(self, secret=None, verifiers=_verifiers(password))
        except UnusableVerifier as error:
            raise VaultError(str(error)) from None

    def with_rpop(self, stored: Secret) -> Record:
        """The same with another RPOP id, of which the hash is kept."""
        _check(stored)
        return replace(self, rpop=stored)

    def without(self, kind: Kind) -> Record:
        """The same without one thing: without the password in clear, there are no verifiers of it either."""
        match kind:
            case Kind.PASSWORD:
                return replace(self, secret=None, verifiers={})
            case Kind.SCRAM:
                return replace(self, verifiers={})
            case Kind.RPOP:
                return replace(self, rpop=None)

    @property
    def kinds(self) -> list[Kind]:
        """What there is."""
        found = {Kind.PASSWORD: self.secret, Kind.SCRAM: self.verifiers, Kind.RPOP: self.rpop}
        return [kind for kind, value in found.items() if value]

    def encode(self) -> Secret:
        """For the vault's entry."""
        lines = [] if self.secret is None else [b"secret " + self.secret.reveal()]
        lines += [b"verifier " + str(verifier).encode() for verifier in self.verifiers.values()]
        lines += [] if self.rpop is None else [b"rpop " + self.rpop.reveal()]
        return Secret(b"".join(line + b"\n" for line in lines))


def decode(octets: Secret) -> Record:
    """What `encode` wrote. Raises VaultError."""
    secret = rpop = None
    verifiers: dict[Mechanism, ScramVerifier] = {}
    for line in octets.reveal().split(b"\n")[:-1]:
        name, _, value = line.partition(b" ")
        match name:
            case b"secret":
                secret = Secret(value)
            case b"verifier":
                try:
                    verifier = parse_verifier(value.decode("ascii"))
                except (UnicodeDecodeError, UnusableVerifier):
                    raise VaultError("an entry of the vault holds a damaged verifier") from None
                verifiers[verifier.scheme] = verifier
            case b"rpop":
                rpop = Secret(value)
            case _:
                raise VaultError("an entry of the vault holds what this version does not know; use a newer popproxy")
    return Record(secret, verifiers, rpop)


def _verifiers(password: Secret) -> dict[Mechanism, ScramVerifier]:
    return {
        scheme: make_verifier(scheme, password.reveal(), secrets.token_bytes(SALT_SIZE), VERIFIER_ITERATIONS)
        for scheme in SCHEMES
    }


def _check(secret: Secret) -> None:
    """What POP3 cannot carry must not get in (control characters end its lines)."""
    octets = secret.reveal()
    if not octets or len(octets) > MAX_SECRET or has_control(octets):
        raise VaultError("the secret is empty, longer than 1024 octets, or has control characters")


def has_control(octets: bytes) -> bool:
    """Is there an ASCII control character in it?"""
    return any(octet < 0x20 or octet == 0x7F for octet in octets)
