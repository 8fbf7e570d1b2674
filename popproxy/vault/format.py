"""The vault's file format, version 1: JSON lines that can be compared and kept in version control.

::

    {"popproxy-vault":1,"cipher":"AES-256-GCM","key":"4f0c...","salt":"9a31..."}
    {"user":"alice@example.com","version":3,"nonce":"...","secret":"..."}
    {"user":"bob@example.com","version":7,"nonce":"...","secret":"..."}
    {"entries":2,"revision":7,"mac":"..."}

* UTF-8, LF after every line, no spaces; entries sorted by user (code points). User names stand in clear.
* ``salt``: 16 random octets in hex, made when the vault is made and at each rekey. From the key (32 octets) HKDF-SHA256
  (RFC 5869) with this salt derives three: one for the entries, one for the file, and the public ``key``, 8 octets in
  hex, by which a wrong key is told from a damaged file.
* ``secret``: base64 of AES-256-GCM over what is kept for the user (record.py), padded with 0x80 0x00... to a multiple
  of 512 octets so that its length does not show, under a random nonce of 12 octets. The associated data are salt, user
  and version, so an entry cannot be moved to another user, another version or another vault.
* ``revision`` counts the edits; an entry's ``version`` is the revision that set it. An entry that is not edited keeps
  its octets.
* ``mac``: HMAC-SHA256 in hex over all that stands before it, ``entries`` and ``revision`` included. So no line can be
  changed, added, removed, moved, or taken from an older version of the file.

An older version of the whole file is a valid vault. A running popproxy refuses to go back to one; for more, keep the
file where it cannot be replaced.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from popproxy.errors import VaultError
from popproxy.types import Secret

KEY_SIZE: Final = 32
_SALT_SIZE = 16
_NONCE_SIZE = 12
_TAG_SIZE = 16
_BLOCK = 512

_RESTORE = "restore the file from a backup"


class WrongKey(VaultError):
    """The vault is locked with another key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept for a user, still encrypted."""

    user: str
    version: int
    nonce: bytes
    box: bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """One version of a vault. `entries` by user."""

    salt: bytes
    revision: int
    entries: Mapping[str, Entry]


def generate_key() -> str:
    """A new key: 32 random octets in base64."""
    return base64.b64encode(secrets.token_bytes(KEY_SIZE)).decode()


def new_salt() -> bytes:
    """The salt of a new vault."""
    return secrets.token_bytes(_SALT_SIZE)


class Cipher:
    """What a key can do for the vault with this salt. Raises VaultError if `key` is not base64 of 32 octets."""

    def __init__(self, key: Secret, salt: bytes) -> None:
        master = _decode_key(key)
        self._salt = salt
        self._entries = AESGCM(_derive(master, salt, b"popproxy vault 1 entries", 32))
        self._file = Secret(_derive(master, salt, b"popproxy vault 1 file", 32))
        self.key_id = _derive(master, salt, b"popproxy vault 1 key id", 8).hex()
        self.decoy = self.seal("", 0, Secret(b"nobody"))  # to be decrypted for a user who has no entry

    def seal(self, user: str, version: int, secret: Secret) -> Entry:
        """Encrypt a secret under a fresh nonce."""
        nonce = secrets.token_bytes(_NONCE_SIZE)
        box = self._entries.encrypt(nonce, _pad(secret.reveal()), self._associated_data(user, version))
        return Entry(user, version, nonce, box)

    def unseal(self, entry: Entry) -> Secret:
        """Decrypt an entry. Raises VaultError."""
        try:
            padded = self._entries.decrypt(entry.nonce, entry.box, self._associated_data(entry.user, entry.version))
        except InvalidTag:
            raise VaultError("an entry of the vault has been altered") from None
        return Secret(padded[: padded.rindex(b"\x80")])

    def mac(self, octets: bytes) -> str:
        """What vouches for the whole file."""
        return hmac.new(self._file.reveal(), octets, hashlib.sha256).hexdigest()

    def _associated_data(self, user: str, version: int) -> bytes:
        return _line([1, self._salt.hex(), user, version])


def is_key_of(octets: bytes, key: Secret, where: str) -> bool:
    """Is this the key of the vault that begins with `octets`? Raises VaultError."""
    salt, key_id = _decode_header(octets.partition(b"\n")[0], f"{where}:1")
    return Cipher(key, salt).key_id == key_id


def encode(contents: Contents, cipher: Cipher) -> bytes:
    """The octets of the file."""
    header = {"popproxy-vault": 1, "cipher": "AES-256-GCM", "key": cipher.key_id, "salt": contents.salt.hex()}
    lines = [header, *(_entry_fields(contents.entries[user]) for user in sorted(contents.entries))]
    body = b"".join(map(_line, lines))
    return body + _last_line(body, len(contents.entries), contents.revision, cipher)


def decode(octets: bytes, key: Secret, where: str) -> tuple[Contents, Cipher]:
    """Read a file, and make the cipher that opens its entries. `where` is its name in errors.

    Raises VaultError with file, line and cure if the key is the wrong one, or anything at all is not as it was written.
    """
    lines = octets.split(b"\n")
    salt, key_id = _decode_header(lines[0], f"{where}:1")
    cipher = Cipher(key, salt)
    if cipher.key_id != key_id:
        raise WrongKey(
            f"{where}:1: this vault is locked with key {key_id}, the key given is {cipher.key_id}; "
            "check vault.key in the configuration"
        )
    last = len(lines) - 1
    end = _fields(lines[-2], {"entries": int, "revision": int, "mac": str}) if last > 1 and not lines[-1] else None
    if end is None:
        raise VaultError(f"{where}:{max(1, last if not lines[-1] else last + 1)}: the file ends too early; {_RESTORE}")
    entries = _decode_entries(lines[1:-2], where)
    body = b"\n".join(lines[:-2]) + b"\n"
    # The whole line is compared, so that not even its spelling can vary.
    if not hmac.compare_digest(_last_line(body, len(entries), end["revision"], cipher), lines[-2] + b"\n"):
        raise _altered(entries, cipher, where, last)
    return Contents(salt, end["revision"], {entry.user: entry for entry in entries}), cipher


def _decode_key(key: Secret) -> bytes:
    try:
        octets = base64.b64decode(key.reveal().strip(), validate=True)
    except (binascii.Error, ValueError):
        octets = b""
    if len(octets) != KEY_SIZE:
        raise VaultError("the vault's key is not 32 octets in base64; make one with popproxy vault init")
    return octets


def _derive(master: bytes, salt: bytes, purpose: bytes, size: int) -> bytes:
    return HKDF(SHA256(), size, salt, purpose).derive(master)


def _pad(secret: bytes) -> bytes:
    return secret + b"\x80" + bytes(-(len(secret) + 1) % _BLOCK)


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _entry_fields(entry: Entry) -> dict[str, Any]:
    return {
        "user": entry.user,
        "version": entry.version,
        "nonce": base64.b64encode(entry.nonce).decode(),
        "secret": base64.b64encode(entry.box).decode(),
    }


def _last_line(body: bytes, entries: int, revision: int, cipher: Cipher) -> bytes:
    fields = {"entries": entries, "revision": revision}
    return _line({**fields, "mac": cipher.mac(body + _line(fields))})


def _fields(line: bytes, expected: dict[str, type]) -> dict[str, Any] | None:
    """The JSON object on a line, if it has just these keys with values of these types."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.keys() != expected.keys():
        return None
    return value if all(type(value[key]) is kind for key, kind in expected.items()) else None


