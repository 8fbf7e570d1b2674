"""The vault: what proves users, encrypted at rest and in memory.

Secrets that must be known in clear (APOP, CRAM-MD5, stored backend passwords), SCRAM verifiers, hashes of RPOP ids.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from popproxy.errors import PopproxyError, Problem, VaultError
from popproxy.sasl.scram_verifier import SALT_SIZE, SCHEMES, ScramVerifier
from popproxy.state.reread import RereadFile
from popproxy.types import Secret
from popproxy.vault import files
from popproxy.vault import record as records
from popproxy.vault.format import Cipher, Contents, Entry, WrongKey, decode, encode, new_salt
from popproxy.vault.record import VERIFIER_ITERATIONS, Kind, Record, has_control

logger = logging.getLogger(__name__)

_MAX_USER = 255  # octets

_NOBODY = Record(
    Secret("nobody"),
    {
        scheme: ScramVerifier(scheme, bytes(SALT_SIZE), VERIFIER_ITERATIONS, Secret(bytes(size)), Secret(bytes(size)))
        for scheme, size in zip(SCHEMES, (20, 32), strict=True)
    },
).encode()
"""Read for a user who has no record, so that it takes as long as for one who has."""

Change = Callable[[Record], Record]
Keys = Callable[[], Iterable[Secret]]


class Vault:
    """An open vault. Several processes may have it open and edit it; each sees the others' edits.

    Users are looked up under exactly the name they were set with: pass canonical names. Every method but `revision`
    may raise VaultError; no error holds a secret.
    """

    def __init__(self, path: Path, key: Secret, recheck: float = 1.0, newer_keys: Keys = tuple) -> None:
        self.path = path
        self._key = key
        self._newer_keys = newer_keys
        self._verifiers_seen: tuple[object, bool] = (None, False)  # of which version, and what was found
        self._open: tuple[Contents, Cipher] | None = None  # what a newer version of the file may not fall behind
        try:
            self._file = RereadFile(path, self._decode, logger, recheck=recheck)
        except OSError as error:
            raise VaultError(
                f"{path}: {error.strerror or error}; check vault.file, or make it with popproxy vault init"
            ) from None

    @classmethod
    def open(cls, path: Path, key: Secret, *, recheck: float = 1.0, newer_keys: Keys = tuple) -> Vault:
        """Open a vault with its key, 32 octets in base64. The file is looked at again every `recheck` seconds at most.

        `newer_keys` is asked when a later version of the file has another key. Raises VaultError if the key is the
        wrong one, or the file is missing, damaged or not a vault.
        """
        return cls(path, key, recheck, newer_keys)

    @classmethod
    def create(cls, path: Path, key: Secret, *, recheck: float = 1.0) -> Vault:
        """Make an empty vault, mode 0600, and open it. Raises VaultError if the file exists."""
        salt = new_salt()
        files.create(path, encode(Contents(salt, 0, {}), Cipher(key, salt)))
        return cls(path, key, recheck)

    @property
    def revision(self) -> int:
        """How many edits the version in memory has seen."""
        return self._file.value[0].revision

    def get(self, user: str) -> Secret | None:
        """The user's secret in clear, or None after the same work."""
        return self.record(user).secret

    def record(self, user: str) -> Record:
        """Everything that is kept for the user; an empty record, after the same work, if that is nothing."""
        contents, cipher = self._current()
        entry = contents.entries.get(user)
        octets = cipher.unseal(entry or cipher.decoy)
        found = records.decode(octets if entry else _NOBODY)
        return found if entry else Record()

    def has_verifiers(self) -> bool:
        """Is there a SCRAM verifier in it?"""
        contents, cipher = self._current()
        version = (contents.salt, contents.revision)
        if self._verifiers_seen[0] != version:
            found = any(records.decode(cipher.unseal(entry)).verifiers for entry in contents.entries.values())
            self._verifiers_seen = version, found
        return self._verifiers_seen[1]

    def users(self) -> list[str]:
        """Of whom something is kept, sorted. Nothing is decrypted."""
        return sorted(self._current()[0].entries)

    def records(self) -> Iterator[tuple[str, Record]]:
        """Everything, by user. Decrypts it all."""
        contents, cipher = self._current()
        for user in sorted(contents.entries):
            yield user, records.decode(cipher.unseal(contents.entries[user]))

    def set(self, user: str, secret: Secret) -> None:
        """Add or change a user's secret in clear."""
        self.change({user: lambda record: record.with_password(secret)})

    def remove(self, user: str, kind: Kind | None = None) -> bool:
        """Remove what is kept for a user, or one kind of it. False if there was none."""
        with files.exclusive(self.path):
            contents, cipher = self._latest()
            entry = contents.entries.get(user)
            before = Record() if entry is None else records.decode(cipher.unseal(entry))
            after = Record() if kind is None else before.without(kind)
            if after.kinds == before.kinds:
                return False
            self._apply(contents, cipher, {user: after})
        return True

    def rekey(self, new_key: Secret) -> None:
        """Encrypt everything anew, for `new_key`. Other processes keep what they have until they are given that key."""
        with files.exclusive(self.path):
            contents, cipher = self._latest()
            salt = new_salt()
            new_cipher = Cipher(new_key, salt)
            entries = {
                user: new_cipher.seal(user, entry.version, cipher.unseal(entry))
                for user, entry in contents.entries.items()
            }
            octets = encode(Contents(salt, contents.revision + 1, entries), new_cipher)
            files.replace(self.path, octets)
            self._key = new_key
            self._file.replace(octets)

    def import_lines(
        self,
        lines: Iterable[str],
        *,
        canonical: Callable[[str], str] = str,
        source: str = "import",
        kind: Kind = Kind.PASSWORD,
    ) -> int:
        """Set many passwords at once, all or none; returns how many.

        `lines` are ``user:password``; the password begins after the first colon and keeps its spaces. Empty lines and
        lines that begin with # are skipped. `canonical` may raise any PopproxyError or ValueError for a name that
        cannot be; `source` names the lines in errors; `kind` says what the passwords are, RPOP ids excepted. Raises
        VaultError with every problem.
        """
        made: dict[str, Record] = {}
        problems: list[Problem] = []
        for number, line in enumerate(lines, start=1):
            text = line.rstrip("\r\n")
            if not text.strip() or text.startswith("#"):
                continue
            try:
                user, secret = _parse_line(text, canonical)
                if user in made:
                    raise VaultError("the user was on an earlier line; keep one of the two")
                made[user] = Record().with_kind(kind, secret)
            except VaultError as error:
                problems.append(Problem(f"{source}:{number}", "", str(error)))
        if problems:
            raise VaultError("\n".join(map(str, problems)))
        if made:
            self.change({user: partial(_take, kind, record) for user, record in made.items()})
        return len(made)

    def change(self, changes: Mapping[str, Change]) -> None:
        """Change the records of some users, all in one edit; a user who has none begins with an empty one."""
        for user in changes:
            _check_user(user)
        with files.exclusive(self.path):
            contents, cipher = self._latest()
            changed = {}
            for user, change in changes.items():
                entry = contents.entries.get(user)
                changed[user] = change(Record() if entry is None else records.decode(cipher.unseal(entry)))
            self._apply(contents, cipher, changed)

    def _apply(self, contents: Contents, cipher: Cipher, changed: Mapping[str, Record]) -> None:
        revision = contents.revision + 1
        entries: dict[str, Entry] = dict(contents.entries)
        for user, record in changed.items():
            if record.kinds:
                entries[user] = cipher.seal(user, revision, record.encode())
            else:
                entries.pop(user, None)
        self._write(Contents(contents.salt, revision, entries), cipher)

    def _current(self) -> tuple[Contents, Cipher]:
        if self._file.is_stale():
            self._file.refresh()
        return self._file.value

    def _latest(self) -> tuple[Contents, Cipher]:
        """The file as it is now: what an edit starts from, so it may not be an older version kept in memory."""
        try:
            return self._decode(self.path.read_bytes())
        except OSError as error:
            raise VaultError(f"{self.path}: {error.strerror or error}; check vault.file and its permissions") from None

    def _write(self, contents: Contents, cipher: Cipher) -> None:
        octets = encode(contents, cipher)
        files.replace(self.path, octets)
        self._file.replace(octets)

    def _decode(self, octets: bytes) -> tuple[Contents, Cipher]:
        try:
            contents, cipher = decode(octets, self._key, str(self.path))
        except WrongKey:
            if self._open is None:
                raise
            contents, cipher = self._with_newer_key(octets)
        if self._open is not None:
            known = self._open[0]
            if contents.salt == known.salt and contents.revision < known.revision:
                raise VaultError(
                    f"{self.path}: revision {contents.revision} is older than the one in use, {known.revision}; "
                    "restart popproxy if you mean to go back"
                )
        self._open = contents, cipher
        return self._open

    def _with_newer_key(self, octets: bytes) -> tuple[Contents, Cipher]:
        """The file has another key since it was opened."""
        for key in self._newer_keys():
            with contextlib.suppress(WrongKey):
                found = decode(octets, key, str(self.path))
                self._key = key
                return found
        raise VaultError(
            f"{self.path}: it has a new key, and this process cannot read that; restart popproxy, or let its user own "
            "the key's file"
        )


def _take(kind: Kind, made: Record, before: Record) -> Record:
    """`before` with what `made` has of that kind."""
    match kind:
        case Kind.BACKEND:
            return replace(before, backend=made.backend)
        case Kind.REFRESH_TOKEN:
            return replace(before, refresh_token=made.refresh_token)
        case _:
            return replace(before, secret=made.secret, verifiers=made.verifiers)


def _parse_line(text: str, canonical: Callable[[str], str]) -> tuple[str, Secret]:
    name, colon, value = text.partition(":")
    if not colon:
        raise VaultError("no colon; write user:secret")
    try:
        user = canonical(name.strip())
        secret = Secret(value)
    except (PopproxyError, ValueError):
        raise VaultError("the user name or the secret cannot be used; write user:secret in UTF-8") from None
    _check_user(user)
    return user, secret


def _check_user(user: str) -> None:
    try:
        name = user.encode()
    except UnicodeEncodeError:
        raise VaultError("the user name is not Unicode text") from None
    if not name or len(name) > _MAX_USER or has_control(name):
        raise VaultError("the user name is empty, longer than 255 octets, or has control characters")
