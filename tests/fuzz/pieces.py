"""What a fuzzer's octets mean: decisions first, then texts, cut into the pieces that a socket might give."""

from __future__ import annotations


class Fuzz:
    """Reads decisions off the front of `data`. What is asked for beyond its end is 0, or empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, below: int) -> int:
        """A number from 0 to `below` - 1, out of one octet."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1] % below

    def text(self) -> bytes:
        """Octets behind their length in two octets."""
        length = self.number(256) << 8 | self.number(256)
        return self._take(length)

    def rest(self) -> bytes:
        """All that is left."""
        return self._take(len(self._data))

    def sizes(self, most: int = 8) -> list[int]:
        """Up to `most` sizes of pieces."""
        return [1 + self.number(255) for _ in range(self.number(most + 1))]

    def _take(self, length: int) -> bytes:
        start, self._at = self._at, min(len(self._data), self._at + length)
        return self._data[start : self._at]


def text(octets: bytes) -> bytes:
    """What `Fuzz.text` reads `octets` from: for seeds."""
    return len(octets).to_bytes(2, "big") + octets
