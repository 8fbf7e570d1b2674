"""From the configuration to what SASL mechanisms need."""

from __future__ import annotations

import hmac
from typing import Final

from popproxy.config.model import Config, Listener
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, Problem
from popproxy.session.context import timestamp_host
from popproxy.session.mechanisms import Mechanisms
from popproxy.types import Mechanism, Secret

MIN_DECOY_KEY: Final = 16
"""Octets."""


def mechanisms_of(listener: Listener) -> Mechanisms | None:
    """What a listener offers beside PLAIN, LOGIN and GSSAPI, if anything."""
    return Mechanisms([Mechanism(name) for name in listener.sasl], timestamp_host()) if listener.sasl else None


def read_decoy_key(config: Config, vault_key: Secret | None) -> Secret | None:
    """What the salts of users without a verifier are made with; None where no listener offers SCRAM.

    Raises ConfigError if it cannot be read, or is too short to be a key.
    """
    if not any(name.startswith("SCRAM") for listener in config.listeners for name in listener.sasl):
        return None
    if config.scram is None:
        return None if vault_key is None else Secret(hmac.digest(vault_key.reveal(), b"popproxy decoys", "sha256"))
    key = resolve_secret(config.scram.decoy_key, "scram.decoy_key")
    if len(key.reveal()) < MIN_DECOY_KEY:
        what = f"has fewer than {MIN_DECOY_KEY} octets"
        raise ConfigError([Problem("", "scram.decoy_key", what, "make one with openssl rand -base64 32")])
    return key
