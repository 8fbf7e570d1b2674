"""The users file: accounts that popproxy checks itself.

::

    # comment
    alice@example.com:$argon2id$v=19$m=65536,t=3,p=4$...
    bob@example.com:{SSHA512}...
    carol:$6$...:19000:0:99999:7:::        lines of /etc/shadow may be moved over as they are
    dave:!                                 disabled; also * and !hash
    erin:{SCRAM-SHA-256}15000,...          a SCRAM verifier: for SCRAM, and for passwords
    frank:$argon2id$... {SCRAM-SHA-1}...   verifiers beside a hash, which then is for passwords

The name ends at the first colon, the hash at the second; what follows is ignored. UTF-8, one account a line.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from popproxy.auth.hashes import UnknownHash, require_known, verify, verify_dummy
from popproxy.auth.names import NameRefused, check_name
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Declined, Prospect, Rejected
from popproxy.errors import ConfigError, Problem, Unavailable
from popproxy.sasl.credentials import Credential, PasswordCredential
from popproxy.sasl.scram_verifier import ScramVerifier, UnusableVerifier, looks_like_verifier, parse_verifier
from popproxy.state.executors import BoundedExecutor
from popproxy.state.reread import RereadFile
from popproxy.types import AuthFailure, Identity, Mechanism, Step

logger = logging.getLogger(__name__)

Canonical = Callable[[str], str]

DISABLED: Final = ""
"""Stands for the hash of a disabled account."""


@dataclass(frozen=True, slots=True)
class _Account:
    """One user's: what a password is checked by, or DISABLED, and the SCRAM verifiers."""

    stored: str
    verifiers: Mapping[Mechanism, ScramVerifier] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Accounts:
    """One version of the file."""

    by_name: dict[str, _Account]  # by canonical name
    decoys: Sequence[str]  # every hash in use
    shapes: Mapping[Mechanism, Collection[tuple[int, int]]]  # of the verifiers


class UsersFile:
    """The accounts by canonical name. Made by `load`, kept up to date by `is_stale` and `refresh`."""

    def __init__(self, path: Path, canonical: Canonical, recheck: float) -> None:
        self._file = RereadFile(path, lambda octets: _parse(octets, path, canonical), logger, recheck=recheck)
        self._decoy_key = secrets.token_bytes(16)

    @classmethod
    def load(cls, path: Path, canonical: Canonical, *, recheck: float = 1.0) -> UsersFile:
        """Read the file. `canonical` brings a name into the form in which users are looked up.

        Raises ConfigError with every problem of the file. It is looked at again every `recheck` seconds at most.
        """
        try:
            return cls(path, canonical, recheck)
        except OSError as error:
            what = f"cannot be read: {error.strerror or error}"
            raise ConfigError([Problem(str(path), "", what, "check users.file and its permissions")]) from None

    def __len__(self) -> int:
        return len(self._file.value.by_name)

    def is_stale(self) -> bool:
        """Has the file changed? Looks at most once in `recheck` seconds."""
        return self._file.is_stale()

    def refresh(self) -> None:
        """Read the file again; a broken version is logged and not taken. Takes a while for large files."""
        self._file.refresh()

    def lookup(self, user: str) -> str | None:
        """The stored hash of a canonical name, DISABLED, or None for a user that is not in the file."""
        account = self._file.value.by_name.get(user)
        return None if account is None else account.stored

    def verifiers(self, user: str) -> Mapping[Mechanism, ScramVerifier]:
        """The SCRAM verifiers of a canonical name by their scheme; none of a disabled account."""
        account = self._file.value.by_name.get(user)
        return {} if account is None else account.verifiers

    def verifier_shapes(self, scheme: Mechanism) -> Collection[tuple[int, int]]:
        """Octets of salt and iterations that verifiers of a scheme have, without repetition."""
        return self._file.value.shapes.get(scheme, ())

    def users(self) -> list[str]:
        """All canonical names, in file order, disabled ones too."""
        return list(self._file.value.by_name)

    def decoy(self, user: str) -> str | None:
        """Somebody's hash, to be verified in place of the one that `user` has not, so that the time tells nothing.

        The same name gets the same one each time, and all names together the mixture of schemes and costs that real
        users have: a fixed scheme would betray itself in a file that holds others. None if the file has no hash.
        """
        decoys = self._file.value.decoys
        if not decoys:
            return None
        drawn = int.from_bytes(hmac.digest(self._decoy_key, user.encode(errors="replace"), "sha256")[:8], "big")
        return decoys[drawn % len(decoys)]


