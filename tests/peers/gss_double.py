"""A GSS context that hides nothing, for tests of state machines octet by octet. Security is tested with Kerberos.

A token is ``W``, whether it is encrypted, its number, a checksum, the data.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from popproxy.errors import RemoteProtocolError

OVERHEAD = 10


class TransparentContext:
    """One end of a context. `answers` are what `step` gives; with the last of them the context is complete."""

    initiator = "alice@POPPROXY.TEST"
    target = "pop/localhost@POPPROXY.TEST"

    def __init__(
        self,
        answers: Sequence[bytes | None] = (),
        *,
        mutual: bool = True,
        integrity: bool = True,
        confidentiality: bool = True,
    ) -> None:
        self._answers = list(answers)
        self.mutual = mutual
        self.integrity = integrity
        self.confidentiality = confidentiality
        self.tokens: list[bytes] = []
        self.expired = False
        self._sent = self._received = 0

    @property
    def complete(self) -> bool:
        return not self._answers

    def step(self, token: bytes) -> bytes | None:
        self.tokens.append(token)
        return self._answers.pop(0)

    def wrap(self, data: bytes, *, confidential: bool) -> bytes:
        if self.expired:
            raise RemoteProtocolError("expired")
        number, self._sent = self._sent, self._sent + 1
        return b"W" + bytes([confidential]) + number.to_bytes(4, "big") + zlib.crc32(data).to_bytes(4, "big") + data

    def unwrap(self, token: bytes) -> tuple[bytes, bool]:
        data = token[OVERHEAD:]
        good = token[:1] == b"W" and token[1:2] in (b"\0", b"\1") and token[6:10] == zlib.crc32(data).to_bytes(4, "big")
        if not good:
            raise RemoteProtocolError("forged")
        if int.from_bytes(token[2:6], "big") != self._received:
            raise RemoteProtocolError("replayed or out of order")
        self._received += 1
        return data, token[1] == 1

    def wrap_size_limit(self, token_size: int, *, confidential: bool) -> int:
        return max(0, token_size - OVERHEAD)
