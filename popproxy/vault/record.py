"""What the vault keeps for one user, and how that is written inside its entry.

::

    secret tanstaaf
    verifier {SCRAM-SHA-1}4096,...
    verifier {SCRAM-SHA-256}4096,...
    rpop $argon2id$...
    backend hunter2
    refresh-token 0.AXkAb...

A line for each thing there is, LF behind each; no value has a control character.
"""

from __future__ import annotations

import re
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
MAX_TOKEN: Final = 8192
"""Octets of a refresh token. Microsoft's have some 1.5 KiB."""
_NO_TOKEN: Final = re.compile(rb"[^\x21-\x7e]")

VERIFIER_ITERATIONS: Final = MIN_ITERATIONS
"""The least: the vault is encrypted. All have the same, lest one tell its user from those who have none."""


class Kind(StrEnum):
    """What can be kept for a user."""

    PASSWORD = "password"  # in clear, and as verifiers # noqa: S105
    SCRAM = "scram"  # verifiers alone
    RPOP = "rpop"  # the hash of an RPOP id
    BACKEND = "backend"  # the password at the server behind, in clear; proves nobody to us
    REFRESH_TOKEN = "refresh-token"  # noqa: S105 - OAuth's, by which access tokens for the server are got


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that is kept for one user: a secret in clear, SCRAM verifiers by scheme, the hash of an RPOP id.

    `backend` is the password at the server behind, where it is another one than `secret`, and `refresh_token` OAuth's.
    """

    secret: Secret | None = None
    verifiers: Mapping[Mechanism, ScramVerifier] = field(default_factory=dict)
    rpop: Secret | None = None
    backend: Secret | None = None
    refresh_token: Secret | None = None

    @property
    def for_backend(self) -> Secret | None:
        """The password to log in with at the server behind."""
        return self.backend or self.secret

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

    def with_backend(self, password: Secret) -> Record:
        """The same with another password for the server behind. Raises VaultError for one that POP3 cannot carry."""
        _check(password)
        return replace(self, backend=password)

    def with_refresh_token(self, token: Secret) -> Record:
        """The same with another refresh token. Raises VaultError for what cannot be one."""
        if len(token.reveal()) > MAX_TOKEN or _NO_TOKEN.search(token.reveal()) or not token:
            raise VaultError("the refresh token is empty, longer than 8192 octets, or has spaces or control characters")
        return replace(self, refresh_token=token)

    def with_kind(self, kind: Kind, value: Secret) -> Record:
        """The same with another thing of that kind; of RPOP ids, the hash. Raises VaultError."""
        match kind:
            case Kind.PASSWORD:
                return self.with_password(value)
            case Kind.SCRAM:
                return self.with_verifiers(value)
            case Kind.RPOP:
                return self.with_rpop(value)
            case Kind.BACKEND:
                return self.with_backend(value)
            case Kind.REFRESH_TOKEN:
                return self.with_refresh_token(value)

    def without(self, kind: Kind) -> Record:
        """The same without one thing: without the password in clear, there are no verifiers of it either."""
        match kind:
            case Kind.PASSWORD:
                return replace(self, secret=None, verifiers={})
            case Kind.SCRAM:
                return replace(self, verifiers={})
            case Kind.RPOP:
                return replace(self, rpop=None)
            case Kind.BACKEND:
                return replace(self, backend=None)
            case Kind.REFRESH_TOKEN:
                return replace(self, refresh_token=None)

    @property
    def kinds(self) -> list[Kind]:
        """What there is."""
        found = {Kind.PASSWORD: self.secret, Kind.SCRAM: self.verifiers, Kind.RPOP: self.rpop}
        found |= {Kind.BACKEND: self.backend, Kind.REFRESH_TOKEN: self.refresh_token}
        return [kind for kind, value in found.items() if value]

    def encode(self) -> Secret:
        """For the vault's entry."""
        lines = [b"verifier " + str(verifier).encode() for verifier in self.verifiers.values()]
        for name, field_name in _SECRETS.items():
            value: Secret | None = getattr(self, field_name)
            if value is not None:
                lines.append(name + b" " + value.reveal())
        return Secret(b"".join(line + b"\n" for line in lines))


_SECRETS: Final = {b"secret": "secret", b"rpop": "rpop", b"backend": "backend", b"refresh-token": "refresh_token"}
"""The word at the beginning of a line, and the attribute that it holds."""


def decode(octets: Secret) -> Record:
    """What `encode` wrote. Raises VaultError."""
    found: dict[str, Secret] = {}
    verifiers: dict[Mechanism, ScramVerifier] = {}
    for line in octets.reveal().split(b"\n")[:-1]:
        name, _, value = line.partition(b" ")
        if name in _SECRETS:
            found[_SECRETS[name]] = Secret(value)
        elif name == b"verifier":
            try:
                verifier = parse_verifier(value.decode("ascii"))
            except (UnicodeDecodeError, UnusableVerifier):
                raise VaultError("an entry of the vault holds a damaged verifier") from None
            verifiers[verifier.scheme] = verifier
        else:
            raise VaultError("an entry of the vault holds what this version does not know; use a newer popproxy")
    return Record(verifiers=verifiers, **found)


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
