"""What replicas write to Redis: no name, no address, nothing that others could make or read.

Names of keys are keyed hashes. What must be read back (whose counter, which note) is encrypted by AES-SIV (RFC 5297),
which also shows what nobody with the key has written.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from popproxy.state.store import Change, Counted, Known
from popproxy.types import Secret

_MOST = 1_000_000


class Values:
    """Made from the secret that all replicas have in common."""

    def __init__(self, secret: Secret) -> None:
        self._names = self._derived(secret, b"names")[:32]
        self._siv = AESSIV(self._derived(secret, b"values"))
        self.shared_secret = self._derived(secret, b"digests")[:32]
        self.name = lru_cache(8192)(self._name)

    @staticmethod
    def _derived(secret: Secret, what: bytes) -> bytes:
        return hashlib.blake2b(secret.reveal(), digest_size=64, salt=what, person=b"popproxy state").digest()

    def _name(self, text: str) -> str:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=15, key=self._names).digest()
        return urlsafe_b64encode(digest).decode()

    def seal_change(self, change: Change) -> bytes:
        """For the history, in URL-safe base64."""
        if isinstance(change, Counted):
            content: list[object] = [change.kind, change.key, change.amount]
        else:
            content = [change.kind, change.key, round(change.value, 3), round(change.age, 3)]
        return urlsafe_b64encode(self._seal("change", content))

    def open_change(self, sealed: str) -> Change | None:
        """None if it is not one of ours."""
        try:
            octets = urlsafe_b64decode(sealed)
        except ValueError:
            return None
        match self._open("change", octets):
            case [str(kind), str(key), int(amount)] if 0 <= amount <= _MOST:
                return Counted(kind, key, amount)
            case [str(kind), str(key), (int() | float()) as value, (int() | float()) as age] if 0 <= value <= _MOST:
                return Known(kind, key, value, max(0.0, age))
        return None

    def seal_note(self, kind: str, key: str, text: str | None) -> tuple[bytes, bytes]:
        """Field and value; no value takes the note away."""
        return self._seal("note", [kind, key]), b"" if text is None else self._seal(f"note {kind}\0{key}", [text])

    def open_note(self, field: object, sealed: object) -> tuple[str, str, str] | None:
        """Kind, key and text; None if it is not one of ours."""
        match self._open("note", field):
            case [str(kind), str(key)]:
                match self._open(f"note {kind}\0{key}", sealed):
                    case [str(text)]:
                        return kind, key, text
        return None

    def _seal(self, purpose: str, content: list[object]) -> bytes:
        return self._siv.encrypt(json.dumps(content, separators=(",", ":")).encode(), [purpose.encode()])

    def _open(self, purpose: str, sealed: object) -> object:
        if not isinstance(sealed, bytes):
            return None
        try:
            return json.loads(self._siv.decrypt(sealed, [purpose.encode("utf-8", "surrogatepass")]))
        except (InvalidTag, ValueError):
            return None
