"""The vault: secrets that must be known in clear (APOP, stored backend passwords), encrypted at rest and in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from popproxy.errors import PopproxyError, Problem, VaultError
from popproxy.state.reread import RereadFile
from popproxy.types import Secret
from popproxy.vault import files
from popproxy.vault.format import Cipher, Contents, Entry, decode, encode, new_salt

logger = logging.getLogger(__name__)

_MAX_USER = 255  # octets
_MAX_SECRET = 1024  # octets


class Vault:
    """An open vault. Several processes may have it open and edit it; each sees the others' edits.

    Users are looked up under exactly the name they were set with: pass canonical names. Every method but `revision`
    may raise VaultError; no error holds a secret.
    """

    def __init__(self, path: Path, key: Secret, recheck: float = 1.0) -> None:
        self.path = path
        self._key = key
        self._open: tuple[Contents, Cipher] | None = None  # what a newer version of the file may not fall behind
        try:
            self._file = RereadFile(path, self._decode, logger, recheck=recheck)
        except OSError as error:
            raise VaultError(
                f"{path}: {error.strerror or error}; check vault.file, or make it with popproxy vault init"
            ) from None

    @classmethod
    def open(cls, path: Path, key: Secret, *, recheck: float = 1.0) -> Vault:
        """Open a vault with its key, 32 octets in base64. The file is looked at again every `recheck` seconds at most.

        Raises VaultError if the key is the wrong one, or the file is missing, damaged or not a vault.
        """
        return cls(path, key, recheck)

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
        """The user's secret, or None after the same work."""
        contents, cipher = self._current()
        entry = contents.entries.get(user)
        secret = cipher.unseal(entry or cipher.decoy)
        return secret if entry else None

    def users(self) -> list[str]:
        """Who has a secret, sorted. Nothing is decrypted."""
        return sorted(self._current()[0].entries)

    def set(self, user: str, secret: Secret) -> None:
        """Add or change a user's secret."""
        self._set_all({user: secret})

    def remove(self, user: str) -> bool:
        """Remove a user's secret. False if there was none."""
        with files.exclusive(self.path):
            contents, cipher = self._latest()
            if user not in contents.entries:
                return False
            entries = {name: entry for name, entry in contents.entries.items() if name != user}
            self._write(Contents(contents.salt, contents.revision + 1, entries), cipher)
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
        self, lines: Iterable[str], *, canonical: Callable[[str], str] = str, source: str = "import"
    ) -> int:
        """Set many secrets at once, all or none; returns how many.

        `lines` are ``user:secret``; the secret begins after the first colon and keeps its spaces. Empty lines and lines
        that begin with # are skipped. `canonical` may raise any PopproxyError or ValueError for a name that cannot be;
        `source` names the lines in errors. Raises VaultError with every problem.
        """
        found: dict[str, Secret] = {}
        problems: list[Problem] = []
        for number, line in enumerate(lines, start=1):
            text = line.rstrip("\r\n")
            if not text.strip() or text.startswith("#"):
                continue
            try:
                user, secret = _parse_line(text, canonical)
                if user in found:
                    raise VaultError("the user was on an earlier line; keep one of the two")
                found[user] = secret
            except VaultError as error:
                problems.append(Problem(f"{source}:{number}", "", str(error)))
        if problems:
            raise VaultError("\n".join(map(str, problems)))
        if found:
            self._set_all(found)
        return len(found)

    def _set_all(self, secrets: dict[str, Secret]) -> None:
        for user, secret in secrets.items():
            _check(user, secret)
        with files.exclusive(self.path):
            contents, cipher = self._latest()
            revision = contents.revision + 1
            sealed: dict[str, Entry] = {user: cipher.seal(user, revision, secret) for user, secret in secrets.items()}
            self._write(Contents(contents.salt, revision, {**contents.entries, **sealed}), cipher)

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
        contents, cipher = decode(octets, self._key, str(self.path))
        if self._open is not None:
            known = self._open[0]
            if contents.salt == known.salt and contents.revision < known.revision:
                raise VaultError(
                    f"{self.path}: revision {contents.revision} is older than the one in use, {known.revision}; "
                    "restart popproxy if you mean to go back"
                )
        self._open = contents, cipher
        return self._open


def _parse_line(text: str, canonical: Callable[[str], str]) -> tuple[str, Secret]:
    name, colon, value = text.partition(":")
    if not colon:
        raise VaultError("no colon; write user:secret")
    try:
        user = canonical(name.strip())
        secret = Secret(value)
    except (PopproxyError, ValueError):
        raise VaultError("the user name or the secret cannot be used; write user:secret in UTF-8") from None
    _check(user, secret)
    return user, secret


def _check(user: str, secret: Secret) -> None:
    """What POP3 cannot carry must not get in (control characters end its lines)."""
    try:
        name = user.encode()
    except UnicodeEncodeError:
        raise VaultError("the user name is not Unicode text") from None
    if not name or len(name) > _MAX_USER or _has_control(name):
        raise VaultError("the user name is empty, longer than 255 octets, or has control characters")
    octets = secret.reveal()
    if not octets or len(octets) > _MAX_SECRET or _has_control(octets):
        raise VaultError("the secret is empty, longer than 1024 octets, or has control characters")


def _has_control(octets: bytes) -> bool:
    return any(octet < 0x20 or octet == 0x7F for octet in octets)
