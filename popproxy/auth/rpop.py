"""RPOP in the two meanings that it has had.

RFC 1081 and RFC 1225: the argument is the user's login name on the client machine, and the server trusts that machine,
as .rhosts did, because only its root can connect from a port below 1024. Later (fetchmail's manual has it): an id that
the administrator has issued, as good as a password. Neither is safe outside a network where nobody listens.
"""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from popproxy.auth.hashes import UnknownHash, verify, verify_dummy
from popproxy.auth.names import NameRefused
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Declined, Rejected
from popproxy.auth.users_file import Canonical
from popproxy.errors import ConfigError, Problem, Unavailable, VaultError
from popproxy.sasl.credentials import Credential, RpopCredential
from popproxy.state.executors import BoundedExecutor
from popproxy.state.reread import RereadFile
from popproxy.types import AuthFailure, Identity

if TYPE_CHECKING:
    from popproxy.vault.store import Vault

logger = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class RpopIdAuthenticator:
    """Judges ids by the hashes in the vault. A user who has none costs the same work as a wrong id."""

    name = "rpop"

    def __init__(self, vault: Vault, executor: BoundedExecutor) -> None:
        self._vault = vault
        self._executor = executor

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator. CannotTell if the vault cannot be read, or the pool of threads is full or late."""
        if not isinstance(credential, RpopCredential):
            return Declined()
        try:
            stored = self._vault.record(user).rpop
            hashed = None if stored is None else stored.reveal().decode("ascii")
            if await self._executor.run(_matches, credential.argument.reveal(), hashed):
                return Accepted(Identity(user, credential.authcid, credential.mechanism))
            return Rejected(AuthFailure.BAD_CREDENTIALS)
        except (VaultError, Unavailable, UnknownHash, UnicodeDecodeError) as error:
            return CannotTell(f"vault: {error}")
        except MemoryError:
            return CannotTell("vault: no memory to verify an RPOP id")


def _matches(argument: bytes, hashed: str | None) -> bool:
    if hashed is None:
        verify_dummy(argument)
        return False
    return verify(argument, hashed)


@dataclass(frozen=True, slots=True)
class Trust:
    """Whoever is `remote_user` on a machine in `network`."""

    network: Network
    remote_user: str


class TrustedHosts:
    """The table of RFC 1081's RPOP: maildrop, network, user there. Made by `load`, kept up to date by its `file`."""

    def __init__(self, file: RereadFile[dict[str, list[Trust]]]) -> None:
        self.file = file

    @classmethod
    def load(cls, path: Path, canonical: Canonical) -> TrustedHosts:
        """Raises ConfigError with every problem of the file."""
        try:
            return cls(RereadFile(path, lambda octets: parse_hosts(octets, str(path), canonical), logger))
        except OSError as error:
            cure = "make it, or correct rpop.hosts"
            raise ConfigError([Problem(str(path), "", f"cannot be read: {error.strerror}", cure)]) from None

    def allows(self, user: str, host: str, remote_user: str) -> bool:
        """May `remote_user` at the address `host` open the maildrop of this canonical name?"""
        address = ipaddress.ip_address(host.partition("%")[0])
        trusted = self.file.value.get(user, ())
        return any(trust.remote_user == remote_user and address in trust.network for trust in trusted)


class RpopHostsAuthenticator:
    """Judges who comes from a trusted machine. That the port is reserved has been seen before RPOP was offered."""

    name = "rpop"

    def __init__(self, hosts: TrustedHosts, executor: BoundedExecutor) -> None:
        self._hosts = hosts
        self._executor = executor

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator."""
        if not isinstance(credential, RpopCredential):
            return Declined()
        try:
            if self._hosts.file.is_stale():
                await self._executor.run(self._hosts.file.refresh)
        except Unavailable as error:
            return CannotTell(f"trusted hosts: {error}")
        remote_user = credential.argument.reveal().decode("utf-8", "surrogateescape")
        if not self._hosts.allows(user, credential.source.host, remote_user):
            return Rejected(AuthFailure.BAD_CREDENTIALS)
        return Accepted(Identity(user, credential.authcid, credential.mechanism))


def parse_hosts(octets: bytes, source: str, canonical: Canonical) -> dict[str, list[Trust]]:
    """Lines of maildrop, network (or address) and the user's name there, with spaces between; # begins a comment.

    Raises ConfigError with every problem.
    """
    found: dict[str, list[Trust]] = {}
    problems: list[Problem] = []
    for number, raw in enumerate(octets.split(b"\n"), start=1):
        line = raw.decode("utf-8", "replace").strip()
        if not line or line.startswith("#"):
            continue
        words = line.split()
        try:
            if len(words) != 3 or "\ufffd" in line:
                raise ValueError("not a user, a network and a user there")
            trust = Trust(ipaddress.ip_network(words[1]), words[2])
            found.setdefault(canonical(words[0]), []).append(trust)
        except NameRefused:
            problems.append(Problem(f"{source}:{number}", "", "the user name cannot be", "correct it"))
        except ValueError as error:
            problems.append(Problem(f"{source}:{number}", "", str(error), "write for example: alice 192.0.2.17 ajones"))
    if problems:
        raise ConfigError(problems)
    return found
