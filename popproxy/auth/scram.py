"""SCRAM: where verifiers come from, what those get who have none, and what is made of the proof."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from popproxy.auth.accounts import Accounts
from popproxy.auth.result import Accepted, AuthResult, Declined, Rejected
from popproxy.auth.users_file import UsersFile
from popproxy.errors import Unavailable, VaultError
from popproxy.sasl.credentials import Credential, ScramCredential
from popproxy.sasl.scram_verifier import ITERATIONS, SALT_SIZE, ScramVerifier, scheme_of
from popproxy.state.executors import BoundedExecutor
from popproxy.types import AuthFailure, Identity, Mechanism, Secret
from popproxy.vault.record import VERIFIER_ITERATIONS

if TYPE_CHECKING:
    from popproxy.vault.store import Vault

Shape = tuple[int, int]
"""What a client sees of a verifier: octets of salt, iterations."""


class VerifierSource(Protocol):
    """One place where verifiers are kept."""

    async def verifiers(self, user: str) -> Mapping[Mechanism, ScramVerifier]:
        """Those of a canonical name, by scheme. Raises Unavailable if that cannot be known now."""
        ...

    def shapes(self, scheme: Mechanism) -> Collection[Shape]:
        """What the verifiers of this scheme look like, all of them taken together. Raises Unavailable."""
        ...


class UsersFileVerifiers:
    """Those of the users file; `asked` says whether it judges the passwords of a canonical name, too."""

    def __init__(self, users: UsersFile, executor: BoundedExecutor, asked: Callable[[str], bool]) -> None:
        self._users = users
        self._executor = executor
        self._asked = asked

    async def verifiers(self, user: str) -> Mapping[Mechanism, ScramVerifier]:
        """See VerifierSource."""
        if self._users.is_stale():
            await self._executor.run(self._users.refresh)
        return self._users.verifiers(user) if self._asked(user) else {}

    def shapes(self, scheme: Mechanism) -> Collection[Shape]:
        """See VerifierSource."""
        return self._users.verifier_shapes(scheme)


class VaultVerifiers:
    """Those of the vault, which all look the same."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def verifiers(self, user: str) -> Mapping[Mechanism, ScramVerifier]:
        """See VerifierSource."""
        try:
            return self._vault.record(user).verifiers
        except VaultError as error:
            raise Unavailable(f"vault: {error}") from None

    def shapes(self, scheme: Mechanism) -> Collection[Shape]:
        """See VerifierSource."""
        try:
            return ((SALT_SIZE, VERIFIER_ITERATIONS),) if self._vault.has_verifiers() else ()
        except VaultError as error:
            raise Unavailable(f"vault: {error}") from None


class ScramVerifiers:
    """Finds a user's verifier, or makes one up that nothing tells from a genuine one.

    `key` makes salts: for one name always the same, in every process and after every restart, or whoever asks twice
    would know which names are made up. Their shapes are those of genuine verifiers.
    """

    def __init__(self, key: Secret, sources: Sequence[VerifierSource], accounts: Accounts | None) -> None:
        self._key = key
        self._sources = sources
        self._accounts = accounts

    async def find(self, mechanism: Mechanism, user: str) -> ScramVerifier:
        """The verifier of a canonical name for a mechanism. Raises Unavailable."""
        scheme = scheme_of(mechanism)
        made_up = self.made_up(mechanism, user)  # also for those who have one, so that it takes no less time
        found = None
        for source in self._sources:
            found = (await source.verifiers(user)).get(scheme) if found is None else found
        disabled = self._accounts is not None and await self._accounts.disabled(user)
        return made_up if found is None or disabled else found

    def made_up(self, mechanism: Mechanism, user: str) -> ScramVerifier:
        """For a name that has no verifier, or may not use it. Raises Unavailable."""
        scheme = scheme_of(mechanism)
        size, iterations = self._shape(scheme, user)
        salt = self._draw("salt", scheme, user, "") + self._draw("more", scheme, user, "")
        stored, server = (Secret(self._draw(what, scheme, user, "")) for what in ("stored", "server"))
        return ScramVerifier(scheme, salt[:size], iterations, stored, server, genuine=False)

    def _shape(self, scheme: Mechanism, user: str) -> Shape:
        """One of those in use; for a name mostly the same, even if others come into use (rendezvous hashing)."""
        shapes: Iterable[Shape] = {shape for source in self._sources for shape in source.shapes(scheme)}
        return max(
            shapes, key=lambda shape: self._draw("shape", scheme, user, str(shape)), default=(SALT_SIZE, ITERATIONS)
        )

    def _draw(self, *what: str) -> bytes:
        return hmac.digest(self._key.reveal(), "\0".join(what).encode("utf-8", "surrogatepass"), "sha256")


class ScramAuthenticator:
    """The proof has been checked in the exchange, against what `ScramVerifiers` found."""

    name = "scram"

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator."""
        if not isinstance(credential, ScramCredential):
            return Declined()
        if credential.fault is not AuthFailure.NONE:
            return Rejected(credential.fault)
        return Accepted(Identity(user, credential.authcid, credential.mechanism))
