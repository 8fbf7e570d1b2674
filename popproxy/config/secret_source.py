"""How the configuration names a secret without holding it."""

from __future__ import annotations

from pydantic import model_validator

from popproxy.config.base import Model
from popproxy.config.units import LocalPath


class SecretSource(Model):
    """Where a secret comes from: exactly one of the three."""

    file: LocalPath | None = None
    """A file that holds the secret and nothing else; a final line end is dropped."""
    env: str | None = None
    """The name of an environment variable."""
    credential: str | None = None
    """The name of a systemd credential (LoadCredential=)."""

    @model_validator(mode="after")
    def _exactly_one(self) -> SecretSource:
        if sum(value is not None for value in (self.file, self.env, self.credential)) != 1:
            raise ValueError(
                "needs exactly one of file, env, credential; write for example {file: /etc/popproxy/vault.key}"
            )
        return self
