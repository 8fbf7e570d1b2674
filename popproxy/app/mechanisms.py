"""From the configuration to what SASL mechanisms beside PLAIN, LOGIN and GSSAPI need."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from popproxy.app.oauth import IssuerSecrets, oauth_refusals, read_oauth_secrets
from popproxy.auth.accounts import Accounts
from popproxy.auth.proof import Prover
from popproxy.auth.result import Authenticator
from popproxy.auth.rpop import RpopHostsAuthenticator, RpopIdAuthenticator, TrustedHosts
from popproxy.auth.scram import (
    ScramAuthenticator,
    ScramVerifiers,
    UsersFileVerifiers,
    VaultVerifiers,
    VerifierSource,
)
from popproxy.auth.shared_secret import SharedSecretAuthenticator
from popproxy.auth.timed import TimedProver
from popproxy.auth.users_file import UsersFile
from popproxy.config.model import Config
from popproxy.config.model_listeners import Listener
from popproxy.config.rules_mechanisms import TOKEN_MECHANISMS
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, Problem
from popproxy.observe.metrics import Metrics
from popproxy.sasl.credentials import CertificateCredential, TokenCredential
from popproxy.sasl.oauth import OAuthRefusals
from popproxy.session.context import timestamp_host
from popproxy.session.mechanisms import Mechanisms
from popproxy.state.executors import BoundedExecutor
from popproxy.types import Mechanism, Secret

if TYPE_CHECKING:
    from popproxy.auth.tokens import TokenProver
    from popproxy.vault.store import Vault

MIN_DECOY_KEY: Final = 16
"""Octets."""


@dataclass(frozen=True, slots=True)
class MechanismSecrets:
    """What is read before the privileges are dropped.

    `decoy_key` is None where no listener offers SCRAM; `client_ca` has the authorities of clients by listener, in PEM;
    `issuers` is empty where no listener takes tokens.
    """

    decoy_key: Secret | None = None
    client_ca: Mapping[str, bytes] = field(default_factory=dict)
    issuers: Sequence[IssuerSecrets] = ()


def read_mechanism_secrets(config: Config, vault_key: Secret | None) -> MechanismSecrets:
    """Raises ConfigError if something cannot be read."""
    authorities = {}
    for listener in config.listeners:
        if listener.client_ca is not None and "EXTERNAL" in listener.sasl:
            try:
                authorities[listener.name] = listener.client_ca.read_bytes()
            except OSError as error:
                what = f"cannot be read: {error.strerror}"
                raise ConfigError([Problem(str(listener.client_ca), "", what, "correct client_ca")]) from None
    return MechanismSecrets(_decoy_key(config, vault_key), authorities, read_oauth_secrets(config))


def _decoy_key(config: Config, vault_key: Secret | None) -> Secret | None:
    """What the salts of users without a verifier are made with. Raises ConfigError."""
    if not any(name.startswith("SCRAM") for listener in config.listeners for name in listener.sasl):
        return None
    if config.scram is None:
        return None if vault_key is None else Secret(hmac.digest(vault_key.reveal(), b"popproxy decoys", "sha256"))
    key = resolve_secret(config.scram.decoy_key, "scram.decoy_key")
    if len(key.reveal()) < MIN_DECOY_KEY:
        what = f"has fewer than {MIN_DECOY_KEY} octets"
        raise ConfigError([Problem("", "scram.decoy_key", what, "make one with openssl rand -base64 32")])
    return key


@dataclass(frozen=True, slots=True)
class Sources:
    """Where users are known from, and what the look-ups may use. `vet` makes names canonical, or raises NameRefused."""

    users: UsersFile | None
    vault: Vault | None
    accounts: Accounts | None
    executor: BoundedExecutor
    vet: Callable[[str], str]


class MechanismParts:
    """What the sessions of the listeners share."""

    def __init__(self, config: Config, secrets: MechanismSecrets, sources: Sources, metrics: Metrics) -> None:
        """Raises ConfigError for files that cannot be used."""
        self._config = config
        self._secrets = secrets
        self._sources = sources
        self._metrics = metrics
        self._tokens: TokenProver | None = None
        self._refusals: OAuthRefusals | None = None
        if config.oauth is not None and secrets.issuers:
            from popproxy.app.tokens import token_prover  # noqa: PLC0415 - large

            self._tokens = token_prover(config.oauth, secrets.issuers, sources.vet)
            self._refusals = oauth_refusals(config.oauth)
        self._rpop_hosts: TrustedHosts | None = None
        if config.rpop is not None and config.rpop.hosts is not None:
            self._rpop_hosts = TrustedHosts.load(config.rpop.hosts, sources.vet)

    def mechanisms(self, listener: Listener) -> Mechanisms | None:
        """What a listener offers, if anything."""
        if not listener.sasl:
            return None
        return Mechanisms([Mechanism(name) for name in listener.sasl], timestamp_host(), self._refusals)

    def authenticators(self, listener: Listener) -> list[Authenticator]:
        """Those that come before the ones that judge passwords."""
        found: list[Authenticator] = []
        if (listener.apop or "CRAM-MD5" in listener.sasl) and self._sources.vault is not None:
            found.append(SharedSecretAuthenticator(self._sources.vault))
        if any(name.startswith("SCRAM") for name in listener.sasl):
            found.append(ScramAuthenticator())
        if self._rpop_hosts is not None and listener.rpop == "rfc":
            found.append(RpopHostsAuthenticator(self._rpop_hosts, self._sources.executor))
        elif self._sources.vault is not None and listener.rpop == "id":
            found.append(RpopIdAuthenticator(self._sources.vault, self._sources.executor))
        return found

    def verifiers(self, listener: Listener) -> ScramVerifiers | None:
        """Where the verifiers of a listener's users are."""
        if self._secrets.decoy_key is None:
            return None
        sources = self._sources
        places: list[VerifierSource] = []
        if sources.users is not None:
            rules = self._config.authentication

            def asked(user: str) -> bool:
                return "users" in rules.checks(listener.authenticate, user)

            places.append(UsersFileVerifiers(sources.users, sources.executor, asked))
        if sources.vault is not None:
            places.append(VaultVerifiers(sources.vault))
        return ScramVerifiers(self._secrets.decoy_key, places, sources.accounts)

    def provers(self, listener: Listener) -> Mapping[type, Prover]:
        """What judges credentials that say themselves whose they are. Raises ConfigError."""
        found: dict[type, Prover] = {}
        authorities = self._secrets.client_ca.get(listener.name)
        if authorities is not None and self._config.external is not None:
            from popproxy.app.client_certificates import certificate_prover  # noqa: PLC0415 - large

            sources = self._sources
            found[CertificateCredential] = certificate_prover(
                self._config.external, authorities, listener.client_crl, sources.vet, sources.executor
            )
        if self._tokens is not None and TOKEN_MECHANISMS.intersection(listener.sasl):
            found[TokenCredential] = self._tokens
        return {kind: TimedProver(prover, self._metrics) for kind, prover in found.items()}

    def close(self) -> None:
        """Give up what is under way."""
        if self._tokens is not None:
            self._tokens.close()
