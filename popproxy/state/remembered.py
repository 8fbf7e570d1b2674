"""Who was let in a moment ago: keyed digests of what was shown, for a short time."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

from popproxy.types import Secret

T = TypeVar("T")

CAPACITY = 10_000
"""What is remembered of one source; the oldest goes first."""


class Remembered(Generic[T]):
    """What came of right passwords, for `seconds` after the source was asked.

    Neither a password nor a user's name is kept, but one digest of both together, under a key that is drawn at the
    start and never leaves the process. Nothing is remembered of wrong passwords: they could push out the right ones,
    and a password that has just been changed would stay wrong.
    """

    def __init__(self, seconds: float, capacity: int = CAPACITY, clock: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._capacity = capacity
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._entries: OrderedDict[bytes, tuple[float, T]] = OrderedDict()  # until when; the first to expire first

    def __len__(self) -> int:
        return len(self._entries)

    def now(self) -> float:
        """For `remember`: when the source is asked."""
        return self._clock()

    def digest(self, user: str, password: Secret, *circumstances: str) -> bytes:
        """What stands for a user with a password, where these circumstances matter to the source."""
        digest = hashlib.blake2b(key=self._key, digest_size=32)
        for part in (
            user.encode("utf-8", "surrogatepass"),
            password.reveal(),
            *(text.encode() for text in circumstances),
        ):
            digest.update(len(part).to_bytes(4, "big"))  # no two ways to cut the same octets
            digest.update(part)
        return digest.digest()

    def recall(self, digest: bytes) -> T | None:
        """What came of it, if that is not too long ago."""
        found = self._entries.get(digest)
        return found[1] if found is not None and self._clock() < found[0] else None

    def remember(self, digest: bytes, value: T, asked: float) -> None:
        """`asked` is when the source was asked: what it has learned since then takes effect in time."""
        self._entries[digest] = (asked + self._seconds, value)
        self._entries.move_to_end(digest)
        now = self._clock()
        for _ in range(2):  # more than can come in the same time
            oldest = next(iter(self._entries))
            if self._entries[oldest][0] > now and len(self._entries) <= self._capacity:
                break
            del self._entries[oldest]
            if not self._entries:
                break
