"""A pool's section about the SOCKS proxy through which its servers are reached."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from popproxy.config.base import Model
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import ServerAddress
from popproxy.types import Address

SOCKS_PORT = 1080


class Socks(Model):
    """A SOCKS5 proxy (RFC 1928). It sees whatever TLS does not protect."""

    server: ServerAddress = Field(examples=["socks.example.com"])
    """Where it is: host or host:port (port 1080)."""
    user: str | None = Field(default=None, pattern=r"^[!-~]{1,255}$")
    """popproxy's name there, if it must log in (RFC 1929)."""
    password: SecretSource | None = None
    """Where its password is. It goes there in clear."""
    resolve: Literal["remote", "local"] = "remote"
    """Who looks up the names of the servers: the SOCKS proxy, or this machine."""

    @property
    def address(self) -> Address:
        """`server` with its port."""
        return Address(self.server.host, self.server.port or SOCKS_PORT)