class UsersFileAuthenticator:
    """Judges passwords by the users file.

    `decisive` says that nobody comes after it in the chain: unknown users are then rejected, after the work that a
    known one would cost. Otherwise they are passed on at once. Who is in the file is always decided here.
    """

    name = "users"

    def __init__(self, users: UsersFile, executor: BoundedExecutor, decisive: bool = True) -> None:
        self._users = users
        self._executor = executor
        self._decisive = decisive

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator. CannotTell if the pool of threads is full or late, or a hash cannot be verified."""
        if not isinstance(credential, PasswordCredential):
            return Declined()
        try:
            if self._users.is_stale():
                await self._executor.run(self._users.refresh)
            stored = self._users.lookup(user)
            if stored is None and not self._decisive:
                return Declined()
            if await self._executor.run(self._matches, credential.password.reveal(), stored, user):
                return Accepted(Identity(user, credential.authcid, credential.mechanism))
            return Rejected(AuthFailure.DISABLED if stored == DISABLED else AuthFailure.BAD_CREDENTIALS)
        except (Unavailable, UnknownHash) as error:
            return CannotTell(f"users file: {error}")
        except MemoryError:
            return CannotTell("users file: no memory to verify a password hash")

    def prospect(self, user: str) -> Prospect:
        """See Foretelling."""
        stored = self._users.lookup(user)
        if stored is None and self._decisive:
            return Prospect(Step("refused: not in the users file, and nobody is asked after it", (), "refused"))
        if stored is None:
            return Prospect(Step("users: not in the users file", (), "passed"))
        if stored == DISABLED:
            return Prospect(Step("refused: disabled in the users file", (), "refused"))
        return Prospect(Step("users: the hash in the users file decides"), Identity(user, user, Mechanism.USER))

    def _matches(self, password: bytes, stored: str | None, user: str) -> bool:
        if stored:
            return verify(password, stored)
        decoy = self._users.decoy(user)
        if decoy:
            verify(password, decoy)
        else:
            verify_dummy(password)
        return False


def _parse(octets: bytes, path: Path, canonical: Canonical) -> _Accounts:
    """All accounts of a file. Raises ConfigError with every problem; no text of the file is ever quoted."""
    accounts: dict[str, _Account] = {}
    first_line: dict[str, int] = {}
    problems: list[Problem] = []
    for number, raw in enumerate(octets.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            found = _parse_line(raw, canonical)
            if found is None:
                continue
            name, account = found
            if name in first_line:
                raise _Wrong(f"the same user as on line {first_line[name]}", "keep one of the two")
        except _Wrong as wrong:
            problems.append(Problem(f"{path}:{number}", "", wrong.what, wrong.cure))
        else:
            first_line[name] = number
            accounts[name] = account
    if problems:
        raise ConfigError(problems)
    decoys = [one.stored for one in accounts.values() if one.stored != DISABLED]
    return _Accounts(accounts, decoys, _shapes(accounts.values()))


def _shapes(accounts: Iterable[_Account]) -> dict[Mechanism, set[tuple[int, int]]]:
    shapes: dict[Mechanism, set[tuple[int, int]]] = {}
    for account in accounts:
        for scheme, verifier in account.verifiers.items():
            shapes.setdefault(scheme, set()).add((len(verifier.salt), verifier.iterations))
    return shapes


class _Wrong(Exception):
    """One line cannot be used."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what)
        self.what = what
        self.cure = cure


def _parse_line(raw: bytes, canonical: Canonical) -> tuple[str, _Account] | None:
    """Canonical name and account; None for an empty line or a comment. Raises _Wrong."""
    raw = raw.strip(b" \t\r")
    if not raw or raw.startswith(b"#"):
        return None
    raw_name, colon, rest = raw.partition(b":")
    if not colon:
        raise _Wrong("no colon", "write name:hash")
    raw_hash = rest.partition(b":")[0].strip(b" \t")
    name = _parse_name(raw_name.strip(b" \t"), canonical)
    if raw_hash[:1] in (b"!", b"*"):
        return name, _Account(DISABLED)
    return name, _parse_account(raw_hash)


def _parse_account(raw: bytes) -> _Account:
    stored = [_parse_hash(part) for part in raw.split()] or [_parse_hash(b"")]
    hashes = [text for text in stored if not looks_like_verifier(text)]
    if len(hashes) > 1:
        raise _Wrong("two hashes for passwords", "keep one of the two, and any SCRAM verifiers beside it")
    verifiers: dict[Mechanism, ScramVerifier] = {}
    for text in filter(looks_like_verifier, stored):
        try:
            verifier = parse_verifier(text)
        except UnusableVerifier as error:
            raise _Wrong(str(error), "make another one with popproxy hash-password --scheme") from None
        if verifier.scheme in verifiers:
            raise _Wrong(f"two verifiers for {verifier.scheme}", "keep one of the two")
        verifiers[verifier.scheme] = verifier
    return _Account((hashes or stored)[0], verifiers)


def _parse_name(raw: bytes, canonical: Canonical) -> str:
    try:
        return canonical(check_name(raw))
    except NameRefused as refused:
        match refused.reason:
            case AuthFailure.EMPTY:
                raise _Wrong("no user name before the colon", "write name:hash") from None
            case AuthFailure.CONTROL_CHARACTER:
                raise _Wrong("a control or invisible character in the user name", "type the name again") from None
            case _:
                raise _Wrong(
                    "the user name is not UTF-8, or longer than 255 octets", "save the file as UTF-8"
                ) from None


def _parse_hash(raw: bytes) -> str:
    if not raw:
        raise _Wrong("no hash after the colon", "write name:hash, or name:! to disable the account")
    if raw == b"x":
        raise _Wrong("the hash is not here but in the shadow file", "take the line from /etc/shadow")
    try:
        stored = raw.decode("ascii")
        require_known(stored)
    except UnicodeDecodeError:
        raise _Wrong("not a password hash that popproxy knows", "make one with popproxy hash-password") from None
    except UnknownHash as unknown:
        raise _Wrong(unknown.what, unknown.cure) from None
    return stored