def _decode_header(line: bytes, where: str) -> tuple[bytes, str]:
    """Salt and key id."""
    header = _fields(line, {"popproxy-vault": int, "cipher": str, "key": str, "salt": str})
    if header is None:
        raise VaultError(f"{where}: this is not a popproxy vault, or its first line is damaged; {_RESTORE}")
    if (header["popproxy-vault"], header["cipher"]) != (1, "AES-256-GCM"):
        raise VaultError(f"{where}: a vault of a kind that this version does not know; use the popproxy that made it")
    try:
        salt = bytes.fromhex(header["salt"])
        int(header["key"], 16)
    except ValueError:
        raise VaultError(f"{where}: the first line is damaged; {_RESTORE}") from None
    return salt, header["key"]


def _decode_entries(lines: list[bytes], where: str) -> list[Entry]:
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=2):
        fields = _fields(line, {"user": str, "version": int, "nonce": str, "secret": str})
        if fields is None:
            raise VaultError(f"{where}:{number}: the line is damaged; {_RESTORE}")
        try:
            nonce = base64.b64decode(fields["nonce"], validate=True)
            box = base64.b64decode(fields["secret"], validate=True)
        except (binascii.Error, ValueError):
            raise VaultError(f"{where}:{number}: the line is damaged; {_RESTORE}") from None
        if len(nonce) != _NONCE_SIZE or len(box) < _BLOCK + _TAG_SIZE:
            raise VaultError(f"{where}:{number}: the line is damaged; {_RESTORE}")
        if entries and fields["user"] <= entries[-1].user:
            raise VaultError(f"{where}:{number}: lines were moved or doubled; {_RESTORE}")
        entries.append(Entry(fields["user"], fields["version"], nonce, box))
    return entries


def _altered(entries: list[Entry], cipher: Cipher, where: str, last: int) -> VaultError:
    """The error for a file that its last line does not vouch for; names the first line at fault, if one can be."""
    for number, entry in enumerate(entries, start=2):
        try:
            cipher.unseal(entry)
        except VaultError:
            return VaultError(f"{where}:{number}: the entry has been altered; {_RESTORE}")
    return VaultError(f"{where}:{last}: lines were added, removed or replaced, or this line altered; {_RESTORE}")
